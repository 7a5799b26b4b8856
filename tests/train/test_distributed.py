"""Several processes train like one with their batches together: accelerate's launcher, on the CPU with gloo."""
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train import training_data
from train.training_data import SHORT, TINY, environment, fresh, write_data

from pixart.checkpoint import read_config, save_checkpoint

pytestmark = pytest.mark.skipif(not torch.distributed.is_available() or sys.platform == "win32",
                                reason="needs torch.distributed with gloo")
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "PixArtBlock", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}


def launch(*arguments: object, program: Sequence[str] = (training_data.__file__,), **more: str) -> str:
    """Run a program in two processes through `accelerate launch`, which calls these --multi_gpu; all it said."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
               "--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no",
               *program, *map(str, arguments)]
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def losses(folder: Path) -> list[float]:
    return [float.fromhex(line.split()[1]) for line in (folder / "losses").read_text().splitlines()]


def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(tmp_path):
    data = write_data(tmp_path / "data")
    config = replace(SHORT, log_every=1)
    training_data.gradients(tmp_path / "one", data, config)
    training_data.noted(tmp_path / "one", data, config)
    log = launch(tmp_path / "two", data, "--batch", SHORT.batch // 2, "--gradients")
    assert log.count(f"step {SHORT.steps} of {SHORT.steps}") == 1, "only the main process reports"
    one, two = (torch.load(tmp_path / name / "gradients.pt") for name in ("one", "two"))
    largest = max(value.abs().max() for value in one.values())
    assert largest > 0.01
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5 * largest.item(), msg=name)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_sharded_training_equals_one_process_and_goes_on(tmp_path):
    """FSDP, stopped after 3 steps and resumed, against one process that ran through."""
    data = write_data(tmp_path / "data")
    training_data.noted(tmp_path / "one", data, replace(SHORT, log_every=1))
    for steps in (3, SHORT.steps):
        launch(tmp_path / "two", data, "--batch", SHORT.batch // 2, "--fsdp", "--steps", steps, **FSDP)
    assert torch.load(tmp_path / "two" / "state.pt")["settings"]["fsdp"] is True
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = (torch.load(tmp_path / name / "average.pt") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_the_command_line_works_in_two_processes(tmp_path):
    write_data(tmp_path / "data")
    save_checkpoint(tmp_path / "base.safetensors", fresh())
    arguments = ("--model.base", tmp_path / "base.safetensors", "--data.folder", tmp_path / "data", "--output.folder",
                 tmp_path / "run", "--output.file", tmp_path / "out.safetensors", "--train.steps", 2,
                 "--train.batch", 2, "--train.learning_rate", 1e-4)
    module = ("-m", "pixart", "train", "lcm")
    assert "2 x 2 processes x 1 accumulated = 4 images" in launch(*arguments, "--dry-run", program=module)
    assert not (tmp_path / "run").exists()
    said = launch(*arguments, program=module)
    assert said.count("step 2 of 2") == said.count(str(tmp_path / "out.safetensors")) == 1
    assert read_config(tmp_path / "out.safetensors") == TINY
