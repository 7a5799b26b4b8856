"""Data that the official code computed comes out as it was there: features, latents, sizes, masks."""
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from prepare.images_at_hand import image, stored, tiny_vae

from pixart.mini import SHIPPED
from pixart.prepare.families import FAMILIES
from pixart.prepare.items import Item
from pixart.prepare.official import official_items
from pixart.prepare.run import PreparationJob, prepare
from pixart.prepare.sources import items_of
from pixart.text.encoded import save_embeddings
from pixart.text.t5 import T5Encoder
from pixart.train.data import PreparedFolder

WIDTH = 128                     # that of PixArt-mini's text encoder, which makes the empty caption here
LAYOUTS = {                     # family -> folders of metadata, features, latents
    "alpha": ("partition_filter", "caption_feature_wmask", "img_vae_fatures_512_multiscale/ms"),
    "single": ("partition", "caption_feature_wmask", "img_vae_features_512resolution/noflip"),
    "sigma": ("InternData", "caption_features_new", "img_sdxl_vae_features_512resolution_ms_new"),
}


def features(rng: np.random.Generator, tokens: int, limit: int, half: bool = False) -> dict[str, np.ndarray]:
    """As the official tools save them: short captions are padded with copies of their last token."""
    real = rng.standard_normal((tokens, WIDTH)).astype(np.float32)
    padded = np.concatenate([real, np.repeat(real[-1:], limit - tokens, axis=0)])[None]
    mask = (np.arange(limit) < tokens)[None]
    return {"caption_feature": padded.astype(np.float16 if half else np.float32),
            "attention_mask": mask.astype(np.int16 if half else np.int64)}


