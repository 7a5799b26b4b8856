"""The training node, as far as it needs no host."""
import importlib.util
import os
from pathlib import Path

import pytest


@pytest.fixture
def train(extension) -> type:
    return extension.NODE_CLASS_MAPPINGS["PixArtTrain"]


def test_a_change_anywhere_below_the_folder_is_noticed(train, tmp_path):
    """Reading looks into folders in the folder too."""
    deep = tmp_path / "cats" / "grey"
    deep.mkdir(parents=True)
    (deep / "one.png").write_bytes(b"1")
    seen = [train.IS_CHANGED(folder=str(tmp_path))]
    (deep / "one.txt").write_text("a cat")
    seen.append(train.IS_CHANGED(folder=str(tmp_path)))
    stat = (deep / "one.txt").stat()
    (deep / "one.txt").write_text("a grey cat")
    os.utime(deep / "one.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    seen.append(train.IS_CHANGED(folder=str(tmp_path)))
    assert len(set(seen)) == 3 and train.IS_CHANGED(folder=str(tmp_path)) == seen[-1]
    (deep / "gone.png").symlink_to(tmp_path / "nowhere")
    assert train.IS_CHANGED(folder=str(tmp_path)) == seen[-1]
    assert train.IS_CHANGED(folder=None) == train.IS_CHANGED(folder=str(Path("/nowhere"))) == ""


def test_missing_packages_are_said_before_anything_runs(train, monkeypatch):
    real = importlib.util.find_spec
    lacking = ("peft", "accelerate")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in lacking else real(name))
    assert train.VALIDATE_INPUTS("lora") == "training needs: pip install accelerate peft"
    assert train.VALIDATE_INPUTS("controlnet") == "training needs: pip install accelerate"
    assert train.VALIDATE_INPUTS() is True           # linked: not known yet
    assert "use lora, lcm-lora, controlnet" in train.VALIDATE_INPUTS("dream")
