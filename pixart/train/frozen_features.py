"""What a frozen vision network sees in the images of prepared latents, place by place: the target of an alignment."""
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PixArtConfig
from ..mini import SHIPPED
from ..model.transformer import PixArtTransformer
from ..reward.eyes import colour_normalised, scaled
from ..vae import decoder, load_vae
from ..weights.errors import CheckpointError
from ..weights.settings import read_json, short
from .alignment import Aligned, AlignedDiffusion, Alignment, on_grid
from .vae_file import vae_file

DINO_KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")        # `model_type` of their config.json
DINO_FOLDER = "a folder of DINOv2 or DINOv3 for align.dinov2, such as facebook/dinov2-base, with model.safetensors"
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images, by colour


class ImageFeatures(nn.Module):
    """Latents (B, channels, H, W), scaled as the transformer sees them, and a grid (h, w) -> maps (B, C, h, w)."""

    def __init__(self, vae: nn.Module, latent_scale: float, eye: nn.Module, channels: int) -> None:
        """eye(images (B, 3, H, W) in 0..1, grid) gives maps of `channels` channels."""
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

    def forward(self, images: Tensor, grid: Sequence[int]) -> Tensor:
        return on_grid(self.judge.maps(images)[-1], grid)


class DinoEye(nn.Module):
    """The patch tokens of DINOv2 or DINOv3, which is shown every image at as many patches as there are places."""

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError and ValueError that name the folder, for what is missing or something else."""
        super().__init__()
        self.network = load_dino(folder)
        config = self.network.config
        self.channels, self.patch = config.hidden_size, config.patch_size
        self.first = 1 + getattr(config, "num_register_tokens", 0)         # the class and the registers come before

    def forward(self, images: Tensor, grid: Sequence[int]) -> Tensor:
        shown = scaled(images, [self.patch * side for side in grid])
        seen = self.network(colour_normalised(shown, IMAGENET_MEAN, IMAGENET_DEVIATION))
        tokens = seen.last_hidden_state[:, self.first:]
        return tokens.transpose(1, 2).unflatten(2, tuple(grid))


def load_dino(folder: Path) -> Any:
    """The network of a folder as Hugging Face publishes it, frozen, in float32. Nothing is downloaded.

    Raises FileNotFoundError, and CheckpointError (a ValueError) for another network and for damaged or missing weights.
    """
    place = folder / "config.json"
    if not place.is_file():
        raise FileNotFoundError(f"no config.json in this folder. Expected {DINO_FOLDER}: {folder}")
    kind = read_json(place).get("model_type")
    if kind not in DINO_KINDS:
        raise CheckpointError(place, f"a network of the kind {kind!r}, not of {', '.join(DINO_KINDS)}", DINO_FOLDER)
    from safetensors import SafetensorError
    from transformers import AutoModel
    try:
        network, about = AutoModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True,
                                                   dtype=torch.float32, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(folder, f"the weights of {kind} could not be read ({short(error)})", DINO_FOLDER) \
            from error
    lacking = sorted(about["missing_keys"])         # transformers would draw them at random
    if lacking:
        raise CheckpointError(folder, f"{len(lacking)} tensors are missing, such as {lacking[0]}", DINO_FOLDER)
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise CheckpointError(folder, f"the weights of {kind} hold what is not a number", DINO_FOLDER)
    return network.eval().requires_grad_(False)


def image_features(align: Alignment, config: PixArtConfig, dtype: torch.dtype = torch.float32) -> ImageFeatures:
    """What an alignment compares with; dtype: of the VAE, which takes most of the time.

    Raises ValueError for parts that are missing, and what reading them raises.
    """
    file = vae_file(align.vae, config, f"align.network is {align.network}", "method.align.vae")
    eye = JudgeEye() if align.network == "judge" else DinoEye(align.dinov2 or Path())
    vae = load_vae(file).to(dtype, memory_format=torch.channels_last)
    return ImageFeatures(vae, config.latent_scale, eye, eye.channels)


def with_alignment(network: PixArtTransformer, align: Alignment, dtype: torch.dtype = torch.float32, seed: int = 0
                   ) -> tuple[Aligned, Callable[..., AlignedDiffusion]]:
    """The network with its head, and the objective, which takes what `Diffusion` does; arguments as above."""
    features = image_features(align, network.config, dtype)
    return (Aligned(network, features.channels, align.block_of(network.config.depth), seed),
            partial(AlignedDiffusion, features=features, align=align))
