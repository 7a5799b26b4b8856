"""Captions without images become a folder that TDM trains on, and that other trainers refuse."""
from pathlib import Path

import pytest
import torch
from prepare.images_at_hand import collection, mini_job, stored
from safetensors.torch import save_file

from pixart.mini import SHIPPED
from pixart.prepare.items import digest_of
from pixart.prepare.run import prepare
from pixart.prepare.shards import Shard, shard_paths
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


def test_a_caption_is_known_by_its_words_wherever_it_stands(tmp_path):
    path, out = captions(tmp_path), tmp_path / "out"
    prepare(mini_job(path, out, vae=None))
    path.write_text("a star\n" + LINES.replace("two blue", "three blue") + "A red circle\n")
    report = prepare(mini_job(path, out, vae=None))
    assert (report.examples, report.added) == (6, 3), "new in front, changed, and one a second time"
    shards = [Shard(file) for file in shard_paths(out)]
    assert sorted(mark for shard in shards for mark in shard.marks) == sorted(map(digest_of, (
        "a red circle", "two blue squares", "a red circle left of a green star", "a star", "three blue squares",
        "a red circle")))
    assert prepare(mini_job(path, out, vae=None)).added == 0


def test_lines_prepared_by_an_older_version_are_not_prepared_again(tmp_path):
    path, out = captions(tmp_path), tmp_path / "out"
    prepare(mini_job(path, out, vae=None))
    file, = shard_paths(out)
    shard = Shard(file)
    tensors = {name: value.clone() for name, value in shard.tensors.items()}
    metadata = {key: value for key, value in shard.metadata.items() if key != "marks"}
    save_file(tensors, file, metadata)
    path.write_text(LINES + "a star\n")
    assert prepare(mini_job(path, out, vae=None)).added == 1


def test_what_needs_images_refuses_captions(tmp_path):
    prepare(mini_job(captions(tmp_path), tmp_path / "out", vae=None))
    from pixart.checkpoint import read_config
    with pytest.raises(ValueError, match="only captions are prepared in"):
        check_fit(read_config(SHIPPED.teacher), PreparedFolder(tmp_path / "out"))
    check_fit(read_config(SHIPPED.teacher), PreparedFolder(tmp_path / "out"), images=False)


def test_wrong_sources_are_named(tmp_path):
    path = captions(tmp_path, "\n \n")
    with pytest.raises(ValueError, match="hold no caption"):
        prepare(mini_job(path, tmp_path / "out", vae=None))
    images = collection(tmp_path / "in", 1)
    with pytest.raises(ValueError, match="cannot be prepared together with images"):
        prepare(mini_job(path, tmp_path / "out2", sources=(path, images)))
    with pytest.raises(ValueError, match="no edge maps"):
        prepare(mini_job(captions(tmp_path), tmp_path / "out3", edges="canny"))
    with pytest.raises(ValueError, match="name a T5 encoder"):
        prepare(mini_job(captions(tmp_path), tmp_path / "out4", vae=None, t5=None))
