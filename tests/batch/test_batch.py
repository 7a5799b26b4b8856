"""A batch gives each image once and the same files, however often it is killed."""
import errno
import hashlib
import json
import logging
import multiprocessing
import os
import pickle
import random
import signal
import sys
import tarfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from batch import cheap
from safetensors.torch import save_file

from pixart.__main__ import main
from pixart.batch.generate import GeneratedTask, GenerationSettings, generate_group
from pixart.batch.run import run_batch
from pixart.batch.tasks import Task, groups_of, tasks_of
from pixart.batch.workers import here, on_ray, processes
from pixart.files.claim import claimed
from pixart.files.prompts import PromptLine
from pixart.generation.facts import ImageFacts
from pixart.weights import CheckpointError, CheckpointNotFound

SETTINGS = GenerationSettings()


def tasks(count: int, seeds: tuple[int, ...] = (1, 2, 3)) -> list[Task]:
    return tasks_of([PromptLine(line, f"prompt {line}") for line in range(1, count + 1)], seeds, 0, 64, 32)


def run(out: Path, todo: list[Task], shard: int | None = None, generate=cheap.generate, batch: int = 2):
    return run_batch(todo, SETTINGS, out, partial(here, SETTINGS, None, generate=generate), batch, shard)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != ".lock"}


def test_lines_without_seeds_follow_each_other_and_are_generated_together():
    lines = [PromptLine(1, "a"), PromptLine(2, "b"), PromptLine(4, "c", seed=9), PromptLine(5, "d", width=8, height=16)]
    found = tasks_of(lines, None, 5, 64, 32)
    assert [(task.name, task.seed, task.width) for task in found] == [("000001-5", 5, 64), ("000002-6", 6, 64),
                                                                      ("000004-9", 9, 64), ("000005-8", 8, 8)]
    assert [len(group) for group in groups_of(found, 4)] == [2, 1, 1]
    assert [len(group) for group in groups_of(tasks(2), 2)] == [2, 1, 2, 1]


def test_no_image_is_listed_twice_and_none_gets_the_negative_prompt_of_another():
    assert [task.seed for task in tasks(1, (1, 2, 1))] == [1, 2]
    lines = [PromptLine(1, "a"), PromptLine(2, "b"), PromptLine(3, "c", "dog"), PromptLine(4, "d", "dog")]
    assert [len(group) for group in groups_of(tasks_of(lines, None, 0, 64, 32), 4)] == [2, 2]


