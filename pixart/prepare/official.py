"""The layout of the official PixArt code: JSON metadata, and files of features and latents computed by its tools.

Names and arrays are those that `diffusion/data/datasets/InternalData.py` of PixArt-alpha reads; see `official_items`.
"""
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from .folder import IMAGES
from .items import Item, Place

logger = logging.getLogger(__name__)

MOST_RECORDED_SIDE = 1 << 20         # pixels
METADATA = ("partition_filter", "partition", "InternData")      # where a root keeps its metadata; the first is used
_FEATURES = {"alpha": ("caption_feature_wmask", "caption_features"), "sigma": ("caption_features_new",)}
_MOMENTS = {"alpha": ("img_vae_fatures_{}_multiscale/ms", "img_vae_features_{}_multiscale/ms",
                      "img_vae_features_{}resolution/noflip"),
            "sigma": ("img_sdxl_vae_features_{}resolution_ms_new",)}


def metadata_files(root: Path) -> list[Path]:
    """The JSON files of a root in this layout; none for any other folder."""
    for name in METADATA:
        files = sorted((root / name).glob("*.json"))
        if files:
            return files
    return []


def official_items(path: Path, family: str, resolution: int) -> Iterator[Item]:
    """Items of one JSON file, a list of records with `path`, `prompt`, `height` and `width`.

    Beside the folder of the JSON file or in it are looked for: images in InternImgs (or directly), text features
    (caption_feature_wmask, caption_features, caption_features_new; npz), latents of this `resolution`
    (img_vae_features_512resolution/noflip and the like; npy) and latents of HED maps (hed_feature_512; npz). The
    features of `a/b.png` are `a_b.npz`, `a/b.npz` or, where no other image is called so, `b.npz`.
    """
    records, roots = _records(path), (path.parent, path.parent.parent)
    stems = Counter(PurePosixPath(record["path"]).stem for record in records if _named(record))
    features = _folder(roots, _FEATURES.get(family, ()))
    moments = _folder(roots, tuple(name.format(resolution) for name in _MOMENTS.get(family, ())))
    hints = _folder(roots, (f"hed_feature_{resolution}",))
    for what, folder in (("text features", features), ("latents", moments), ("edge maps", hints)):
        if folder:
            logger.info("%s: %s from %s", path.name, what, folder)
    for number, record in enumerate(records):
        if not _named(record):
            yield Item(f"{path.name}, record {number}", fault="it is not a record with a `path`")
            continue
        text, latents, hint = (_computed(folder, record["path"], ending, stems)
                               for folder, ending in ((features, ".npz"), (moments, ".npy"), (hints, ".npz")))
        # Data of one size was trained on with that size, not with the images' own.
        single = moments is not None and latents is not None and moments.name == "noflip"
        yield _item(record, _image(roots, record["path"]), text, latents, hint, told_size=not single)


def _named(record: object) -> bool:
    return isinstance(record, dict) and isinstance(record.get("path"), str) and bool(record["path"])


def _records(path: Path) -> list:
    try:
        records = json.loads(path.read_text("utf-8-sig"))
    except RecursionError:
        raise ValueError(f"this JSON is nested too deeply to be a list of records: {path}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"{path} holds {type(records).__name__}, expected a list of records with path, prompt, height "
                         "and width; write a list of images as .jsonl instead")
    return records


def _item(record: dict, image: Place | None, features: Path | None, moments: Path | None, hint: Path | None,
          told_size: bool) -> Item:
    key, caption = record["path"], record.get("prompt")
    if features is None and not isinstance(caption, str):
        return Item(key, fault="it has neither a prompt nor text features")
    if moments is None and image is None:
        return Item(key, fault="neither the image nor its latents are there")
    size = _size(record)
    if size is None and image is None:
        return Item(key, fault="its record has no height and width")
    return Item(key, caption.strip() if isinstance(caption, str) else "", image, features, moments, hint,
                size, told_size)


def _size(record: dict) -> tuple[int, int] | None:
    """Height and width as the record has them."""
    sides = record.get("height"), record.get("width")
    found = [int(side) for side in sides if isinstance(side, (int, float)) and 0 < side < MOST_RECORDED_SIDE]
    return (found[0], found[1]) if len(found) == 2 else None


def _folder(roots: tuple[Path, ...], names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names for root in roots if (root / name).is_dir()), None)


def _image(roots: tuple[Path, ...], path: str) -> Place | None:
    places = [root / inner / path for root in roots for inner in ("InternImgs", ".")]
    place = next((place for place in places if place.suffix.lower() in IMAGES and place.is_file()), None)
    return Place(place) if place else None


def _computed(folder: Path | None, path: str, ending: str, stems: Counter) -> Path | None:
    """The file that was computed from an image, None where there is none."""
    if folder is None:
        return None
    stem = str(PurePosixPath(path).with_suffix(""))
    names = ["_".join(stem.rsplit("/", 1)), stem]
    if stems[PurePosixPath(path).stem] == 1:
        names.append(PurePosixPath(path).stem)
    return next((folder / (name + ending) for name in names if (folder / (name + ending)).is_file()), None)
