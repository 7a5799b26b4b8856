"""Latents to images and back with the autoencoders of the diffusers library, an optional extra of this package."""
import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .device import free_bytes, is_out_of_memory, release
from .vae_parts import FULL, TINY, Slices, fitting, tiled
from .weights.errors import CheckpointError
from .weights.locate import Kind, find_files
from .weights.reader import ShortLived, open_weights
from .weights.settings import Check, checked_entries, list_of, number, read_json, text, whole
from .weights.values import check_finite, check_floating

logger = logging.getLogger(__name__)

VAE_EXPECTED = "sd-vae-ft-ema for alpha and delta, the SDXL VAE for Sigma, or a TAESD file (.safetensors or a folder)"
VAE_KIND = Kind(VAE_EXPECTED, "", ("diffusion_pytorch_model",))
VAE_NAME = re.compile(r"((first_stage_model|vae)\.)?(encoder|decoder|quant_conv|post_quant_conv|taesd_\w+)\.")
VARIANT_NAME = re.compile(r"diffusion_pytorch_model\.(\w+)\.(?:safetensors|bin)")    # as diffusers names fp16 weights
VAE_FIELDS: dict[str, Check] = {"block_out_channels": list_of(whole(1, 1 << 13), 16), "layers_per_block": whole(1, 64),
                                "norm_num_groups": whole(1, 1 << 13), "latent_channels": whole(1, 1 << 10),
                                "in_channels": whole(1, 64), "out_channels": whole(1, 64), "act_fn": text,
                                "down_block_types": list_of(text, 16), "up_block_types": list_of(text, 16),
                                "scaling_factor": number(1e-6, 1e3)}
