"""Captions without pictures become a folder that TDM trains on, and that other trainers refuse."""
from pathlib import Path

import pytest
import torch
from prepare.pictures_at_hand import collection, mini_job, stored

from pixart.mini import SHIPPED
from pixart.prepare.run import prepare
from pixart.text.t5 import T5Encoder
from pixart.train.data import PreparedFolder
from pixart.train.draws import generator_for
from pixart.train.starting import check_fit

LINES = "A red circle\n\n  two blue squares \na red circle left of a green star\n"


def captions(folder: Path, text: str = LINES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "captions.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_line_is_kept_as_its_features(tmp_path):
    report = prepare(mini_job(captions(tmp_path), tmp_path / "out", vae=None))
    assert (report.examples, report.added) == (3, 3)
    rows = stored(tmp_path / "out")
    assert list(rows) == ["captions.txt, line 1", "captions.txt, line 3", "captions.txt, line 4"]
    row = rows["captions.txt, line 3"]
    assert row["latents"].shape == (0, 16, 16) and row["size"].tolist() == [128, 128] and row["aspect"] == 1
    want = T5Encoder(SHIPPED.t5, bits=16).encode(["two blue squares"], 40)
    torch.testing.assert_close(row["features"][row["mask"].bool()].float(), want.context[0][want.mask[0]].float(),
                               rtol=2e-3, atol=2e-3)
    data = PreparedFolder(tmp_path / "out")
    batch = data.batch(generator_for(0, 0), 4)
    assert data.captions_only and batch.latents.shape == (4, 0, 16, 16) and batch.mask.any(1).all()


def test_new_lines_are_added(tmp_path):
    path = captions(tmp_path)
    prepare(mini_job(path, tmp_path / "out", vae=None))
    path.write_text(LINES + "a star\n")
    report = prepare(mini_job(path, tmp_path / "out", vae=None))
    assert (report.examples, report.added) == (4, 1)


def test_what_needs_pictures_refuses_captions(tmp_path):
    prepare(mini_job(captions(tmp_path), tmp_path / "out", vae=None))
    from pixart.checkpoint import read_config
    with pytest.raises(ValueError, match="only captions are prepared in"):
        check_fit(read_config(SHIPPED.teacher), PreparedFolder(tmp_path / "out"))
    check_fit(read_config(SHIPPED.teacher), PreparedFolder(tmp_path / "out"), pictures=False)


def test_wrong_sources_are_named(tmp_path):
    path = captions(tmp_path, "\n \n")
    with pytest.raises(ValueError, match="hold no caption"):
        prepare(mini_job(path, tmp_path / "out", vae=None))
    pictures = collection(tmp_path / "in", 1)
    with pytest.raises(ValueError, match="cannot be prepared together with pictures"):
        prepare(mini_job(path, tmp_path / "out2", sources=(path, pictures)))
    with pytest.raises(ValueError, match="no edge maps"):
        prepare(mini_job(captions(tmp_path), tmp_path / "out3", edges="canny"))
    with pytest.raises(ValueError, match="name a T5 encoder"):
        prepare(mini_job(captions(tmp_path), tmp_path / "out4", vae=None, t5=None))
