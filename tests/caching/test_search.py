"""The search finds what is cheap and good, goes on where it was stopped, and starts from the hand-made families."""
import json

import pytest
import torch

from pixart.__main__ import main
from pixart.accelerate import BranchSchedule
from pixart.accelerate.ecad import read_ecad
from pixart.accelerate.search import Trials, search_schedules
from pixart.accelerate.search_plot import plot_front
from pixart.accelerate.seeds import hand_made
from pixart.commands.ecad import write_front

STEPS, DEPTH = 5, 3
pytest.importorskip("pymoo", reason="pymoo is not installed: pip install 'pixart-delta[ecad]'")


class Toy:
    """Reusing the last branch of the last block costs nothing in quality, all others the more the earlier."""

    def __init__(self) -> None:
        self.asked = 0

    def loss(self, schedule: BranchSchedule) -> float:
        self.asked += 1
        weight = torch.arange(STEPS, 0, -1.0)[:, None, None].expand(-1, DEPTH, 3).clone()
        weight[:, -1, -1] = 0
        return float((weight * ~schedule.computed()).sum())

    def work(self, schedule: BranchSchedule) -> float:
        return float(schedule.computed().sum())


def test_a_search_improves_on_where_it_began_and_keeps_what_it_found(tmp_path):
    toy, trials = Toy(), Trials(tmp_path / "t.jsonl", STEPS, DEPTH, "toy")
    seeds = hand_made(STEPS, DEPTH)
    front = search_schedules(trials, seeds, toy.loss, toy.work, 16, 12)
    assert [one.work for one in front] == sorted(one.work for one in front)
    assert all(a.loss > b.loss for a, b in zip(front, front[1:]))
    for seed in seeds[:16]:
        assert any(one.loss <= toy.loss(seed) and one.work <= toy.work(seed) for one in front)
    assert min(one.loss + one.work for one in front) < min(toy.loss(seed) + toy.work(seed) for seed in seeds)


def test_a_stopped_search_goes_on_as_if_it_had_not_been(tmp_path):
    whole, toy = Trials(tmp_path / "a.jsonl", STEPS, DEPTH, "toy"), Toy()
    want, all_asked = search_schedules(whole, [], toy.loss, toy.work, 8, 6), toy.asked

    class Stopped(Exception):
        pass

    def stop(generation: int) -> None:
        if generation == 3:
            raise Stopped

    toy = Toy()
    with pytest.raises(Stopped):
        search_schedules(Trials(tmp_path / "b.jsonl", STEPS, DEPTH, "toy"), [], toy.loss, toy.work, 8, 6, told=stop)
    with (tmp_path / "b.jsonl").open("a") as file:
        file.write('{"loss": 3.0, "wo')          # a kill in the middle of a line
    got = search_schedules(Trials(tmp_path / "b.jsonl", STEPS, DEPTH, "toy"), [], toy.loss, toy.work, 8, 6)
    assert got == want and toy.asked == all_asked
    again = Trials(tmp_path / "b.jsonl", STEPS, DEPTH, "toy")
    assert again.front() == want


def test_trials_of_another_search_are_refused(tmp_path):
    Trials(tmp_path / "t.jsonl", STEPS, DEPTH, "100 scenes")
    with pytest.raises(ValueError, match="of another search .100 scenes; this one: 50 scenes.*t.jsonl"):
        Trials(tmp_path / "t.jsonl", STEPS, DEPTH, "50 scenes")


def test_the_front_is_written_as_files_that_can_be_read(tmp_path, capsys):
    toy, trials = Toy(), Trials(tmp_path / "t.jsonl", STEPS, DEPTH, "toy")
    front = search_schedules(trials, [], toy.loss, toy.work, 8, 3)
    write_front(tmp_path / "front", front, (0.0, 45.0))
    files = sorted((tmp_path / "front").glob("*.json"))
    assert files and all(read_ecad(path).schedule.depth == DEPTH for path in files)
    assert json.loads(files[0].read_text())["cache_schedule"]["name"].startswith("PixArt-mini ")
    plot_front(trials, (0.0, 45.0), tmp_path / "p.png", "loss")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG" and "nothing reused" in capsys.readouterr().out


def test_impossible_searches_are_refused(tmp_path):
    with pytest.raises(ValueError, match="population of 2 for 1 generations"):
        search_schedules(Trials(tmp_path / "t.jsonl", STEPS, DEPTH, "x"), [], len, len, 2, 1)


def test_the_command_refuses_an_impossible_search_before_it_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pixart", "ecad", "search", "--work", str(tmp_path / "w"), "--population", "0"])
    assert main() == 1 and "population of 0" in capsys.readouterr().err and not (tmp_path / "w").exists()


def test_hand_made_schedules_reuse_something_and_differ():
    made = hand_made(20, 8)
    assert len({schedule.bits for schedule in made}) == len(made) > 30
    assert all(not schedule.computed().all() for schedule in made) and hand_made(3, 1)


def test_a_file_of_trials_is_there_with_its_first_line_or_not_at_all(tmp_path, monkeypatch):
    """Half of it would be refused as that of another search."""
    def killed(self, *args, **kwargs):
        self.touch()
        raise KeyboardInterrupt
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(tmp_path), "write_text", killed)
        Trials(tmp_path / "t.jsonl", STEPS, DEPTH, "toy")
    assert Trials(tmp_path / "t.jsonl", STEPS, DEPTH, "toy").found == {}