class FakePipeline:
    """A pipeline in place of the real one: a prompt `bad` cannot be encoded, `file` finds a wrong file."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def encode(self, prompts: list[str], *_: object) -> SimpleNamespace:
        self.asked.append(prompts)
        if "bad" in prompts:
            raise ValueError("no sentence")
        if "file" in prompts:
            raise CheckpointError("t5", "a LoRA", "a T5", "Choose another.")
        return SimpleNamespace(prompts=prompts)

    def __call__(self, given: SimpleNamespace, *_: object, **named: object) -> SimpleNamespace:
        count = len(given.prompts)
        return SimpleNamespace(pixels=torch.zeros(count, 3, 8, 8), reports=[SimpleNamespace(notices=["cut"])] * count,
                               facts=[ImageFacts("x")] * count)


def test_a_prompt_that_cannot_be_encoded_leaves_those_beside_it_and_a_wrong_file_leaves_none(monkeypatch):
    pipe = FakePipeline()
    monkeypatch.setattr("pixart.batch.generate.opened", lambda settings, device: pipe)
    results = generate_group(SETTINGS, None, tasks_of([PromptLine(line, text) for line, text in enumerate(
        ("a", "bad", "c"), 1)], None, 0, 8, 8))
    assert pipe.asked == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]
    assert [(one.png is None, one.problem, one.notice) for one in results] == [
        (False, "", "cut"), (True, "no sentence", ""), (False, "", "cut")]
    with pytest.raises(CheckpointError):
        generate_group(SETTINGS, None, tasks_of([PromptLine(1, "file"), PromptLine(2, "b")], None, 0, 8, 8))
    assert pipe.asked[4:] == [["file", "b"]]


def test_what_is_missing_of_a_group_is_generated_beside_the_same_others(tmp_path):
    """The last bits of an image may depend on how many are generated at once."""
    todo, asked = tasks(1, (1, 2, 3, 4)), []

    def noted(settings: GenerationSettings, device: str | None, group: list[Task]) -> list[GeneratedTask]:
        asked.append([task.seed for task in group])
        return cheap.generate(settings, device, group)
    run(tmp_path, todo)
    (tmp_path / "000001-3.png").unlink()
    assert run(tmp_path, todo, generate=noted).generated == 1 and asked == [[3, 4]]
    for line in (tmp_path / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["sha256"] == hashlib.sha256((tmp_path / row["file"]).read_bytes()).hexdigest()


CHANGES = {"os.rename", "os.remove", "os.mkdir"}


def run_killed(out: Path, todo: list[Task], shard: int | None, change: int, changes) -> None:
    """Kill this process right before it changes the disk the `change`-th time; counts the times in `changes`."""
    def watch(event: str, args: tuple) -> None:
        if event in CHANGES or event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
            changes.value += 1
            if changes.value == change:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    run(out, todo, shard)


@pytest.mark.parametrize("shard", [None, 5])
def test_killed_at_20_points_and_resumed_the_files_are_the_same(tmp_path, shard):
    todo, chance, context = tasks(4), random.Random(3), multiprocessing.get_context("fork")

    def changes_of(out: Path, change: int) -> int:
        counter = context.Value("i", 0, lock=False)
        child = context.Process(target=run_killed, args=(out, todo, shard, change, counter))
        child.start()
        child.join()
        assert child.exitcode == (-signal.SIGKILL if change else 0)
        return counter.value
    total = changes_of(tmp_path / "whole", 0)
    assert total > 2 * len(todo)                          # every image is written beside, then renamed
    for change in chance.sample(range(1, total + 1), 20):
        again = tmp_path / f"killed-{change}"
        changes_of(again, change)
        summary = run(again, todo, shard)
        assert summary.generated + summary.there == len(todo)
        assert contents(again) == contents(tmp_path / "whole")
    assert run(again, todo, shard).generated == 0


def test_shards_are_what_webdataset_reads(tmp_path):
    run(tmp_path, tasks(3), shard=4)
    names = []
    for path in sorted(tmp_path.glob("shard-*.tar")):
        with tarfile.open(path) as tar:
            names += tar.getnames()
            first = json.load(tar.extractfile(tar.getnames()[1]))
            assert first["prompt"].startswith("prompt") and first["width"] == 64
    stems = [name.partition(".")[0] for name in names]
    assert stems[::2] == stems[1::2] == [task.name for task in tasks(3)]
    assert not list((tmp_path / "unpacked").iterdir())


def test_a_failure_costs_itself_alone_and_is_tried_again(tmp_path):
    todo = [*tasks(2, (1, 2)), Task("bad-3", "bad", "", 3, 64, 32)]
    summary = run(tmp_path, todo)
    assert summary.generated == 4 and summary.failed == {"bad-3": "no image of that"}
    assert json.loads((tmp_path / "failures.jsonl").read_text()) == {"name": "bad-3", "problem": "no image of that"}
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 4
    assert run(tmp_path, todo).failed and "1 failed" in run(tmp_path, todo).line


def test_a_list_may_grow_and_nothing_else_may_change(tmp_path):
    run(tmp_path / "a", tasks(2))
    assert run(tmp_path / "a", tasks(3)).generated == 3
    with pytest.raises(ValueError, match="another list of 9 images"):
        run(tmp_path / "a", tasks(3, (1, 2)))
    with pytest.raises(ValueError, match="batch was 2, is 3"):
        run(tmp_path / "a", tasks(3), batch=3)
    run(tmp_path / "b", tasks(2), shard=2)
    with pytest.raises(ValueError, match="none to shards"):
        run(tmp_path / "b", tasks(3), shard=2)
    (tmp_path / "c").mkdir()
    for name in ("mine.png", ".t5.safetensors.12-34.part"):
        (tmp_path / "c" / name).touch()
    with pytest.raises(ValueError, match="something else"):
        run(tmp_path / "c", tasks(1))
    assert {path.name for path in (tmp_path / "c").iterdir()} == {".lock", "mine.png", ".t5.safetensors.12-34.part"}


def test_leftovers_of_this_program_are_removed_and_no_others(tmp_path):
    names = [".000001-1.png.12-34.part", ".batch.json.12-34.part", ".shard-000000.tar.12-34.part",
             ".t5.safetensors.part"]
    for name in names:
        (tmp_path / name).touch()
    run(tmp_path, tasks(1))
    assert [name for name in names if (tmp_path / name).exists()] == [".t5.safetensors.part"]


def test_other_weights_under_the_same_name_are_refused(tmp_path):
    model, todo = tmp_path / "model.safetensors", tasks(1)
    settings = GenerationSettings(model=str(model), loras=((str(tmp_path / "lora"), 1.0),))
    for name in ("model.safetensors", "lora"):
        (tmp_path / name).write_bytes(b"first")
    workers = partial(here, settings, None, generate=cheap.generate)
    run_batch(todo, settings, tmp_path / "out", workers)
    model.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"model file was model.safetensors \(\w+\), is model.safetensors"):
        run_batch(todo, settings, tmp_path / "out", workers)


def test_where_there_are_no_locks_it_is_said_and_works(tmp_path, monkeypatch, caplog):
    """It was taken for another process."""
    def unknown(descriptor: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")
    monkeypatch.setattr("pixart.files.claim._lock", unknown)
    assert run(tmp_path, tasks(1)).generated == 3 and "does not support locks (Function not implemented)" in caplog.text


def test_a_first_try_that_made_nothing_binds_nobody(tmp_path):
    assert run(tmp_path, [Task("bad-3", "bad", "", 3, 64, 32)]).failed
    assert run(tmp_path, tasks(1), batch=3).generated == 3


def test_two_runs_never_share_a_folder(tmp_path):
    with claimed(tmp_path), pytest.raises(BlockingIOError, match="another process"):
        run(tmp_path, tasks(1))


def fatal(tmp_path: Path) -> list[Task]:
    return [*tasks(2), Task("fatal-1", "fatal", str(tmp_path / "mark"), 1, 64, 32), *tasks_of(
        [PromptLine(9, "after")], (1, 2), 0, 64, 32)]


def test_a_process_that_dies_is_started_again(tmp_path):
    todo = fatal(tmp_path)
    run_batch(todo, SETTINGS, tmp_path / "out", partial(processes, SETTINGS, ("a", "b"), generate=cheap.dies_once), 2)
    run(tmp_path / "whole", todo)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    summary = run_batch(todo, SETTINGS, tmp_path / "twice", partial(processes, SETTINGS, ("a",),
                                                                    generate=cheap.always_dies), 2)
    assert list(summary.failed) == ["fatal-1"] and summary.generated == 8


def test_a_wrong_file_ends_the_run_with_its_own_message_from_another_process_too(tmp_path):
    """It was "the process that generated it died, twice" for every image: the error did not survive the way back."""
    for name, workers in (("there", partial(processes, SETTINGS, ("a",), generate=cheap.wrong_file)),
                          ("here", partial(here, SETTINGS, None, generate=cheap.wrong_file))):
        with pytest.raises(CheckpointError, match=r"looks like a LoRA. Expected a VAE. Choose .*vae.safetensors"):
            run_batch(tasks(2), SETTINGS, tmp_path / name, workers, 2)
    assert isinstance(pickle.loads(pickle.dumps(CheckpointNotFound("a", "nothing"))), FileNotFoundError)


def test_what_was_cut_of_a_prompt_is_said_once_for_all_its_seeds(tmp_path, caplog):
    run(tmp_path, tasks(2), generate=cheap.cut_prompt)
    assert [record.getMessage() for record in caplog.records] == ["000001-1: 1 word cut: end",
                                                                  "000002-1: 1 word cut: end"]


def test_a_worker_of_a_ray_cluster_is_killed_and_every_result_is_there_once(tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'pixart-delta[ray]'")
    root = Path(__file__).resolve().parents[2]
    try:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
                 logging_level=logging.ERROR,
                 runtime_env={"env_vars": {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}})
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("Ray gave up after the 30 s that it gives itself to start; this machine is too busy")
    try:
        todo = fatal(tmp_path)
        summary = run_batch(todo, SETTINGS, tmp_path / "out",
                            lambda groups: on_ray(SETTINGS, "auto", 2, groups, cheap.dies_once), 2)
    finally:
        ray.shutdown()
    assert summary.generated == len(todo) and not summary.failed and (tmp_path / "mark").exists()
    run(tmp_path / "whole", todo)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def command(folder: Path, out: str) -> list[str]:
    return ["pixart", "batch", str(folder / "prompts.txt"), "--out", str(folder / out), "--seeds", "1..2", "--steps",
            "1", "--size", "32x32", "--batch", "2", "--device", "cpu"]


@pytest.mark.parametrize("words, finding", [
    (["--devices", "cpu,cpu"], "--device names one device"), (["--ray"], "--device names one device"),
    (["--workers", "2"], "--workers is for --ray"), (["--lora-strength", "2"], "no effect without --lora"),
    (["--inner-ends"], "inner"),
])
def test_options_that_contradict_each_other_are_refused(tmp_path, monkeypatch, capsys, words, finding):
    (tmp_path / "prompts.txt").write_text("a")
    monkeypatch.setattr(sys, "argv", command(tmp_path, "out") + words)
    assert main() == 1 and finding in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words, finding", [
    (["--rule", "nonsense"], "unknown LCM timestep rule"), (["--steps", "99"], "99 LCM steps"),
    (["--lora", "{}/other.safetensors"], "no LoRA"), (["--t5", "{}/other.safetensors"], "other than a T5"),
    (["--device", "gpu"], "not a device"), (["--out", "{}/other.safetensors"], "this is a file"),
])
def test_what_would_fail_for_every_image_is_refused_at_once(tmp_path, monkeypatch, capsys, words, finding):
    (tmp_path / "prompts.txt").write_text("a\nb")
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    monkeypatch.setattr(sys, "argv", command(tmp_path, "out") + [word.format(tmp_path) for word in words])
    assert main() == 1 and finding in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_refused_beside_others(tmp_path, monkeypatch, capsys):
    (tmp_path / "prompts.txt").write_text("a")
    words = [word for word in command(tmp_path, "out") if word not in ("--device", "cpu")]
    monkeypatch.setattr(sys, "argv", [*words, "--devices", "cpu,gpu"])
    assert main() == 1 and "'gpu' is not a device" in capsys.readouterr().err


def test_a_negative_prompt_that_has_no_effect_is_refused_by_its_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "prompts.csv").write_text("prompt,negative\na,\nb,dog\n")
    monkeypatch.setattr(sys, "argv", ["pixart", "batch", str(tmp_path / "prompts.csv"), "--out", str(tmp_path / "out")])
    assert main() == 1 and "line 3 has a negative prompt, which has no effect" in capsys.readouterr().err


def test_negative_prompts_work_without_guidance_by_nag(tmp_path, monkeypatch):
    """Each line has its own, and a folder that an earlier version began, which knew no NAG, goes on."""
    (tmp_path / "prompts.csv").write_text("prompt,negative,seed\na red circle,,1\na red circle,a red circle,1\n"
                                          "a red circle,a blue star,1\n")
    words = ["pixart", "batch", str(tmp_path / "prompts.csv"), "--steps", "1", "--size", "64x64", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*words, "--nag", "5", "--out", str(tmp_path / "out")])
    assert main() == 0
    assert len({contents(tmp_path / "out")[f"{line:06}-1.png"] for line in (2, 3, 4)}) == 3
    (tmp_path / "prompts.csv").write_text("prompt,negative,seed\na red circle,,1\n")
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "old")])
    assert main() == 0
    record = tmp_path / "old" / "batch.json"
    before = json.loads(record.read_text())
    assert before["settings"].pop("nag") == 1.0
    record.write_text(json.dumps(before))
    assert main() == 0


def test_a_prompt_that_is_too_long_is_said_and_the_largest_seed_is_taken(tmp_path, monkeypatch, caplog):
    (tmp_path / "prompts.csv").write_text(f"prompt,seed\n{'a large red circle ' * 80},{2 ** 64 - 1}\n")
    words = command(tmp_path, "out")[4:]
    monkeypatch.setattr(sys, "argv", ["pixart", "batch", str(tmp_path / "prompts.csv"), "--out", str(tmp_path / "out"),
                                      *words[words.index("--steps"):]])
    assert main() == 0 and (tmp_path / "out" / f"000002-{2 ** 64 - 1}.png").is_file()
    assert any("000002-" in record.getMessage() and "words cut" in record.getMessage() for record in caplog.records)


def test_a_long_prompt_is_read_whole_where_that_is_asked_for_as_by_generate(tmp_path, monkeypatch, capsys, caplog):
    text = ("a large red circle on the left of a small blue star " * 40).strip()
    (tmp_path / "prompts.txt").write_text(text)
    sampling = ["--steps", "1", "--size", "32x32", "--device", "cpu", "--long", "whole"]
    monkeypatch.setattr(sys, "argv", ["pixart", "batch", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out"),
                                      "--seed", "3", *sampling])
    assert main() == 0 and not any("cut" in record.getMessage() for record in caplog.records)
    monkeypatch.setattr(sys, "argv", ["pixart", "generate", text, "--out", str(tmp_path / "x.png"), "--seed", "3",
                                      *sampling])
    assert main() == 0
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "out" / "000001-3.png").read_bytes()


def run_command(words: list[str]) -> None:
    sys.argv = words
    sys.exit(main())


def test_images_of_pixart_mini_are_the_same_after_a_kill(tmp_path, monkeypatch, capsys):
    prompts = ["a large red circle", "a small blue square", "a large green star"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    child = multiprocessing.get_context("fork").Process(target=run_command, args=(command(tmp_path, "killed"),))
    child.start()
    until = time.monotonic() + 300
    while not list((tmp_path / "killed").glob("*.png")) and child.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    child.kill()
    child.join()
    for out in ("killed", "whole"):
        monkeypatch.setattr(sys, "argv", command(tmp_path, out))
        assert main() == 0
    assert "6 images in" in capsys.readouterr().out
    files = contents(tmp_path / "whole")
    assert len(files) == 8 and contents(tmp_path / "killed") == files
    assert len({data for name, data in files.items() if name.endswith(".png")}) == 6
