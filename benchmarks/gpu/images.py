"""Stage: are images generated on the device those generated on the CPU? PixArt-mini through the parts that users run.

Text encoder, samplers, ControlNet and autoencoder, with the weights of the repository; and the edge maps of control.
"""
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from pixart.checkpoint import load, load_control
from pixart.generation.pipeline import Pipeline
from pixart.generation.request import Request
from pixart.mini import SHIPPED
from pixart.mini.prepare import held_out
from pixart.sampling.dmd import dmd
from pixart.sampling.noise import ImageNoise
from pixart.text.encoded import Encoded
from pixart.text.t5 import T5Encoder

from ..instruments.cases import Case
from ..instruments.networks import distance
from ..instruments.notes import Notes
from ..instruments.setting import DTYPES, Setting, need

SEED = 7
CHECK = "images of PixArt-mini"
T5_LIMITS = {16: 2e-2, 8: 0.1, 4: 0.35}                    # relative, against 16 bits on the CPU
LATENT_LIMITS = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.4}   # relative: a sampler accumulates rounding
PIXEL_LIMITS = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.06}  # mean difference, pixels in 0..1


@dataclass(frozen=True)
class Way:
    """A way of sampling."""

    title: str
    weights: str            # of PixArt-mini
    sampler: str
    steps: int
    guidance: float = 1.0


WAYS = (Way("LCM, 4 steps", "student", "lcm", 4),
        Way("DPM-Solver++, 20 steps, guidance 2.5", "teacher", "dpm", 20, 2.5))


def cases(setting: Setting) -> dict[str, Case]:
    torch.backends.cudnn.allow_tf32 = False
    return {CHECK: images, "DMD": one_step, "control of PixArt-mini": control, "T5 of PixArt-mini": text,
            "edge maps": edges, "soft edge network": soft_edges}


@cache
def prompts(setting: Setting) -> tuple[str, ...]:
    return tuple(caption for _, caption in held_out(1 if setting.tiny else 4, SEED))


@cache
def features(setting: Setting) -> tuple[Encoded, Encoded]:
    """Features of the prompts and of the empty one, by the 16-bit encoder on the CPU."""
    encoder = T5Encoder(SHIPPED.t5, bits=16)
    return encoder.encode(list(prompts(setting)), 64), encoder.encode([""], 64)


def latents(way: Way, dtype: torch.dtype, device: str, setting: Setting) -> Tensor:
    model = load(getattr(SHIPPED, way.weights), dtype=dtype, device=device)
    side, steps = model.config.resolution, 4 if setting.tiny else way.steps
    request = Request(prompts(setting), height=side, width=side, sampler=way.sampler, steps=steps,
                      guidance=way.guidance, seed=SEED)
    return Pipeline.of(model).sample(request, *features(setting))


def images(setting: Setting, notes: Notes) -> None:
    for way in WAYS:
        wanted = latents(way, torch.float32, "cpu", setting)
        for name, dtype in (list(DTYPES.items())[:1] if setting.tiny else DTYPES.items()):
            found = latents(way, dtype, setting.device, setting)
            notes.check(CHECK, f"{way.title}, latents, {name}", distance(found, wanted), LATENT_LIMITS[name])
            difference = (decoded(found, setting.device) - decoded(wanted, "cpu")).abs().mean().item()
            notes.check(CHECK, f"{way.title}, mean difference of pixels, {name}", difference, PIXEL_LIMITS[name])


def decoded(found: Tensor, device: str) -> Tensor:
    need("diffusers")
    from pixart.vae import decode, load_vae
    return decode(load_vae(SHIPPED.vae, device), found, 1.0)


@torch.inference_mode()
def one_step(setting: Setting, notes: Notes) -> None:
    """The one-step sampler on the student, which was not made for it: it only checks that both devices agree."""
    results = []
    for device in ("cpu", setting.device):
        model = load(SHIPPED.student, dtype=torch.float32, device=device)
        context, mask = (part.to(device) for part in (features(setting)[0].context, features(setting)[0].mask))
        noise = ImageNoise([SEED] * len(mask), (4, 16, 16), device)
        results.append(dmd(partial(conditioned, model, context, mask), noise()))
    notes.check("DMD", "one step, latents, fp32", distance(results[1], results[0]), LATENT_LIMITS["fp32"])


def conditioned(model: torch.nn.Module, context: Tensor, mask: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return model(x, t, context, mask)


@torch.inference_mode()
def control(setting: Setting, notes: Notes) -> None:
    """Residuals of the shipped ControlNet."""
    found = []
    hint = torch.randn(len(prompts(setting)), 4, 16, 16, generator=torch.Generator().manual_seed(1))
    caption = features(setting)[0]
    for device in ("cpu", setting.device):
        base = load(SHIPPED.student, dtype=torch.float32, device=device)
        network = load_control(SHIPPED.control, torch.float32, device)
        x, context, mask = hint.to(device), caption.context.to(device), caption.mask.to(device)
        found.append(network(base, x, x, torch.full((len(x),), 500.0, device=device), context, mask))
    worst = max(distance(b, a) for a, b in zip(*found) if a is not None)
    notes.check("control of PixArt-mini", "residuals, fp32", worst, 1e-4)


def text(setting: Setting, notes: Notes) -> None:
    wanted = features(setting)[0].context
    for bits, limit in T5_LIMITS.items():
        if bits < 16:
            need("bitsandbytes")
        encoder = T5Encoder(SHIPPED.t5, bits=bits, device=setting.device)
        found = encoder.encode(list(prompts(setting)), 64)
        notes.check("T5 of PixArt-mini", f"{bits} bits", distance(found.context, wanted), limit)
        twice = torch.equal(found.context, encoder.encode(list(prompts(setting)), 64).context)
        notes.holds("T5 of PixArt-mini", f"{bits} bits, the same twice", twice)
        encoder.close()


def edges(setting: Setting, notes: Notes) -> None:
    need("kornia")
    from pixart.control.edges import edge_maps
    image = torch.rand(2, 3, 96, 80, generator=torch.Generator().manual_seed(2))
    for method in ("canny", "soft"):
        wanted, found = edge_maps(image, method), edge_maps(image.to(setting.device), method)
        notes.check("edge maps", f"{method}, share of pixels that differ",
                    ((found.cpu() - wanted).abs() > 1e-2).float().mean().item(), 2e-3)


@torch.inference_mode()
def soft_edges(setting: Setting, notes: Notes) -> None:
    from pixart.control.hed import HED, hed_edges

    from ..instruments.networks import copied, with_random_weights
    network = with_random_weights(HED(), 0)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    found = hed_edges(copied(network, HED().to(setting.device)), image.to(setting.device))
    notes.check("soft edge network", "HED, fp32", distance(found, hed_edges(network, image)), 1e-4)
