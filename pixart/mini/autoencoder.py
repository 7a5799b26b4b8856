"""The small autoencoder of PixArt-mini, stored in the single-file layout of a width-64 TAESD.

It has the structure of TAESD with fewer channels and blocks where images are large. Missing channels and blocks are
zeros in the file, which computes the same function, so that every reader of TAESD files can open it.
"""
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from ..config import LATENT_SCALE
from ..weights.safetensors_file import write_tensors
from .resume import ResumableTraining
from .scenery import Scenery

_FILE_WIDTH = 64


@dataclass(frozen=True)
class AutoencoderConfig:
    """Channels and blocks by resolution, from full size down to an eighth."""

    widths: tuple[int, int, int, int] = (16, 32, 48, 64)
    encoder_blocks: tuple[int, int, int, int] = (0, 1, 2, 3)      # TAESD has 1, 3, 3, 3
    decoder_blocks: tuple[int, int, int, int] = (1, 2, 3, 3)


class Clamp(nn.Module):
    """Keeps latents within about plus and minus three."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """Three convolutions beside a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)


def _blocks(width: int, present: int, places: int = 3) -> list[nn.Module]:
    """`places` modules, so that the indices stay those of TAESD. A block of zeros is a ReLU."""
    return [Block(width) for _ in range(present)] + [nn.ReLU() for _ in range(places - present)]


def _encoder(plan: AutoencoderConfig) -> nn.Sequential:
    a, b, c, d = plan.widths
    w, x, y, z = plan.encoder_blocks
    return nn.Sequential(_conv(3, a), *_blocks(a, w, 1), _conv(a, b, 2, False), *_blocks(b, x),
                         _conv(b, c, 2, False), *_blocks(c, y), _conv(c, d, 2, False), *_blocks(d, z), _conv(d, 4))


def _decoder(plan: AutoencoderConfig) -> nn.Sequential:
    a, b, c, d = plan.widths
    w, x, y, z = plan.decoder_blocks
    up = nn.Upsample(scale_factor=2)
    return nn.Sequential(Clamp(), _conv(4, d), nn.ReLU(), *_blocks(d, z), up, _conv(d, c, 1, False), *_blocks(c, y),
                         up, _conv(c, b, 1, False), *_blocks(b, x), up, _conv(b, a, 1, False), *_blocks(a, w, 1),
                         _conv(a, 3))


class MiniAutoencoder(nn.Module):
    """Images (B, 3, H, W) in 0..1 to raw latents (B, 4, H/8, W/8) of about unit variance, and back."""

    def __init__(self, plan: AutoencoderConfig = AutoencoderConfig()) -> None:
        super().__init__()
        self.plan = plan
        self.taesd_encoder = _encoder(plan)
        self.taesd_decoder = _decoder(plan)

    def encode(self, images: Tensor) -> Tensor:
        return self.taesd_encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.taesd_decoder(latents)


# -- files -------------------------------------------------------------------------------------------------------------

def padded_state(model: MiniAutoencoder) -> dict[str, Tensor]:
    """The same function as the state dict of a width-64 TAESD: absent channels and blocks are zeros."""
    full = MiniAutoencoder(AutoencoderConfig((_FILE_WIDTH,) * 4, (1, 3, 3, 3), (1, 3, 3, 3))).state_dict()
    kept = model.state_dict()
    padded = {}
    for name, value in full.items():
        padded[name] = torch.zeros_like(value)
        if name in kept:
            padded[name][tuple(slice(side) for side in kept[name].shape)] = kept[name]
    return padded


def save_autoencoder(model: MiniAutoencoder, path: Path) -> None:
    """Writes the TAESD single-file layout in fp16; the plan is kept in the header to undo the padding."""
    state = {name: value.half() for name, value in padded_state(model).items()}
    state |= {"vae_scale": torch.tensor(LATENT_SCALE["sd"]), "vae_shift": torch.tensor(0.0)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, state, {"format": "pt", "plan": json.dumps(asdict(model.plan))})


