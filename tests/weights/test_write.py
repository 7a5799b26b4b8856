"""Weights are written in one place: whole or not at all, and a full disk is an error that names the file."""
import re
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from pixart.checkpoint import save_checkpoint
from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer
from pixart.text.encoded import Encoded, save_embeddings
from pixart.text.tokens import PromptReport
from pixart.weights import safetensors_file
from pixart.weights.safetensors_file import write_tensors

ROOT = Path(__file__).parents[2]
CONFIG = PixArtConfig(depth=1, hidden=48, heads=4, caption_width=8, caption_tokens=4)
REPORT = PromptReport("a fox", "a fox", 4, 4, 4)


def model_into(path: Path) -> None:
    save_checkpoint(path, PixArtTransformer(CONFIG))


def features_into(path: Path) -> None:
    save_embeddings(path, Encoded(torch.zeros(1, 4, 8), torch.ones(1, 4, dtype=torch.bool), [REPORT]))


@pytest.mark.parametrize("write", [model_into, features_into])
def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch, write):
    def full(tensors: dict, beside: Path, header: dict | None) -> None:
        beside.write_bytes(b"a part of it")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(safetensors_file, "save_file", full)
    with pytest.raises(OSError, match="a.safetensors: I/O error: No space left.*Free disk space"):
        write(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_views_and_gradients_are_written_as_plain_numbers(tmp_path):
    tensor = torch.arange(6.0, requires_grad=True).view(2, 3).T
    write_tensors(tmp_path / "a.safetensors", {"a": tensor}, {"told": "this"})
    found, header = safetensors_file.map_safetensors(tmp_path / "a.safetensors", "it")
    assert torch.equal(found["a"], tensor) and header == {"told": "this"}


def test_nothing_else_writes_safetensors():
    writers = [path for path in (ROOT / "pixart").rglob("*.py")
               if re.search(r"\bsave_file\(", path.read_text(encoding="utf-8"))]
    assert [path.name for path in writers] == ["safetensors_file.py"]