# The architecture of Stable Diffusion's and SDXL's VAE, for single files, which do not carry it.
_KL = {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
       "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 512,
       "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}


def load_vae(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """A diffusers folder, that of a whole pipeline too, a single file of a Stable Diffusion or SDXL VAE, or of TAESD
    (taesd_encoder.*, ...).

    Raises FileNotFoundError, CheckpointError (a ValueError) for a file that holds no VAE or numbers that are not
    finite, ImportError where diffusers is missing.
    """
    path = vae_place(path)
    kind = require_vae(path)
    check_vae_config(path)
    check_values(path)
    from diffusers import AutoencoderKL

    with naming(path), tempfile.TemporaryDirectory() as folder:
        if kind == "folder":
            vae: Any = load_folder(path)
        elif kind == "tiny":
            vae = load_tiny(path)
        else:
            Path(folder, "config.json").write_text(json.dumps(_KL))
            vae = AutoencoderKL.from_single_file(str(path), config=folder, local_files_only=True)
        return vae.to(device).eval().requires_grad_(False)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """One error that names the file for whatever diffusers and torch say about missing tensors and wrong shapes."""
    try:
        yield
    except (RuntimeError, ValueError, LookupError, TypeError, OSError, AttributeError, ArithmeticError) as error:
        if is_out_of_memory(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ValueError(f"this VAE cannot be used, it is damaged, incomplete or of another kind ({lines[0][:160]}): "
                         f"{path}") from error


def require_vae(path: str | Path) -> str:
    """Which kind of VAE lies at a path: "folder", "full" or "tiny". Reads names only; raises as `load_vae` does."""
    path = vae_place(path)
    if not path.exists():
        raise FileNotFoundError(f"no VAE at {path}")
    if find_spec("diffusers") is None:
        raise ImportError("decoding images outside ComfyUI needs the diffusers package: "
                          "pip install 'pixart-delta[standalone]' or pip install diffusers")
    keys = open_weights(path, VAE_KIND).tensors
    if path.is_dir():
        return "folder"
    if "taesd_decoder.1.weight" in keys:
        return "tiny"
    if any(name.startswith("decoder.layers.") for name in keys):
        raise CheckpointError(path, "a tiny autoencoder (TAESD) as diffusers stores it, of which a folder is read",
                              VAE_EXPECTED, "Name its folder, with config.json in it, in place of the file.")
    if not any(name.endswith("decoder.conv_in.weight") for name in keys):
        raise CheckpointError(path, f"it holds no VAE that this program knows ({len(keys)} tensors, such as "
                              f"{min(keys)[:60]})", VAE_EXPECTED)
    return "full"


def vae_place(path: str | Path) -> Path:
    """Where the VAE itself is: the folder `vae` where that of a whole diffusers pipeline is named."""
    path = Path(path).expanduser()
    return path / "vae" if (path / "vae").is_dir() else path


def check_vae_config(path: Path) -> None:
    """Raises CheckpointError where config.json in a folder names sizes that no VAE has, before they are allocated."""
    file = path / "config.json"
    if path.is_dir() and file.is_file():
        present = {name: value for name, value in read_json(file).items() if value is not None}
        checked_entries(present, VAE_FIELDS, file, "config.json")


def require_scale(path: str | Path, scale: float, whose: str, advice: str = "") -> None:
    """Refuse a folder whose config.json says that its latents are multiplied by something else than `scale`.

    Tiny autoencoders work on scaled latents, and single files say nothing. whose: what reads the latents; advice: what
    else may be wrong. Raises CheckpointError (a ValueError), as `check_vae_config` does for what cannot be a VAE's.
    """
    path = vae_place(path)
    check_vae_config(path)
    file = path / "config.json"
    config = read_json(file) if file.is_file() else {}
    stated = config.get("scaling_factor")
    if stated is None or config.get("_class_name") == "AutoencoderTiny" or abs(stated - scale) <= 1e-4:
        return
    raise CheckpointError(path, f"this VAE scales its latents by {stated}, {whose} by {scale}; images would have wrong "
                          "colours", VAE_EXPECTED, f"Name the VAE that belongs to it{advice}.")


def check_values(path: Path) -> None:
    """Raises CheckpointError where a tensor of the VAE is not floating-point or has values that are not finite."""
    weights = open_weights(path, VAE_KIND)
    source = ShortLived(weights.remap)
    for name in weights.tensors:
        if VAE_NAME.match(name):
            check_floating(name, weights.tensors[name], path, VAE_EXPECTED)
            check_finite(name, source[name], path, VAE_EXPECTED)


def load_folder(path: Path) -> Any:
    """A diffusers folder, also one of a tiny autoencoder or with half-precision weights only."""
    from diffusers import AutoencoderKL, AutoencoderTiny
    config = path / "config.json"
    named = read_json(config).get("_class_name") if config.is_file() else None
    network: Any = AutoencoderTiny if named == "AutoencoderTiny" else AutoencoderKL
    variant = VARIANT_NAME.fullmatch(find_files(path, VAE_KIND)[0].name)
    vae, about = network.from_pretrained(path, variant=variant and variant[1], local_files_only=True,
                                         output_loading_info=True)
    missing = sorted(about["missing_keys"])
    if missing:
        raise RuntimeError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    return vae


def load_tiny(path: Path) -> Any:
    """TAESD in ComfyUI's single-file layout. `vae_scale` is not read: the networks work on scaled latents."""
    from diffusers import AutoencoderTiny
    model: Any = AutoencoderTiny()
    state = {}
    for name, tensor in open_weights(path, VAE_KIND).tensors.items():
        part, _, rest = name.partition(".")
        if part == "taesd_encoder":
            state[f"encoder.layers.{rest}"] = tensor.float()
        elif part == "taesd_decoder":            # module 0 there is the clamp, which diffusers does outside
            index, _, leaf = rest.partition(".")
            state[f"decoder.layers.{int(index) - 1}.{leaf}"] = tensor.float()
    model.load_state_dict(state, strict=True)
    return model


class Autoencoder(Protocol):
    """What diffusers' autoencoders have in common."""

    def encode(self, images: Tensor) -> Any: ...

    def decode(self, latents: Tensor) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


def is_tiny(vae: Autoencoder) -> bool:
    """A tiny autoencoder (TAESD) works on scaled latents and gives no standard deviation."""
    return type(vae).__name__ == "AutoencoderTiny"


@torch.inference_mode()
def encode_images(vae: Autoencoder, images: Tensor, latent_scale: float,
                  batch: int = 4) -> tuple[Tensor, Tensor | None]:
    """Images (B, 3, H, W) in 0..1, sides multiples of 8 -> mean and standard deviation of their latents on the CPU.

    Both (B, 4, H / 8, W / 8) and scaled as the transformer sees them; a sample is mean + deviation * noise. The
    deviation of a tiny autoencoder is None. Computed in the precision of its weights, regardless of autocast.
    """
    weight = next(vae.parameters())
    means, deviations = [], []
    with own_precision(weight.device):
        for part in images.split(batch):
            encoded = vae.encode((part.to(weight.device) * 2 - 1).to(weight.dtype))
            if is_tiny(vae):
                means.append(encoded.latents.float().cpu())
                continue
            means.append(encoded.latent_dist.mean.float().cpu() * latent_scale)
            deviations.append(encoded.latent_dist.std.float().cpu() * latent_scale)
    return torch.cat(means), torch.cat(deviations) if deviations else None


@torch.inference_mode()
def decode(vae: Autoencoder, latents: Tensor, latent_scale: float, batch: int = 4, memory: int | None = None) -> Tensor:
    """Latents (B, 4, h, w) as the transformer sees them -> images (B, 3, 8h, 8w) in 0..1, on the CPU.

    A tiny autoencoder works on scaled latents, a full one on latents / latent_scale. Computed in the precision of its
    weights, regardless of autocast: the VAE of SDXL gives NaN in fp16. Decodes at most `batch` images at once, fewer if
    memory is short, and tiles if one image is too much. memory: bytes to plan with, by default what is free; if they
    do not suffice, it goes on with smaller parts and logs that. Raises MemoryError if even the smallest do not fit.
    """
    weight = next(vae.parameters())
    free = free_bytes(weight.device) if memory is None else memory
    per_pixel = (TINY if is_tiny(vae) else FULL) * weight.element_size() // 4
    parts = fitting(latents.shape[-2], latents.shape[-1], per_pixel, free, min(batch, len(latents)))
    while True:
        try:
            return _decode(vae, latents, latent_scale, parts)
        except (RuntimeError, MemoryError) as error:
            smaller = parts.smaller(max(latents.shape[-2:]))
            if not is_out_of_memory(error):
                raise
            if smaller is None:
                raise MemoryError(f"not enough memory on {weight.device} to decode even {parts}; generate a "
                                  "smaller image, or close what else uses the memory") from error
        logger.warning("not enough memory to decode %s; going on with %s", parts, smaller)
        release(weight.device)
        parts = smaller


def decoder(vae: Autoencoder, latent_scale: float) -> Callable[[Tensor], Tensor]:
    """Latents (B, 4, h, w) -> images (B, 3, 8h, 8w) in 0..1 with gradients: `decode` without its slices."""
    def decode_all(latents: Tensor) -> Tensor:
        with own_precision(next(vae.parameters()).device):
            decoded = _run(vae, latents, latent_scale)
        return (decoded.float() / 2 + 0.5).clamp(0, 1)
    return decode_all


def _run(vae: Autoencoder, latents: Tensor, latent_scale: float) -> Tensor:
    """(B, 3, 8h, 8w) in -1..1, in the type and on the device of the weights."""
    weight = next(vae.parameters())
    given = latents.to(weight.device, weight.dtype)
    return vae.decode(given if is_tiny(vae) else given / latent_scale).sample


def _decode(vae: Autoencoder, latents: Tensor, latent_scale: float, parts: Slices) -> Tensor:
    run = partial(_run, vae, latent_scale=latent_scale)
    with own_precision(next(vae.parameters()).device):
        if parts.tile is None:
            decoded = [run(part).float().cpu() for part in latents.split(parts.count)]
        else:
            decoded = [tiled(run, latent, parts.tile) for latent in latents.split(1)]
    return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)


def own_precision(device: torch.device) -> AbstractContextManager:
    """A context with autocast switched off, on devices that have it."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
