"""The recipe builds every weight from nothing, shares out its time, goes on where it stopped, and refuses to mix."""
import argparse
import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pixart.checkpoint import load, read_control
from pixart.checkpoint.lora.read import read_lora
from pixart.mini import SHIPPED, Files
from pixart.mini.autoencoder import AutoencoderConfig
from pixart.mini.clock import seconds_a_step
from pixart.mini.recipe import MINI_CONFIG, STAGES, Builder, Clock, MiniRecipe, Small, build_mini, for_gpu, planned
from pixart.sampling.preset import preset_from_header
from pixart.train.data import Batch
from pixart.train.loop_config import LoopConfig

SHORT = LoopConfig(steps=2, batch=4, learning_rate=1e-4, warmup=1, save_every=1, log_every=1, threads=1)
TINY = MiniRecipe(scenes=60, crowds=20, autoencoder=Small(2, 4), text=Small(4, 4), judge=Small(2, 4),
                  plan=AutoencoderConfig((4, 4, 4, 4)), teacher=SHORT, student=SHORT, control=SHORT,
                  tdm=SHORT, dmd=SHORT, pairs=8)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Files]:
    """Everything but the judges from nothing, in as few steps as there can be."""
    folder = tmp_path_factory.mktemp("build")
    files = Files(folder / "weights")
    files.root.mkdir()
    for source, target in ((SHIPPED.judge, files.judge), (SHIPPED.judge_a, files.judge_a)):
        shutil.copy(source, target)
    build_mini(folder / "work", files, TINY)
    return folder / "work", files


def test_everything_is_built_from_nothing(built: tuple[Path, Files]) -> None:
    _, files = built
    assert load(files.student).config == load(files.teacher).config == MINI_CONFIG
    assert read_control(files.control).blocks == 4
    for path, sampler in ((files.tdm, "tdm"), (files.dmd, "dmd"), (files.student, "lcm"), (files.teacher, "dpm")):
        with safe_open(path, "pt") as file:
            assert preset_from_header(file.metadata(), path).sampler == sampler
    assert {part.rank for part in read_lora(files.tdm).parts} == {16}
    rows = load(files.teacher, dtype=torch.float32).y_embedder.y_embedding
    assert rows.any() and torch.equal(rows, rows[:1].expand_as(rows)), "the null caption"


def test_a_finished_build_has_nothing_left_to_do(built: tuple[Path, Files], caplog: pytest.LogCaptureFixture) -> None:
    work, files = built
    made = [path for path in files.root.rglob("*") if path.is_file()]
    stamps = [path.stat().st_mtime_ns for path in made]
    with caplog.at_level(logging.INFO):
        build_mini(work, files, TINY)
    assert stamps == [path.stat().st_mtime_ns for path in made]
    assert Builder(work, files, TINY).missing() == () and "----" not in caplog.text


def test_a_stage_that_is_lost_is_all_that_is_built_again(built: tuple[Path, Files]) -> None:
    work, files = built
    shutil.copy(files.control, files.control.with_suffix(".kept"))
    files.control.unlink()
    assert Builder(work, files, TINY).missing() == ("control",)
    files.control.with_suffix(".kept").rename(files.control)


def test_another_recipe_in_the_work_folder_is_refused(built: tuple[Path, Files]) -> None:
    work, files = built
    with pytest.raises(ValueError, match="other recipe in the work folder: crowded, seed changed"):
        Builder(work, files, replace(TINY, seed=1, crowded=0.5))


def test_a_work_folder_from_before_an_option_existed_had_its_default(built: tuple[Path, Files]) -> None:
    work, files = built
    path = work / "recipe.json"
    written = path.read_text()
    path.write_text(json.dumps({name: value for name, value in json.loads(written).items() if name != "two"}))
    Builder(work, files, TINY)
    with pytest.raises(ValueError, match="two changed"):
        Builder(work, files, replace(TINY, two=0.1))
    path.write_text(written)


def test_the_work_folder_of_an_older_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    with pytest.raises(ValueError, match="no recipe.json"):
        Builder(tmp_path, Files(tmp_path / "weights"), TINY)


def test_an_unfinished_autoencoder_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    files = Files(tmp_path / "weights")
    builder = Builder(tmp_path / "work", files, TINY)
    files.vae.parent.mkdir(parents=True)
    shutil.copy(SHIPPED.vae, files.vae)
    assert "autoencoder" not in builder.missing()
    builder.state.mkdir()
    (builder.state / "autoencoder.pt").touch()
    assert "autoencoder" in builder.missing()


def test_time_is_shared_out_over_what_is_to_come() -> None:
    clock = Clock(10.0, reserve=0.0)
    everything = clock.seconds("teacher", ("teacher", "student", "control"))
    assert everything == pytest.approx(360, abs=2)
    assert clock.seconds("control", ("control",)) == pytest.approx(600, abs=2)
    assert Clock(None).seconds("teacher", ("teacher",)) is None
    assert Clock(0.0).seconds("teacher", ("teacher",)) == 5.0, "something is always trained"
    for minutes in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match=f"minutes are {minutes}"):
            Clock(minutes)


def test_a_plan_once_made_is_kept(tmp_path: Path) -> None:
    """A run that goes on must not find another length, or its learning rates would not fit."""
    config = replace(SHORT, steps=100, cooldown=40, ema=0.999)
    (tmp_path / "length.json").write_text(json.dumps({"steps": 50}))
    found = planned(tmp_path / "length.json", config, 1e9, torch.nn.Linear(1, 1), lambda *_: torch.zeros(()), None)
    assert (found.steps, found.cooldown) == (50, 20) and found.ema == pytest.approx(1 - 12 / 50)


def test_the_speed_is_that_of_the_threads_it_will_train_with() -> None:
    seen = []

    def objective(model: torch.nn.Linear, *_: object) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return model(torch.ones(1, 1)).square().sum()

    class NoData:
        def batch(self, generator: torch.Generator, size: int) -> Batch:
            return Batch(*(torch.zeros(size, 1) for _ in range(5)))
    model = torch.nn.Linear(1, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert seconds_a_step(model, objective, NoData(), replace(SHORT, threads=3)) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())     # a copy was moved
    assert set(seen) == {3} and torch.get_num_threads() != 3


def test_the_recipe_for_a_gpu_differs_in_size_alone() -> None:
    """What is learned, and how it is weighed, is the same."""
    here, there = MiniRecipe(), for_gpu()
    same = ("student_method", "tdm_method", "dmd_method", "timesteps", "weighting", "weighting_cap", "plan",
            "control_blocks", "crowded", "two")
    assert all(getattr(here, name) == getattr(there, name) for name in same)
    assert there.teacher.batch > here.teacher.batch and there.teacher.random_on_device


def test_unknown_stages_are_refused() -> None:
    from pixart.mini.command import add_parser, run
    main = argparse.ArgumentParser()
    add_parser(main.add_subparsers())
    args = main.parse_args(["mini", "build", "--work", "w", "--weights", "v", "--stages", "teacher,judges"])
    with pytest.raises(ValueError, match=f"judges is unknown; use {', '.join(STAGES)}"):
        run(args)
