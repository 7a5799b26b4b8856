"""Small collections of images and the networks that the tests of preparing use."""
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pixart.mini import SHIPPED
from pixart.prepare.families import FAMILIES
from pixart.prepare.run import PreparationJob

SHAPES = ((64, 64), (64, 96), (100, 60), (64, 64), (72, 64), (96, 64))      # height, width


def image(height: int, width: int, seed: int) -> Image.Image:
    """A smooth coloured image that differs by seed."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def collection(folder: Path, count: int, shapes: tuple[tuple[int, int], ...] = SHAPES) -> Path:
    """`count` PNG files with captions beside them; every third in a folder inside."""
    for number in range(count):
        place = folder / "more" if number % 3 == 2 else folder
        place.mkdir(parents=True, exist_ok=True)
        image(*shapes[number % len(shapes)], number).save(place / f"{number:03d}.png")
        (place / f"{number:03d}.txt").write_text(f"a red circle left of {number % 4} small squares")
    return folder


def mini_job(source: Path, out: Path, **changes: object) -> PreparationJob:
    """Preparing with the networks of PixArt-mini."""
    given = {"sources": (source,), "out": out, "family": FAMILIES["mini"], "resolution": 128, "vae": SHIPPED.vae,
             "t5": SHIPPED.t5, "batch": 2, "workers": 2}
    return PreparationJob(**{**given, **changes})


def tiny_vae(folder: Path, scale: float) -> Path:
    """A diffusers folder with an untrained autoencoder that has a posterior."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4, scaling_factor=scale,
                  down_block_types=("DownEncoderBlock2D",) * 4,
                  up_block_types=("UpDecoderBlock2D",) * 4).save_pretrained(folder)
    return folder


def stored(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Everything in a prepared folder: source key -> its row of every tensor; a key that occurs twice is an error."""
    from pixart.prepare.shards import Shard, shard_paths

    found: dict[str, dict[str, torch.Tensor]] = {}
    for path in shard_paths(out):
        shard = Shard(path)
        assert len(shard.keys) == len(shard)
        for row, key in enumerate(shard.keys):
            assert key not in found, f"{key} twice"
            found[key] = {"sides": torch.tensor(shard.sides),
                          **{name: values[row].clone() for name, values in shard.tensors.items()}}
    return found
