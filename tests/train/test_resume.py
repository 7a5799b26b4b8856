"""A training survives what happens to it: kills, signals, full disks, folders and files that are not as they should."""
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forking import start
from torch import nn
from train.training_data import SHORT, fresh, noted, write_data

from pixart.files.claim import LOCK_FILE, claimed
from pixart.train import loop
from pixart.train.data import PreparedFolder
from pixart.train.objectives import Diffusion
from pixart.train.state import read_state, write_state

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and limits")
LONG = replace(SHORT, steps=40, save_every=1, log_every=1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def noted_losses(folder: Path) -> dict[int, set[str]]:
    """Every loss noted for a step; a step may have been made more than once."""
    seen: dict[int, set[str]] = {}
    for line in (folder / "losses").read_text().splitlines():
        step, _, loss = line.partition(" ")
        seen.setdefault(int(step), set()).add(loss)
    return seen


def kill_at_random(data: Path, tmp_path: Path, kills: int) -> None:
    """Kill -9 that often, then let it end: every loss ever noted and the average equal those of one quiet run."""
    noted(tmp_path / "quiet", data, LONG)
    began = time.perf_counter()
    noted(tmp_path / "timed", data, LONG)
    seconds, chance, killed = time.perf_counter() - began, random.Random(0), 0
    while killed < kills:
        process = start(noted, tmp_path / "killed", data, LONG)
        process.join(chance.uniform(0, 2 * seconds / max(3, kills - killed)))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode == 0:           # it ended before its turn: from the start again
            assert_result(tmp_path)
            (tmp_path / "killed" / loop.STATE).unlink()
        killed += process.exitcode == -signal.SIGKILL
    final = start(noted, tmp_path / "killed", data, LONG)
    final.join()
    assert final.exitcode == 0
    assert_result(tmp_path)


def assert_result(tmp_path: Path) -> None:
    assert noted_losses(tmp_path / "killed") == noted_losses(tmp_path / "quiet")
    quiet, killed = (torch.load(tmp_path / name / "average.pt") for name in ("quiet", "killed"))
    assert all(torch.equal(quiet[name], killed[name]) for name in quiet)


@posix
def test_killed_anywhere_it_ends_like_an_uninterrupted_run(data, tmp_path):
    kill_at_random(data, tmp_path, 4)


@posix
@pytest.mark.slow
def test_killed_thirty_times_it_ends_like_an_uninterrupted_run(data, tmp_path):
    kill_at_random(data, tmp_path, 30)


class Killed(Exception):
    """Raised in a report: nothing is saved, as when the process dies there."""


@pytest.mark.parametrize("changes", [
    {}, {"optimizer": "muon"}, {"optimizer": "adamw8bit"}, {"optimizer": "came"}, {"accumulation": 2},
    {"precision": "bf16"}, {"ema": 0.0, "recompute": True},
    {"precision": "bf16", "accumulation": 3, "cooldown": 4}], ids=str)
def test_resumed_equals_uninterrupted_to_the_bit(data, tmp_path, changes):
    config, data = replace(SHORT, **changes), PreparedFolder(data)
    whole = loop.train(fresh(), Diffusion(data), data, config, tmp_path / "whole")

    def kill(step: int, loss: float) -> None:
        raise Killed            # after step 4: the state at hand is that of step 3

    with pytest.raises(Killed):
        loop.train(fresh(), Diffusion(data), data, config, tmp_path / "parts", report=kill)
    assert read_state(tmp_path / "parts" / loop.STATE)["step"] == 3
    assert_same(loop.train(fresh(), Diffusion(data), data, config, tmp_path / "parts"), whole)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_saves_the_step_it_interrupts(data, tmp_path, number):
    config = replace(LONG, steps=100_000, save_every=100_000)
    process = start(noted, tmp_path / "run", data, config)
    while not (tmp_path / "run" / "losses").exists() or not (tmp_path / "run" / "losses").read_text():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    process.kill()          # one that went on would never end
    assert process.exitcode not in (None, 0)
    assert read_state(tmp_path / "run" / loop.STATE)["step"] == max(noted_losses(tmp_path / "run"))


def trained(data: Path, folder: Path, **changes: object) -> nn.Module:
    prepared = PreparedFolder(data)
    return loop.train(fresh(), Diffusion(prepared), prepared, replace(SHORT, **changes), folder)


def limited(folder: Path, data: Path, answer: Path) -> None:
    """Train on where no file may grow beyond 100 kB; the error goes to `answer`."""
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        trained(data, folder)
    except OSError as error:
        answer.write_text(str(error))


@posix
def test_a_state_that_cannot_be_written_whole_leaves_the_one_before(data, tmp_path):
    trained(data, tmp_path / "run", steps=3)
    before = (tmp_path / "run" / loop.STATE).read_bytes()
    process = start(limited, tmp_path / "run", data, tmp_path / "answer")
    process.join()
    message = (tmp_path / "answer").read_text()
    assert str(tmp_path / "run" / loop.STATE) in message and "previous state is untouched" in message
    assert (tmp_path / "run" / loop.STATE).read_bytes() == before
    assert {path.name for path in (tmp_path / "run").iterdir()} == {LOCK_FILE, loop.STATE}
    assert_same(trained(data, tmp_path / "run"), trained(data, tmp_path / "whole"))


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 3 MiB, where the machine lets us mount one: the state fits once, not twice."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True,
                             check=False) if sys.platform == "linux" and os.geteuid() == 0 else None
    if mounted is None or mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_and_the_state_survives(data, tmp_path, small_disk):
    with pytest.raises(OSError, match="No space left on device; the previous state is untouched"):
        trained(data, small_disk)
    assert read_state(small_disk / loop.STATE)["step"] == 3
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert_same(trained(data, small_disk), trained(data, tmp_path / "whole"))


