"""What a training in the host learns from: images of the graph or a folder, prepared with its CLIP and VAE."""
import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ....pixart.config import PixArtConfig
from ....pixart.control.hed import HED_FILE
from ....pixart.prepare.families import FAMILIES, Family
from ....pixart.prepare.run import PreparationJob, prepare
from ....pixart.prepare.shards import shard_paths
from ..encoders import networks_of
from ..folders import hed_path
from ..guest import advance_bar, bar, stop_if_asked
from ..node_text import RunningText
from ..vae import check_vae
from .wish import TrainingWish

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingImages:
    """What to learn from: IMAGEs (B, H, W, 3) with a caption a line, or a folder, raw or prepared."""

    images: Tensor | None
    captions: str
    folder: str

    def __post_init__(self) -> None:
        if (self.images is None) == (not self.folder.strip()):
            raise ValueError("connect images, or name a folder of images: one of the two")
        if self.folder and not Path(self.folder).expanduser().is_dir():
            raise FileNotFoundError(f"there is no folder {self.folder}")

    def lines(self) -> list[str]:
        """A caption for each of the images."""
        found = [line.strip() for line in self.captions.splitlines() if line.strip()]
        count = 0 if self.images is None else len(self.images)
        if len(found) == 1:
            return found * count
        if len(found) != count:
            raise ValueError(f"{len(found)} captions for {count} images; write one line an image, or one line for all")
        return found


def data_folder(model: Any, wish: TrainingWish, images: TrainingImages, clip: Any, vae: Any, config: PixArtConfig,
                side: int, say: RunningText) -> Path:
    """A prepared folder: the one that was named, or one that is made here of images and captions."""
    named = Path(images.folder).expanduser() if images.folder else None
    if named is not None and shard_paths(named):
        return named
    if clip is None or vae is None:
        raise ValueError("to learn from images and captions, connect clip and vae; only a folder made by `python -m "
                         "pixart prepare` needs neither")
    check_vae(vae)
    source, mark = (named, short_digest(str(named.resolve()))) if named else written_images(images, wish.run)
    edges = wish.edges if wish.method == "controlnet" else "none"
    out = wish.run / f"data-{mark}-{side}-{edges}"
    hed = hed_path(HED_FILE) if edges == "hed" else None
    job = PreparationJob((source,), out, family_of(config), side, edges=edges, hed=hed, device=str(model.load_device))
    report = prepare(job, Stages(say), networks_of(clip, vae, model))
    for one in report.skipped:
        logger.warning("%s is left out: %s", one.key, one.reason)
    return out


def family_of(config: PixArtConfig) -> Family:
    """How images and captions are treated for such a model."""
    kind = "mini" if config.resolution == 128 else "alpha" if config.latent_space == "sd" else "sigma"
    return replace(FAMILIES[kind], latent_space=config.latent_space, tokens=config.caption_tokens,
                   clean=config.cleans_captions)


def written_images(given: TrainingImages, run: Path) -> tuple[Path, str]:
    """The images as files with captions beside them, in a folder named after what is in it; and that name's mark."""
    from PIL import Image
    images = () if given.images is None else given.images
    arrays = [(image[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy() for image in images]
    captions = given.lines()
    mark = short_digest(*(text.encode() + array.tobytes() for array, text in zip(arrays, captions)))
    folder = run / f"images-{mark}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (array, text) in enumerate(zip(arrays, captions)):
        Image.fromarray(array).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(text, encoding="utf-8")
    return folder, mark


def short_digest(*parts: bytes | str) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()[:10]


class Stages:
    """Progress of preparing on the node."""

    def __init__(self, say: RunningText) -> None:
        self.say = say

    def __call__(self, stage: str, done: int, total: int) -> None:
        stop_if_asked()
        self.say(f"preparing: {stage} {done} of {total}" if total else f"preparing: {stage} {done}")
        if total and advance_bar(bar(total), done, total):
            raise KeyboardInterrupt
