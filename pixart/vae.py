"""Latents to pictures and back with the autoencoders of the diffusers library, an optional extra of this package."""
import json
import logging
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# The architecture of Stable Diffusion's and SDXL's VAE, for single files, which do not carry it.
_KL = {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
       "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 512,
       "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}


def load_vae(path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """A diffusers folder, a single file of a Stable Diffusion or SDXL VAE, or a TAESD file (taesd_encoder.*, ...).

    Raises FileNotFoundError, ValueError for a file that holds no VAE, ImportError where diffusers is missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no VAE at {path}")
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ImportError("decoding pictures outside ComfyUI needs the diffusers package: "
                          "pip install 'pixart-delta[standalone]' or pip install diffusers") from error
    if path.is_dir():
        return AutoencoderKL.from_pretrained(path, local_files_only=True).to(device).eval()
    keys = tensor_names(path)
    if "taesd_decoder.1.weight" in keys:
        return load_tiny(path).to(device).eval()
    if not any(name.endswith("decoder.conv_in.weight") for name in keys):
        raise ValueError(f"{path} holds no VAE that this program knows ({len(keys)} tensors, such as {min(keys)}); use "
                         "sd-vae-ft-ema for alpha and delta, the SDXL VAE for Sigma, or a TAESD file")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(_KL))
        return AutoencoderKL.from_single_file(str(path), config=folder, local_files_only=True).to(device).eval()


def tensor_names(path: Path) -> list[str]:
    """Names in a safetensors file; other formats are refused."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file or is damaged ({error}); give a VAE as .safetensors or as a "
                         "diffusers folder") from error


def load_tiny(path: Path) -> nn.Module:
    """TAESD in the host's single-file layout. Its latents are multiplied with `vae_scale` on the way in."""
    from diffusers import AutoencoderTiny
    model, state = AutoencoderTiny(), {}
    with safe_open(path, "pt") as file:
        for name in file.keys():
            part, _, rest = name.partition(".")
            if part == "taesd_encoder":
                state[f"encoder.layers.{rest}"] = file.get_tensor(name).float()
            elif part == "taesd_decoder":            # module 0 there is the clamp, which diffusers does outside
                index, _, leaf = rest.partition(".")
                state[f"decoder.layers.{int(index) - 1}.{leaf}"] = file.get_tensor(name).float()
    model.load_state_dict(state, strict=True)
    return model


@torch.inference_mode()
def encode(vae: nn.Module, pictures: Tensor, latent_scale: float, batch: int = 4) -> tuple[Tensor, Tensor | None]:
    """Pictures (B, 3, H, W) in 0..1, sides multiples of 8 -> mean and standard deviation of their latents on the CPU.

    Both (B, 4, H / 8, W / 8) and scaled as the transformer sees them; a draw is mean + deviation * noise. A tiny
    autoencoder knows no deviation: None.
    """
    tiny = type(vae).__name__ == "AutoencoderTiny"
    weight = next(vae.parameters())
    means, deviations = [], []
    for part in pictures.split(batch):
        encoded = vae.encode((part * 2 - 1).to(weight.device, weight.dtype))
        if tiny:
            means.append(encoded.latents.float().cpu())
            continue
        means.append(encoded.latent_dist.mean.float().cpu() * latent_scale)
        deviations.append(encoded.latent_dist.std.float().cpu() * latent_scale)
    return torch.cat(means), torch.cat(deviations) if deviations else None


@torch.inference_mode()
def decode(vae: nn.Module, latents: Tensor, latent_scale: float, batch: int = 4) -> Tensor:
    """Latents (B, 4, h, w) as the transformer sees them -> pictures (B, 3, 8h, 8w) in 0..1, on the CPU.

    A tiny autoencoder works on scaled latents, a full one on latents / latent_scale.
    """
    tiny = type(vae).__name__ == "AutoencoderTiny"
    weight = next(vae.parameters())
    pictures = []
    for part in latents.split(batch):
        part = part.to(weight.device, weight.dtype)
        decoded = vae.decode(part if tiny else part / latent_scale).sample
        pictures.append((decoded.float().cpu() / 2 + 0.5).clamp(0, 1))
    return torch.cat(pictures)
