"""What a frozen vision network sees in the pictures of prepared latents, place by place: the target of an alignment."""
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import PixArtConfig
from ..mini import SHIPPED, shipped_for
from ..reward.generator import decoder
from ..vae import load_vae
from .alignment import Alignment, on_grid

KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")        # `model_type` of their config.json
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures, by colour


class PictureFeatures(nn.Module):
    """Latents (B, channels, H, W), scaled as the transformer sees them, and a grid (h, w) -> maps (B, C, h, w)."""

    def __init__(self, vae: nn.Module, latent_scale: float, eye: nn.Module, channels: int) -> None:
        """eye(pictures (B, 3, H, W) in 0..1, grid) gives maps of `channels` channels."""
        super().__init__()
        self.vae, self.eye, self.channels = vae, eye, channels
        self.decode = decoder(vae, latent_scale)        # type: ignore[arg-type]

    def forward(self, latents: Tensor, grid: Sequence[int]) -> Tensor:
        return self.eye(self.decode(latents), grid)


class JudgeEye(nn.Module):
    """The last map of judge A of PixArt-mini, which may teach."""

    def __init__(self) -> None:
        from ..mini.judge import load_judge
        super().__init__()
        self.judge = load_judge(SHIPPED.judge_a).eval().requires_grad_(False)

    @property
    def channels(self) -> int:
        return self.judge.design.widths[-1]

    def forward(self, pictures: Tensor, grid: Sequence[int]) -> Tensor:
        return on_grid(self.judge.maps(pictures)[-1], grid)


class DinoEye(nn.Module):
    """The patch tokens of DINOv2 or DINOv3, which is shown every picture at as many patches as there are places."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError and ValueError that name the folder, for what is missing or something else."""
        super().__init__()
        self.network = load_dino(folder)
        config = self.network.config
        self.channels, self.patch = config.hidden_size, config.patch_size
        self.first = 1 + getattr(config, "num_register_tokens", 0)         # the class and the registers come before
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor, grid: Sequence[int]) -> Tensor:
        sides = [self.patch * side for side in grid]
        shown = F.interpolate(pictures, sides, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        tokens = self.network((shown - self.mean) / self.deviation).last_hidden_state[:, self.first:]
        return tokens.transpose(1, 2).unflatten(2, tuple(grid))


def load_dino(folder: Path) -> Any:
    """The network of a folder as Hugging Face publishes it, frozen, in float32. Nothing is downloaded."""
    place = folder / "config.json"
    if not place.is_file():
        raise FileNotFoundError(f"no config.json in align.dinov2; expected the folder of a DINOv2, such as "
                                f"facebook/dinov2-base, with config.json and model.safetensors: {folder}")
    try:
        kind = json.loads(place.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"this is no config.json of a network ({type(error).__name__}): {place}") from error
    if kind not in KINDS:
        raise ValueError(f"a network of the kind {kind!r}; align.dinov2 takes {', '.join(KINDS)}: {place}")
    from transformers import AutoModel
    try:
        network = AutoModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True,
                                            dtype=torch.float32)
    except OSError as error:
        raise FileNotFoundError(f"the weights of {kind} could not be read; expected model.safetensors: {folder}") \
            from error
    return network.eval().requires_grad_(False)


def picture_features(align: Alignment, config: PixArtConfig, dtype: torch.dtype = torch.float32) -> PictureFeatures:
    """What an alignment compares with; dtype: of the VAE, which takes most of the time.

    Raises ValueError for parts that are missing, and what reading them raises.
    """
    shipped = shipped_for(config)
    file = align.vae or (shipped.vae if shipped else None)
    if file is None:
        raise ValueError(f"align.network is {align.network}, which looks at pictures: method.align.vae is needed, the "
                         "file to draw the latents with (a tiny VAE, taesd, will do)")
    eye = JudgeEye() if align.network == "judge" else DinoEye(align.dinov2 or Path())
    vae = load_vae(file).to(dtype, memory_format=torch.channels_last)
    return PictureFeatures(vae, config.latent_scale, eye, eye.channels)
