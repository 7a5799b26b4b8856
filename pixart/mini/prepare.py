"""Turns scenes into what the trainers read: latents and text features in one file per bucket."""
import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..control.edges import canny
from ..prepare.shards import write_shard
from ..weights.safetensors_file import write_tensors
from . import SHIPPED, Files
from .autoencoder import MiniAutoencoder, load_autoencoder
from .grammar import caption
from .images import BUCKETS, CANNY, render_scene
from .scenes import Scene, sample_scene
from .text_encoder import load_text_encoder, text_features

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, T5EncoderModel

logger = logging.getLogger(__name__)

CAPTION_TOKENS = 24            # the longest caption of the grammar has 21


def prepare_scenes(folder: Path, count: int, seed: int = 0, split: str = "train", files: Files = SHIPPED,
                   device: str = "cpu", autocast: bool = False) -> None:
    """Writes `count` examples into `folder`: half of them square, the others shared out over the other buckets.

    Each `bucket-{h}x{w}.safetensors` (sides of the latents) holds latents (n, 4, h, w) fp16, raw and thereby scaled;
    hints like latents, of the Canny maps of the images; features (n, L, C) fp16; mask (n, L) uint8; size (n, 2)
    fp32, height and width in pixels; aspect (n,) fp32, height / width. `null.safetensors` holds features (1, C) and
    mask (1,) of the empty caption.
    """
    if count < len(BUCKETS):
        raise ValueError(f"{count} examples were asked for; the {len(BUCKETS)} buckets need at least one each")
    vae = load_autoencoder(files.vae).to(device, memory_format=torch.channels_last)     # type: ignore[call-overload]
    tokenizer, encoder = load_text_encoder(files.t5)
    encoder.to(torch.device(device))     # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    features, mask = text_features(tokenizer, encoder, [""])
    write_tensors(folder / "null.safetensors", {"features": features[0].half(), "mask": mask[0].to(torch.uint8)})
    start = 0
    for (height, width), share in zip(BUCKETS, _shares(count)):
        indices = range(start, start + share)
        start += share
        features, mask = _texts(indices, seed, split, tokenizer, encoder)
        latents, hints = _latents(indices, seed, split, (height, width), vae, autocast)
        write_shard(folder / f"bucket-{height // 8}x{width // 8}.safetensors", {
            "latents": latents.half(), "hints": hints.half(), "features": features.half(), "mask": mask.to(torch.uint8),
            "size": torch.tensor([[height, width]], dtype=torch.float32).repeat(share, 1),
            "aspect": torch.full((share,), height / width)},
            {"latent_space": "sd", "caption_tokens": str(CAPTION_TOKENS), "edges": "canny"})
        logger.info("prepared %d images of %d x %d", share, height, width)


def _shares(count: int) -> list[int]:
    other = max(1, count // 2 // (len(BUCKETS) - 1))
    return [count - other * (len(BUCKETS) - 1)] + [other] * (len(BUCKETS) - 1)


def _texts(indices: range, seed: int, split: str, tokenizer: "PreTrainedTokenizerFast", encoder: "T5EncoderModel",
           batch: int = 250) -> tuple[Tensor, Tensor]:
    """Features (n, CAPTION_TOKENS, C), zero at padding, and mask (n, CAPTION_TOKENS) of the captions."""
    parts = []
    for at in range(0, len(indices), batch):
        texts = [scene_and_caption(index, seed, split)[1] for index in indices[at:at + batch]]
        features, mask = text_features(tokenizer, encoder, texts, fixed=True)
        if mask[:, CAPTION_TOKENS:].any():
            raise ValueError(f"a caption is longer than {CAPTION_TOKENS} tokens; raise CAPTION_TOKENS")
        parts.append(((features * mask[..., None])[:, :CAPTION_TOKENS].half(), mask[:, :CAPTION_TOKENS]))
    return torch.cat([features for features, _ in parts]), torch.cat([mask for _, mask in parts])


@torch.no_grad()
def _latents(indices: range, seed: int, split: str, size: tuple[int, int], vae: MiniAutoencoder, autocast: bool,
             batch: int = 50) -> tuple[Tensor, Tensor]:
    """Raw latents (n, 4, h, w) of the images of these scenes, and those of their edge maps."""
    device = next(vae.parameters()).device
    parts: list[Tensor] = []
    hints: list[Tensor] = []
    for at in range(0, len(indices), batch):
        arrays = [image_of(index, seed, split, size) for index in indices[at:at + batch]]
        images = torch.stack(arrays).to(device).float().div(255)
        maps = canny(images, CANNY["low"], CANNY["high"]).expand(-1, 3, -1, -1)
        for given, made in ((images, parts), (maps, hints)):
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                latents = vae.encode(given.contiguous(memory_format=torch.channels_last))
            made.append(latents.float().cpu().contiguous())
    return torch.cat(parts), torch.cat(hints)


def scene_and_caption(index: int, seed: int, split: str = "train", crowded: bool = False) -> tuple[Scene, str]:
    """Scene and caption of an example."""
    scene = sample_scene(index, seed, split, crowded)
    return scene, caption(scene, random.Random(f"caption {seed} {split} {index}"))


def image_lot(index: int, seed: int, split: str) -> random.Random:
    """What an example's scene is rendered with; "picture" since 0.1.0, another word would be another image."""
    return random.Random(f"picture {seed} {split} {index}")


def image_of(index: int, seed: int, split: str, size: tuple[int, int], crowded: bool = False) -> Tensor:
    """The image of an example, uint8 (3, H, W), at `size` (height, width)."""
    array = render_scene(sample_scene(index, seed, split, crowded), *size, image_lot(index, seed, split))
    return torch.from_numpy(array).permute(2, 0, 1)


def held_out(count: int, seed: int = 0, crowded: bool = False) -> list[tuple[Scene, str]]:
    """Scenes and captions for evaluation, of combinations that were never trained on.

    crowded: three to five things each, in captions of 132 to 254 tokens.
    """
    return [scene_and_caption(index, seed, "held-out", crowded) for index in range(count)]