def load_autoencoder(path: Path) -> MiniAutoencoder:
    """Reads what `save_autoencoder` wrote, without the padding, in fp32."""
    with safe_open(str(path), "pt") as file:
        header = file.metadata() or {}
        if "plan" not in header:
            raise ValueError(f"{path} has no plan in its header; it was not written by save_autoencoder")
        plan = {name: tuple(value) for name, value in json.loads(header["plan"]).items()}
        model = MiniAutoencoder(AutoencoderConfig(**plan))
        state = {name: file.get_tensor(name)[tuple(slice(side) for side in value.shape)].float()
                 for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


# -- training ----------------------------------------------------------------------------------------------------------

def train_autoencoder(path: Path, scenery: Scenery, steps: int = 3000, batch: int = 32, seed: int = 0,
                      state: Path | None = None, rate: float = 2e-3, plan: AutoencoderConfig = AutoencoderConfig(),
                      autocast: bool = False) -> MiniAutoencoder:
    """Trains on crops of 64 px, in the last two fifths on whole images, and writes `path` every 500 steps.

    A step takes `batch` crops, or a quarter as many whole images.
    """
    torch.manual_seed(seed)
    device = scenery.ordinary.codes.device
    model = MiniAutoencoder(plan).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    progress = ResumableTraining("autoencoder", model, rate, steps, state, seed)
    for step in progress:
        examples = training_images(scenery, seed, step, steps, batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = autoencoder_loss(model, examples)
        progress.advance(loss)
        if progress.step % 500 == 0:
            save_autoencoder(model, path)
    save_autoencoder(model, path)
    return load_autoencoder(path)


def autoencoder_loss(model: MiniAutoencoder, images: Tensor, noise: float = 0.1) -> Tensor:
    """The error of images decoded from slightly noisy latents, plus unit variance of these."""
    latents = model.encode(images)
    error = decoding_error(model.decode(latents + noise * torch.randn_like(latents)).float(), images)
    flat = latents.float().transpose(0, 1).flatten(1)
    spread = flat.mean(1).square().mean() + (flat.std(1) - 1).square().mean()
    excess = F.relu(flat.abs() - 3).square().mean()
    return error + 0.02 * spread + 0.1 * excess


def decoding_error(decoded: Tensor, images: Tensor) -> Tensor:
    """L1, squared and gradient error."""
    error = decoded - images
    edges = sum(torch.diff(error, dim=side).abs().mean() for side in (2, 3))
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * edges


def train_decoder(source: Path, path: Path, scenery: Scenery, steps: int = 1500, batch: int = 32, seed: int = 0,
                  state: Path | None = None, rate: float = 1.5e-3, autocast: bool = False) -> MiniAutoencoder:
    """Trains the decoder of the file `source` further and writes `path`; its encoder, and so all latents, stay.

    So everything that was trained on these latents still fits. The steps are those of `train_autoencoder`, with
    noise of up to a tenth in the latents, because generated latents are less exact than encoded ones.
    """
    device = scenery.ordinary.codes.device
    model = load_autoencoder(source).train()
    model.to(device, memory_format=torch.channels_last)      # type: ignore[call-overload]
    progress = ResumableTraining("decoder", model.taesd_decoder, rate, steps, state, seed)
    for step in progress:
        examples = training_images(scenery, seed, step, steps, batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            with torch.no_grad():
                latents = model.encode(examples)
            level = 0.1 * torch.rand(len(latents), 1, 1, 1, device=device)
            decoded = model.decode(latents + level * torch.randn_like(latents)).float()
        progress.advance(decoding_error(decoded, examples))
    save_autoencoder(model, path)
    return load_autoencoder(path)


def training_images(scenery: Scenery, seed: int, step: int, steps: int, batch: int) -> Tensor:
    """What a step of a training sees: `batch` crops, in the last two fifths a quarter as many whole images."""
    whole = step > 0.6 * steps
    images = scenery.render(torch.Generator(scenery.ordinary.codes.device).manual_seed(seed * 1_000_003 + step),
                            batch // 4 if whole else batch).images
    return (images if whole else crops(images)).contiguous(memory_format=torch.channels_last)


def crops(images: Tensor, side: int = 64) -> Tensor:
    """One crop (side x side) of each image that holds something: the one of two places that varies more."""
    batch, _, height, width = images.shape
    cuts = []
    for _ in range(2):
        top, left = (torch.randint(extent - side + 1, (batch, 1), device=images.device) for extent in (height, width))
        rows, columns = (start + torch.arange(side, device=images.device) for start in (top, left))
        cuts.append(images[torch.arange(batch, device=images.device)[:, None, None], :, rows[:, :, None],
                           columns[:, None, :]].permute(0, 3, 1, 2))
    spread = [cut.flatten(1).var(1) for cut in cuts]
    return torch.where((spread[0] > spread[1])[:, None, None, None], cuts[0], cuts[1])