def moments(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Mean, then standard deviation, not scaled."""
    return np.concatenate([3 * rng.standard_normal((4, h, w)), 0.1 + rng.random((4, h, w))]).astype(np.float32)


def write(folder: Path, layout: str, paths: tuple[str, ...] = ("a/one.jpg", "b/two.jpg"),
          sides: tuple[int, int] = (64, 64), size: tuple[int, int] = (700, 690)) -> dict[str, dict]:
    """A data root of the official code; path -> what belongs to it."""
    rng, made = np.random.default_rng(0), {}
    metadata, texts, latents = (folder / name for name in LAYOUTS[layout])
    for place in (metadata, texts, latents, folder / "hed_feature_512"):
        place.mkdir(parents=True)
    limit = 300 if layout == "sigma" else 120
    for number, path in enumerate(paths):
        stem = Path(path).with_suffix("").as_posix()
        flat = "_".join(stem.rsplit("/", 1))
        made[path] = {"features": features(rng, 5 + number, limit, layout == "sigma"), "moments": moments(rng, *sides),
                      "hint": moments(rng, *sides), "tokens": 5 + number}
        for place in (folder / "hed_feature_512" / stem, texts / flat, latents / flat):
            place.parent.mkdir(parents=True, exist_ok=True)
        np.savez(texts / f"{flat}.npz", **made[path]["features"])
        np.save(latents / f"{flat}.npy", made[path]["moments"])
        np.savez(folder / "hed_feature_512" / f"{stem}.npz", made[path]["hint"])
    records = [{"path": path, "prompt": f"caption of {path}", "height": size[0], "width": size[1],
                "ratio": size[0] / size[1]} for path in paths]
    (metadata / "data_info.json").write_text(json.dumps(records))
    return made


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The empty caption as `python -m pixart encode "" ...` saves it."""
    path = tmp_path_factory.mktemp("null") / "empty.safetensors"
    save_embeddings(path, T5Encoder(SHIPPED.t5, bits=16).encode([""], 120))
    return path


def job(source: Path, out: Path, layout: str, null: Path, **changes: object) -> PreparationJob:
    family = FAMILIES["sigma" if layout == "sigma" else "alpha"]
    return PreparationJob(**{"sources": (source,), "out": out, "family": family, "resolution": 512, "null": null,
                             **changes})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_and_latents_are_taken_over_without_any_network(layout, tmp_path, null):
    made = write(tmp_path / "root", layout)
    report = prepare(job(tmp_path / "root", tmp_path / "out", layout, null))
    assert (report.examples, report.skipped) == (2, [])
    found, scale = stored(tmp_path / "out"), 0.13025 if layout == "sigma" else 0.18215
    assert found.keys() == made.keys()
    for path, row in found.items():
        mean, deviation = torch.from_numpy(made[path]["moments"] * scale).chunk(2)
        assert torch.equal(row["latents"], mean.half()) and torch.equal(row["spread"], deviation.half())
        kept = row["mask"].bool()
        assert kept.sum() == made[path]["tokens"]
        real = made[path]["features"]["caption_feature"][0, :made[path]["tokens"]]
        assert torch.equal(row["features"][kept], torch.from_numpy(real).half()) and not row["features"][~kept].any()


def test_models_are_told_the_images_size_or_for_data_of_one_size_that(tmp_path, null):
    for layout, size, ratio in (("alpha", [700, 690], 1.0), ("single", [512, 512], 1.0)):
        write(tmp_path / layout, layout)
        prepare(job(tmp_path / layout, tmp_path / f"{layout}-out", layout, null))
        for row in stored(tmp_path / f"{layout}-out").values():
            assert row["size"].tolist() == size and row["aspect"].item() == ratio
    write(tmp_path / "wide", "alpha", sides=(48, 84), size=(500, 880))
    prepare(job(tmp_path / "wide", tmp_path / "wide-out", "alpha", null))
    row = next(iter(stored(tmp_path / "wide-out").values()))
    assert row["sides"].tolist() == [48, 84] and row["size"].tolist() == [500, 880]
    assert row["aspect"].item() == pytest.approx(0.57)          # the key of the bin, not 500 / 880


def test_batches_are_draws_of_the_posterior_in_the_models_scale(tmp_path, null):
    made = write(tmp_path / "root", "alpha", ("a/one.jpg",))["a/one.jpg"]
    prepare(job(tmp_path / "root", tmp_path / "out", "alpha", null, edges="hed"))
    data = PreparedFolder(tmp_path / "out", need_hints=True)
    batches = [data.batch(torch.Generator().manual_seed(seed), 8) for seed in range(40)]
    for name, kind in (("latents", "moments"), ("hint", "hint")):
        mean, deviation = torch.from_numpy(made[kind] * 0.18215).chunk(2)
        drawn = torch.cat([getattr(batch, name) for batch in batches])
        normal = (drawn - mean) / deviation
        assert normal.mean().abs() < 0.01 and (normal.std() - 1).abs() < 0.01
        assert ((drawn.mean(0) - mean).abs() / deviation).max() < 6 / len(drawn) ** 0.5
    # Of 120 stored tokens a batch holds as many as its longest caption has, rounded up to eights.
    assert batches[0].mask.shape == (8, 8) and batches[0].mask.sum(1).eq(5).all()
    assert data.edges == "hed" and torch.equal(data.null_context[0], data.without_caption(batches[0]).context[0, 0])


@pytest.mark.parametrize("name", ["a_one.npz", "a/one.npz", "one.npz"])
def test_all_names_that_the_tools_gave_to_features_are_found(name, tmp_path):
    write(tmp_path, "alpha")
    texts = tmp_path / "caption_feature_wmask"
    (texts / "a").mkdir()
    (texts / "a_one.npz").rename(texts / name)
    first = next(official_items(tmp_path / "partition_filter" / "data_info.json", "alpha", 512))
    assert first.features == texts / name


def test_a_bare_name_that_two_images_share_belongs_to_neither(tmp_path):
    write(tmp_path, "alpha", ("a/one.jpg", "b/one.jpg"))
    texts = tmp_path / "caption_feature_wmask"
    (texts / "a_one.npz").rename(texts / "one.npz")
    items = list(official_items(tmp_path / "partition_filter" / "data_info.json", "alpha", 512))
    assert items[0].features is None and items[1].features == texts / "b_one.npz"


def test_what_was_not_computed_is_encoded_from_the_image(tmp_path, null):
    made = write(tmp_path / "root", "alpha")
    for path in (tmp_path / "root").glob("img_vae*/ms/a_*"):
        path.unlink()
    (tmp_path / "root" / "caption_feature_wmask" / "a_one.npz").unlink()
    (tmp_path / "root" / "InternImgs" / "a").mkdir(parents=True)
    image(512, 512, 0).save(tmp_path / "root" / "InternImgs" / "a" / "one.jpg")
    with pytest.raises(ValueError, match="1 captions have no features yet"):
        prepare(job(tmp_path / "root", tmp_path / "out", "alpha", null))
    vae = tiny_vae(tmp_path / "vae", 0.18215)
    report = prepare(job(tmp_path / "root", tmp_path / "out", "alpha", null, vae=vae, t5=SHIPPED.t5))
    assert (report.examples, report.skipped) == (2, [])
    row = stored(tmp_path / "out")["a/one.jpg"]
    mean = torch.from_numpy(made["a/one.jpg"]["moments"][:4] * 0.18215)
    assert not torch.allclose(row["latents"].float(), mean, atol=0.1)
    assert row["size"].tolist() == [512, 512]       # the image's own, not the record's 700 x 690


def damaged(folder: Path, path: str) -> Path:
    return folder / "caption_feature_wmask" / f"{path.replace('/', '_')}.npz"


def test_broken_files_are_listed_and_the_rest_is_prepared(tmp_path, null):
    names = ("cut", "pickled", "nameless", "long", "nan", "shape", "gone", "good")
    root = tmp_path / "root"
    write(root, "alpha", tuple(f"a/{name}.jpg" for name in names))
    cut = damaged(root, "a/cut")
    cut.write_bytes(cut.read_bytes()[:1000])
    np.savez(damaged(root, "a/pickled"), caption_feature=np.array([Evil()], dtype=object),
             attention_mask=np.ones((1, 1)))
    np.savez(damaged(root, "a/nameless"), feature=np.zeros(3))
    np.savez(damaged(root, "a/long"), **features(np.random.default_rng(1), 100, 300))
    np.savez(damaged(root, "a/nan"), caption_feature=np.full((1, 2, WIDTH), np.nan), attention_mask=np.ones((1, 2)))
    np.save(root / LAYOUTS["alpha"][2] / "a_shape.npy", np.zeros((3, 64, 64), dtype=np.float32))
    (root / LAYOUTS["alpha"][2] / "a_gone.npy").unlink()
    report = prepare(job(root, tmp_path / "out", "alpha", null))
    assert set(stored(tmp_path / "out")) == {"a/good.jpg"}
    reasons = {Path(one.key).stem: one.reason for one in report.skipped}
    expected = {"cut": "a_cut.npz is damaged", "pickled": "a_pickled.npz is damaged",
                "nameless": "has no array caption_feature", "long": "expected (1, up to 120, width)",
                "nan": "not all finite", "shape": "expected (8, h, w)",
                "gone": "neither the image nor its latents"}
    assert reasons.keys() == expected.keys()
    assert all(part in reasons[name] for name, part in expected.items()), reasons
    assert not Evil.ran


class Evil:
    """Notes whether it was unpickled."""

    ran = False

    def __reduce__(self):
        return setattr, (Evil, "ran", True)


def test_the_trap_would_have_worked(tmp_path):
    pickle.loads(pickle.dumps(Evil()))
    assert Evil.ran
    Evil.ran = False


def test_metadata_that_is_no_list_of_records_is_refused(tmp_path, null):
    for text, message in (("{", "is not JSON"), ("{}", "holds dict, expected a list of records")):
        (tmp_path / "data.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            prepare(job(tmp_path / "data.json", tmp_path / "out", "alpha", null))
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": "x"}, {"path": "a.jpg", "height": 9}]))
    faults = [item.fault for item in items_of((tmp_path / "data.json",), "alpha", 512) if isinstance(item, Item)]
    assert faults == ["it is not a record with a `path`", "it has neither a prompt nor text features"]


def test_a_saved_prompt_that_is_not_empty_is_refused_as_null(tmp_path):
    write(tmp_path / "root", "alpha")
    save_embeddings(tmp_path / "cat.safetensors", T5Encoder(SHIPPED.t5, bits=16).encode(["a cat"], 120))
    with pytest.raises(ValueError, match="holds the prompt 'a cat', expected the empty one"):
        prepare(job(tmp_path / "root", tmp_path / "out", "alpha", tmp_path / "cat.safetensors"))
    with pytest.raises(ValueError, match="the empty caption are needed too.*--t5.*--null"):
        prepare(job(tmp_path / "root", tmp_path / "out2", "alpha", None))
