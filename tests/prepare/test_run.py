"""Preparing: right values in the right buckets, nothing twice, nothing lost, nothing silent."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from prepare.images_at_hand import collection, image, mini_job, stored, tiny_vae
from safetensors.torch import load_file, save_file

from pixart.mini import SHIPPED
from pixart.mini.autoencoder import load_autoencoder
from pixart.prepare import command
from pixart.prepare.families import FAMILIES
from pixart.prepare.images import load_image
from pixart.prepare.items import Place
from pixart.prepare.run import prepare
from pixart.prepare.state import settle
from pixart.text.t5 import T5Encoder
from pixart.train.data import PreparedFolder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight good images and some that are not."""
    folder = collection(tmp_path_factory.mktemp("images"), 8)
    data = (folder / "000.png").read_bytes()
    for name, content in (("cut.png", data[:len(data) // 2]), ("empty.jpg", b""), ("text.jpg", b"no image"),
                          ("nameless.png", data), ("silent.png", data)):
        (folder / name).write_bytes(content)
        if name != "nameless.png":
            Path(folder, name).with_suffix(".txt").write_text("" if name == "silent.png" else "a caption")
    image(20, 90, 0).save(folder / "long.png")
    (folder / "long.txt").write_text("a long image")
    return folder


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    report = prepare(mini_job(source, out, shard=2, edges="soft"))
    assert (report.examples, report.added, len(report.skipped), report.cut) == (8, 8, 6, 0)
    return out


def test_every_image_lies_in_its_bucket_with_its_own_latents_and_caption(source, prepared):
    found = stored(prepared)
    assert set(found) == {path.relative_to(source).as_posix() for path in source.rglob("0*.png")}
    vae, t5 = load_autoencoder(SHIPPED.vae), T5Encoder(SHIPPED.t5, bits=16)
    sides = {(64, 64): (16, 16), (64, 96): (12, 20), (100, 60): (20, 12), (72, 64): (16, 16), (96, 64): (20, 12)}
    for key, row in found.items():
        path = source / key
        height, width = Image.open(path).size[::-1]
        h, w = sides[height, width]
        assert row["sides"].tolist() == [h, w] and row["size"].tolist() == [8 * h, 8 * w]
        assert row["aspect"].item() == pytest.approx(h / w)
        pixels = load_image(Place(path), (8 * h, 8 * w))[None] / 255
        with torch.no_grad():
            assert (vae.encode(pixels)[0] - row["latents"].float()).abs().max() < 5e-3
        encoded = t5.encode([path.with_suffix(".txt").read_text()], 40, clean=True)
        kept = row["mask"].bool()
        assert kept.sum() == len(encoded.mask[0]) and not row["features"][~kept].any()
        assert torch.equal(row["features"][kept], encoded.context[0].half())


def test_hints_are_latents_of_edge_maps_from_minus_one_to_one(source, prepared):
    from pixart.control.edges import soft_edges
    found, vae = stored(prepared), load_autoencoder(SHIPPED.vae)
    row = found["000.png"]
    maps = soft_edges(load_image(Place(source / "000.png"), (128, 128))[None] / 255)
    assert maps.max() > 0.05
    with torch.no_grad():               # this autoencoder takes 0..1, which diffusers gives as -1..1
        expected = vae.encode(maps.expand(-1, 3, -1, -1))[0]
    assert (expected - row["hints"].float()).abs().max() < 5e-3
    assert "hints_spread" not in row and "spread" not in row


def test_hed_maps_are_those_of_the_network_at_the_size_of_the_bucket(tmp_path):
    from pixart.control.hed import HED, hed_edges, load_hed
    source = collection(tmp_path / "in", 1, ((100, 60),))
    torch.manual_seed(0)
    network = HED()
    torch.save({name: tensor.half() for name, tensor in network.state_dict().items()}, tmp_path / "ControlNetHED.pth")
    prepare(mini_job(source, tmp_path / "out", edges="hed", hed=tmp_path / "ControlNetHED.pth"))
    row = stored(tmp_path / "out")["000.png"]
    image = load_image(Place(source / "000.png"), (160, 96))[None] / 255
    maps = hed_edges(load_hed(tmp_path / "ControlNetHED.pth"), image).expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = load_autoencoder(SHIPPED.vae).encode(maps)[0]
    assert row["hints"].shape == (4, 20, 12) and (expected - row["hints"].float()).abs().max() < 5e-3
    assert PreparedFolder(tmp_path / "out", need_hints=True).edges == "hed"
    with pytest.raises(ValueError, match="begun with HED network ControlNetHED.pth"):
        torch.save({name: tensor.half() + 1 for name, tensor in network.state_dict().items()}, tmp_path / "other.pth")
        prepare(mini_job(source, tmp_path / "out", edges="hed", hed=tmp_path / "other.pth"))


def test_the_trainers_read_it(prepared):
    data = PreparedFolder(prepared, need_hints=True)
    assert len(data) == 8 and data.caption_tokens == 256 and data.edges == "soft" and data.latent_space == "sd"
    batch = data.batch(torch.Generator().manual_seed(0), 3)
    longest = int(batch.mask.sum(1).max())
    assert batch.context.shape == (3, -(-longest // 8) * 8, 128) and batch.hint.shape == batch.latents.shape
    assert data.null_context.shape == (1, 128) and data.null_mask.tolist() == [True]
    expected = T5Encoder(SHIPPED.t5, bits=16).encode([""], 40).context[0]
    assert torch.equal(data.null_context, expected.half().float())


def test_what_cannot_be_used_is_listed_with_its_reason(prepared):
    found = [json.loads(line) for line in (prepared / "skipped.jsonl").read_text().splitlines()]
    reasons = {entry["key"]: entry["reason"] for entry in found}
    expected = {"cut.png": "damaged or cut off", "empty.jpg": "it is empty", "text.jpg": "not an image",
                "nameless.png": "nameless.txt is not there", "silent.png": "its caption is empty",
                "long.png": "90 x 20, more than 4 : 1"}
    assert reasons.keys() == expected.keys()
    assert all(part in reasons[key] for key, part in expected.items())


def test_a_second_run_adds_nothing_and_loads_nothing(source, prepared, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in prepared.glob("*.safetensors")}

    def refuse(*_: object) -> None:
        raise AssertionError("nothing was to be encoded")

    monkeypatch.setattr("pixart.prepare.latents.LatentEncoder.__init__", refuse)
    monkeypatch.setattr("pixart.text.t5.T5Encoder.__init__", refuse)
    report = prepare(mini_job(source, prepared, shard=2, edges="soft"))
    assert (report.examples, report.added, len(report.skipped)) == (8, 0, 6)
    assert before == {path: path.stat().st_mtime_ns for path in prepared.glob("*.safetensors")}
    assert not (prepared / ".captions").exists()


def test_files_of_others_in_the_output_folder_stay(tmp_path):
    """A data set is often laid out as images/ and text/, and prepared where it lies."""
    source = collection(tmp_path / "images", 1)
    for folder in ("text", ".captions"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("my only copy")
    assert prepare(mini_job(source, tmp_path)).added == 1
    assert {path.name for folder in ("text", ".captions") for path in (tmp_path / folder).iterdir()} == {"a.txt"}


def test_a_first_try_with_wrong_files_binds_nobody_and_is_refused_before_any_work(tmp_path):
    source, out = collection(tmp_path / "in", 2), tmp_path / "out"
    job = mini_job(source, out)
    for wrong in ({"vae": SHIPPED.t5 / "model.safetensors"}, {"t5": SHIPPED.vae}):
        with pytest.raises(ValueError, match="Expected"):
            prepare(replace(job, **wrong))
        assert not (out / ".captions").exists()
    out.mkdir()
    settle(out, {"T5": "another (0)"}, begun=False)
    assert prepare(job).added == 2
    with pytest.raises(ValueError, match="was begun with T5 t5"):
        settle(out, {"T5": "another (0)"}, begun=True)


def test_new_and_mended_images_are_added(tmp_path):
    source = collection(tmp_path / "in", 2)
    whole = (source / "000.png").read_bytes()
    (source / "000.png").write_bytes(whole[:200])
    assert prepare(mini_job(source, tmp_path / "out")).added == 1
    (source / "000.png").write_bytes(whole)
    collection(source, 3)
    report = prepare(mini_job(source, tmp_path / "out"))
    assert (report.added, report.skipped) == (2, [])
    assert set(stored(tmp_path / "out")) == {"000.png", "001.png", "more/002.png"}


def test_an_image_or_caption_that_changed_is_told_and_not_lost_unsaid(tmp_path):
    source, out = collection(tmp_path / "in", 2), tmp_path / "out"
    prepare(mini_job(source, out))
    (source / "000.txt").write_text("a green ring")
    other = collection(tmp_path / "other", 3)               # other images under the same names
    image(90, 64, 9).save(other / "001.png")
    for sources, named in (((source,), {"000.png"}), ((other,), {"001.png"}), ((source, other), {"000.png"})):
        report = prepare(mini_job(source, out, sources=sources))
        assert {one.key for one in report.skipped} == named
        assert all("prepared before, with another caption or file" in one.reason for one in report.skipped)
    assert {"001.png#2", "more/002.png"} <= set(stored(out)), "named together they stay apart"
    assert prepare(mini_job(source, tmp_path / "new")).skipped == []


class Stop(KeyboardInterrupt):
    pass


def test_an_interruption_keeps_what_is_ready(tmp_path):
    source = collection(tmp_path / "in", 6, ((64, 64),))
    job = mini_job(source, tmp_path / "out", shard=6)

    def stop_at(stage: str, count: int):
        def progress(now: str, done: int, total: int) -> None:
            if (now, done) == (stage, count):
                raise Stop
        return progress

    with pytest.raises(Stop):
        prepare(job, stop_at("captions", 3))
    assert len(list((tmp_path / "out" / ".captions").glob("*.safetensors"))) == 1
    with pytest.raises(Stop):
        prepare(job, stop_at("images", 4))
    assert len(stored(tmp_path / "out")) == 4
    assert prepare(job).added == 2
    whole = prepare(replace(job, out=tmp_path / "whole"))
    ours, theirs = stored(tmp_path / "out"), stored(tmp_path / "whole")
    assert whole.examples == 6 and ours.keys() == theirs.keys()
    for key, row in ours.items():
        assert torch.allclose(row["latents"].float(), theirs[key]["latents"].float(), atol=2e-3)
        length = row["mask"].sum()
        assert torch.equal(row["features"][:length], theirs[key]["features"][:length])


def test_a_posterior_is_kept_with_its_spread_in_the_scale_of_the_family(tmp_path):
    source = collection(tmp_path / "in", 2, ((40, 40),))
    for family, scale in (("alpha", 0.18215), ("sigma", 0.13025)):
        vae = tiny_vae(tmp_path / f"vae-{family}", scale)
        out = tmp_path / family
        prepare(mini_job(source, out, family=FAMILIES[family], resolution=256, vae=vae, edges="canny"))
        row = stored(out)["000.png"]
        from diffusers import AutoencoderKL
        pixels = load_image(Place(source / "000.png"), (256, 256))[None] / 127.5 - 1
        with torch.no_grad():
            posterior = AutoencoderKL.from_pretrained(vae).encode(pixels).latent_dist
        assert torch.allclose(row["latents"].float(), posterior.mean[0] * scale, atol=2e-3)
        assert torch.allclose(row["spread"].float(), posterior.std[0] * scale, atol=2e-3)
        assert row["hints"].shape == row["hints_spread"].shape == (4, 32, 32)
        assert row["size"].tolist() == [40, 40] and row["aspect"] == 1
        data = PreparedFolder(out)
        assert data.caption_tokens == (120 if family == "alpha" else 300)
        assert data.latent_space == ("sd" if family == "alpha" else "sdxl")


def test_captions_are_cleaned_for_alpha_and_left_as_written_for_sigma(tmp_path):
    source = collection(tmp_path / "in", 1, ((40, 40),))
    caption = "A Red CIRCLE (left) https://a.com/x #12"
    (source / "000.txt").write_text(caption)
    t5 = T5Encoder(SHIPPED.t5, bits=16)
    for family, clean in (("alpha", True), ("sigma", False)):
        vae = tiny_vae(tmp_path / f"vae-{family}", FAMILIES[family].scale)
        prepare(mini_job(source, tmp_path / family, family=FAMILIES[family], resolution=256, vae=vae))
        row = stored(tmp_path / family)["000.png"]
        assert torch.equal(row["features"], t5.encode([caption], 120, clean).context[0].half())


# -- refusals ----------------------------------------------------------------------------------------------------------

def test_other_settings_in_the_same_folder_are_refused(source, prepared, tmp_path):
    with pytest.raises(ValueError, match="begun with edges soft, now it is none"):
        prepare(mini_job(source, prepared))
    other = tmp_path / "vae.safetensors"
    save_file(load_file(SHIPPED.vae), other, {"of": "another training"})
    with pytest.raises(ValueError, match=r"begun with VAE vae.safetensors \("):
        prepare(mini_job(source, prepared, vae=other, edges="soft"))


def test_an_autoencoder_of_another_latent_space_is_refused(tmp_path):
    source, vae = collection(tmp_path / "in", 1), tiny_vae(tmp_path / "vae", 0.13025)
    with pytest.raises(ValueError, match="scales its latents by 0.13025, the alpha family by 0.18215"):
        prepare(mini_job(source, tmp_path / "out", family=FAMILIES["alpha"], resolution=256, vae=vae))


def test_missing_networks_are_named_before_any_work(tmp_path):
    source = collection(tmp_path / "in", 1)
    for change, message in (({"t5": None}, "1 captions have no features yet.*--t5"),
                            ({"vae": None}, "1 images have no latents yet.*--vae"),
                            ({"edges": "hed"}, "1 images have no HED edge maps yet.*--hed")):
        with pytest.raises(ValueError, match=message):
            prepare(mini_job(source, tmp_path / str(len(change) + len(message)), **change))
    with pytest.raises(FileNotFoundError, match="no such file or folder.*T5"):
        prepare(mini_job(source, tmp_path / "out", t5=tmp_path / "none"))


def test_sources_without_a_usable_image_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no image that can be used; all 1 are listed"):
        prepare(mini_job(tmp_path / "in", tmp_path / "out"))
    assert "a.txt is not there" in (tmp_path / "out" / "skipped.jsonl").read_text()


def test_wrong_options_are_refused(tmp_path):
    for change, message in (({"edges": "sobel"}, "unknown edge maps"), ({"batch": 0}, "at least 1"),
                            ({"resolution": 512}, "prepared at 128 px"), ({"hed": tmp_path}, "of no use"),
                            ({"sources": ()}, "no source")):
        with pytest.raises(ValueError, match=message):
            mini_job(tmp_path, tmp_path, **change)


def test_two_processes_do_not_share_a_folder(source, prepared):
    from pixart.files.claim import claimed
    with claimed(prepared), pytest.raises(BlockingIOError, match="another process is at work in this folder"):
        prepare(mini_job(source, prepared, edges="soft"))


def test_a_full_disk_is_an_error_that_names_the_file_and_loses_nothing(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from pixart.weights import safetensors_file
    source, out, save = collection(tmp_path / "in", 2, ((64, 64),)), tmp_path / "out", safetensors_file.save_file

    def full(tensors: dict, path: Path, metadata: dict | None = None) -> None:
        if "00001" in path.name:
            raise SafetensorError("No space left on device (os error 28)")
        save(tensors, path, metadata=metadata)

    monkeypatch.setattr(safetensors_file, "save_file", full)
    with pytest.raises(OSError, match="bucket-16x16-00001.safetensors.*No space left.*kept"):
        prepare(mini_job(source, out, shard=1))
    monkeypatch.setattr(safetensors_file, "save_file", save)
    assert len(stored(out)) == 1 and prepare(mini_job(source, out, shard=1)).added == 1


# -- command line ------------------------------------------------------------------------------------------------------

def parse(*words: str):
    from pixart.__main__ import parser
    return parser().parse_args(["prepare", *words])


def test_the_command_prepares_and_tells(tmp_path, capsys):
    source = collection(tmp_path / "in", 2)
    (source / "bad.png").write_bytes(b"x")
    (source / "bad.txt").write_text("x")
    command.run(parse("--source", str(source), "--out", str(tmp_path / "out"), "--family", "mini", "--device", "cpu"))
    shown = capsys.readouterr()
    assert "2 images are prepared" in shown.out and "1 images were skipped, listed in" in shown.out
    assert "1 x it is not an image" in shown.out
    assert not shown.err, "bars are for terminals"


def test_the_command_refuses_what_it_does_not_know(tmp_path, capsys):
    for words in (["--sharp"], ["--edges", "sobel"], ["--resolution", "500"]):
        with pytest.raises(SystemExit):
            parse("--source", "a", "--out", "b", "--family", "mini", *words)
        assert words[-1] in capsys.readouterr().err
    with pytest.raises(ValueError, match="--family sigma needs --resolution"):
        command.run(parse("--source", str(tmp_path), "--out", str(tmp_path / "o"), "--family", "sigma"))
