"""The transfer plot's command: goes on where it stopped, survives torn lines and broken trainings, draws."""
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
RATES = ["-9", "-7"]


@pytest.fixture(scope="module")
def transfer() -> ModuleType:
    pytest.importorskip("matplotlib", reason="matplotlib draws the plot")
    spec = importlib.util.spec_from_file_location("mup_transfer", ROOT / "benchmarks" / "mup_transfer.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    generator, data = torch.Generator().manual_seed(0), tmp_path / "data"
    data.mkdir()
    save_file({"latents": torch.randn(16, 4, 8, 8, generator=generator).half(),
               "features": torch.randn(16, 6, 8, generator=generator).half(),
               "mask": torch.ones(16, 6, dtype=torch.uint8), "size": torch.full((16, 2), 64.0),
               "aspect": torch.ones(16)}, data / "bucket-8x8-00000.safetensors")
    save_file({"features": torch.randn(1, 8, generator=generator).half(), "mask": torch.ones(1, dtype=torch.uint8)},
              data / "null.safetensors")
    return ["--data", str(data), "--out", str(tmp_path / "plot.png"), "--widths", "24", "48", "--head", "24",
            "--depth", "1", "--rates", *RATES, "--steps", "3", "--warmup", "1", "--batch", "4", "--judged", "8"]


def lines(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "plot.jsonl").read_text().splitlines() if line.endswith("}")]


def test_every_point_is_trained_once_and_drawn(transfer: ModuleType, command: list[str], tmp_path: Path,
                                               capsys: pytest.CaptureFixture) -> None:
    transfer.main(command)
    runs = [tuple(line["run"].values()) for line in lines(tmp_path)]
    assert runs == [("standard", 24, -9), ("standard", 24, -7), ("standard", 48, -9), ("standard", 48, -7),
                    ("muP", 48, -9), ("muP", 48, -7)]
    losses = [line["loss"] for line in lines(tmp_path)]
    assert len(set(losses)) == 6 and all(math.isfinite(loss) for loss in losses)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "| muP | 24 | " + " | ".join(f"{loss:.4f}" for loss in losses[:2]) in capsys.readouterr().out


def test_finished_runs_are_not_repeated_and_a_torn_line_is(transfer: ModuleType, command: list[str], tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    transfer.main(command)
    path, first = tmp_path / "plot.jsonl", lines(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    transfer.main(command)
    assert [line["loss"] for line in lines(tmp_path)] == [line["loss"] for line in first]
    monkeypatch.setattr(transfer, "train", lambda *_: pytest.fail("trained again"))
    transfer.main(command)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        transfer.main([*command, "--steps", "4"])


def test_both_parametrisations_agree_at_the_base_width(transfer: ModuleType, command: list[str]) -> None:
    args = transfer.arguments(command)
    setting = transfer.Setting(3, 4, 1, 1, 24, 24, (0.9, 0.99), 0, "no", 8)
    data = transfer.PreparedFolder(args.data)
    one, other = (transfer.train(transfer.Run(name, 24, -7.0), setting, data, "cpu") for name in ("standard", "muP"))
    assert one["loss"] == other["loss"] and one["train_loss"] == other["train_loss"]


def test_a_training_that_breaks_down_is_recorded_and_drawn(transfer: ModuleType, command: list[str], tmp_path: Path,
                                                           capsys: pytest.CaptureFixture) -> None:
    at = command.index("--rates") + 1
    transfer.main([*command[:at], "90", *command[at + 1:]])
    assert [line["loss"] is None for line in lines(tmp_path)] == [False, True] * 3
    assert "| inf | 2^-7 |" in capsys.readouterr().out