def test_a_read_only_folder_is_refused_before_the_first_step(data, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match="Read-only file system. Choose another folder"):
        trained(data, small_disk / "run")


def test_a_file_in_place_of_the_folder_is_refused(data, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OSError, match=f"cannot write to {tmp_path / 'run'}"):
        trained(data, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("damage", [
    lambda whole: whole[:len(whole) // 2], lambda whole: b"", lambda whole: b"no state at all",
    lambda whole: whole[:2000] + b"\0" * 500 + whole[2500:-40] + b"\0" * 40], ids=["half", "empty", "other", "holes"])
def test_a_damaged_state_is_refused_and_kept(data, tmp_path, damage):
    trained(data, tmp_path / "run", steps=3)
    path = tmp_path / "run" / loop.STATE
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    with pytest.raises(ValueError, match="state.pt is damaged or no training state"):
        trained(data, tmp_path / "run")
    assert path.read_bytes() == damaged


def test_a_state_of_other_settings_is_refused_by_name(data, tmp_path):
    trained(data, tmp_path / "run", steps=3)
    before = (tmp_path / "run" / loop.STATE).read_bytes()
    with pytest.raises(ValueError, match=r"betas was .0\.9, 0\.999. and is now .0\.9, 0\.9.; learning_rate was 0\.001"):
        trained(data, tmp_path / "run", learning_rate=5e-4, betas=(0.9, 0.9))
    with pytest.raises(ValueError, match="caption_dropout was 0.1 and is now 0.5"):
        prepared = PreparedFolder(data)
        loop.train(fresh(), Diffusion(prepared, 0.5), prepared, SHORT, tmp_path / "run")
    assert (tmp_path / "run" / loop.STATE).read_bytes() == before
    trained(data, tmp_path / "run", steps=4, save_every=1, log_every=1, batch=2, accumulation=2)


def test_two_trainings_never_share_a_folder(data, tmp_path):
    """They overwrote each other's state without a word."""
    trained(data, tmp_path, steps=1)
    before = (tmp_path / loop.STATE).read_bytes()
    with claimed(tmp_path), pytest.raises(BlockingIOError, match="another process is at work in this folder"):
        trained(data, tmp_path, steps=3)
    assert (tmp_path / loop.STATE).read_bytes() == before


def test_a_state_of_another_model_is_refused(data, tmp_path):
    path = tmp_path / "run" / loop.STATE
    write_state(path, {"step": 2, "model": {}, "average": {}, "optimizers": []})
    with pytest.raises(ValueError, match="does not fit this model: .* the first is x_embedder"):
        trained(data, tmp_path / "run")
    other = {name: value[:1] for name, value in fresh().named_parameters()}        # copied, one row would fill all
    write_state(path, {"step": 2, "model": other, "average": other, "optimizers": []})
    with pytest.raises(ValueError, match="does not fit this model: .* the first is x_embedder"):
        trained(data, tmp_path / "run")


class Harm:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("step", [-1, 1.5, None])
def test_what_says_no_step_or_would_run_is_no_state(tmp_path, step):
    write_state(tmp_path / loop.STATE, {"step": step, "settings": {"targets": ("attn.qkv",)}})
    with pytest.raises(ValueError, match="it does not say its step"):
        read_state(tmp_path / loop.STATE)
    torch.save({"step": 1, "model": Harm(tmp_path / "mark")}, tmp_path / loop.STATE)
    with pytest.raises(ValueError, match="is damaged or no training state"):
        read_state(tmp_path / loop.STATE)
    assert not (tmp_path / "mark").exists()


def test_nan_stops_and_keeps_the_last_state(data, tmp_path):
    prepared = PreparedFolder(data)
    calls = []

    def objective(model: nn.Module, average: nn.Module, batch: object, generator: torch.Generator) -> torch.Tensor:
        calls.append(batch)
        return Diffusion(prepared)(model, average, batch, generator) * (float("nan") if len(calls) == 6 else 1.0)

    model = fresh()
    with pytest.raises(FloatingPointError, match="loss became nan at step 5"):
        loop.train(model, objective, prepared, SHORT, tmp_path / "run")
    assert read_state(tmp_path / "run" / loop.STATE)["step"] == 3
    assert all(parameter.isfinite().all() for parameter in model.parameters())
