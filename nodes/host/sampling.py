"""Few-step sampling inside the host's sampler: guidance, masks, previews, control and interruption stay the host's.

The host keeps a noisy latent as x / sqrt(a) = x0 + sigma * noise, with sigma = sqrt((1 - a) / a) and a the cumulative
alpha; PixArt's own x is that divided by sqrt(1 + sigma^2).
"""
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...pixart.sampling.consistency import boundary
from ...pixart.sampling.dmd import TIMESTEP as DMD_TIMESTEP
from ...pixart.sampling.lcm import lcm_timesteps
from ...pixart.sampling.noise import ImageNoise
from .mixin import Mixin

SEED_STEP = 0x9E3779B97F4A7C15      # odd, so that seed and image number never fall together
SCALED_BY = "downscale_ratio_spacial"       # pixels per cell of an empty latent, as newer hosts note and read it
Latent = dict[str, Any]


class _Consistency(Mixin):
    """Prediction of a latent consistency model, in place of the host's plain prediction of x0."""

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        """f(x, t) = c_skip x + c_out x0; sigma (B,), the others (B, C, H, W) in the host's scaling."""
        skip, out = boundary(self.timestep(sigma).flatten(), model_output)
        sigma = sigma.view(-1, 1, 1, 1)
        return skip * model_input / (1 + sigma ** 2).sqrt() + out * (model_input - model_output * sigma)


class PureNoise:
    """Start from noise of unit variance whatever the first timestep (DMD); from the latent where no noise is added."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        return noise * (1 + sigma ** 2).sqrt() if torch.count_nonzero(noise) else latent_image


@functools.cache
def _schedule_class(behaviour: type) -> type:
    from comfy import model_sampling
    bases = (behaviour, model_sampling.EPS, model_sampling.ModelSamplingDiscrete)
    return type(f"PixArt{behaviour.__name__}", bases, {})


def with_schedule(model: Any, behaviour: type) -> tuple[Any, Any]:
    """A clone of a MODEL that predicts as `behaviour` says, and its schedule object."""
    schedule = _schedule_class(behaviour)(model.model.model_config)
    patched = model.clone()
    patched.add_object_patch("model_sampling", schedule)
    return patched, schedule


def sigmas_at(schedule: Any, timesteps: Sequence[int]) -> Tensor:
    """The host's sigmas of whole timesteps, with the final zero; exactly those it finds the timestep back from."""
    return torch.cat([schedule.sigmas[list(timesteps)].cpu(), torch.zeros(1)])


def renoise_seeds(seed: int, images: Sequence[int]) -> list[int]:
    """A seed for the fresh noise of each image, away from `seed` itself, which made the starting noise."""
    return [(seed + SEED_STEP * (number + 1)) % 2 ** 64 for number in images]


def sample_lcm(model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, extra_args: dict | None = None,
               callback: Callable[[dict], None] | None = None, disable: bool | None = None,
               images: Sequence[int] | None = None) -> Tensor:
    """The host's sampler interface around PixArt-delta's steps: jump to a clean latent, add fresh noise, repeat.

    model(x, sigma (B,)) is the consistency function. `images` numbers the rows of x, so that an image does not
    depend on the batch it is made in; 0, 1, ... by default.
    """
    extra_args = extra_args or {}
    seeds = renoise_seeds(extra_args.get("seed") or 0, range(x.shape[0]) if images is None else images)
    noise = ImageNoise(seeds, tuple(x.shape[1:]), x.device, x.dtype, ahead=len(sigmas) - 2)
    following = sigmas.tolist()[1:]         # read from the device once, not at every step
    for i, after in enumerate(following):
        denoised = model(x, sigmas[i] * x.new_ones(x.shape[0]), **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = denoised if after == 0 else denoised + after * noise()
    return x


def lcm_sampler(images: Sequence[int] | None = None) -> Any:
    """SAMPLER of the host."""
    from comfy.samplers import KSAMPLER
    return KSAMPLER(sample_lcm, {} if images is None else {"images": tuple(images)})


def lcm_schedule(model: Any, steps: int, rule: str, denoise: float) -> tuple[Any, Tensor]:
    """MODEL with the consistency function in it, and the SIGMAS to visit; empty where denoise is 0."""
    require_pixart(model)
    if not 0 <= denoise <= 1:
        raise ValueError(f"denoise is {denoise}; it must lie between 0 and 1")
    patched, schedule = with_schedule(model, _Consistency)
    if denoise == 0:
        return patched, torch.zeros(0)
    return patched, sigmas_at(schedule, lcm_timesteps(steps, rule, denoise))


def run_lcm(model: Any, positive: list, negative: list | None, latent: Latent, seed: int, steps: int, rule: str,
            denoise: float, cfg: float) -> Latent:
    """All of an LCM job; returns a new LATENT."""
    from .steps import notice_method
    patched, sigmas = lcm_schedule(model, steps, rule, denoise)
    notice_method(model, "lcm")
    check_latent(model, latent)
    if cfg != 1 and negative is None:
        raise ValueError(f"cfg is {cfg}, which needs a negative prompt; connect one, or set cfg to 1 "
                         "(few-step models have guidance built in)")
    if len(sigmas) == 0:
        return latent
    images = images_of(latent)
    return run(patched, positive, negative or positive, latent, seed, lcm_sampler(images), sigmas, cfg)


def run_dmd(model: Any, positive: list, latent: Latent, seed: int) -> Latent:
    """One step of a distribution-matching distilled model from pure noise; returns a new LATENT."""
    from .steps import notice_method
    require_pixart(model)
    notice_method(model, "dmd")
    check_latent(model, latent)
    if torch.count_nonzero(latent["samples"]):
        raise ValueError("one-step DMD starts from pure noise and cannot work on an image; connect an empty latent "
                         "(PixArt Empty Latent), or use an LCM model for image to image")
    patched, schedule = with_schedule(model, PureNoise)
    return run(patched, positive, positive, latent, seed, lcm_sampler(), sigmas_at(schedule, [DMD_TIMESTEP]), 1.0)


def run(model: Any, positive: list, negative: list, latent: Latent, seed: int, sampler: Any, sigmas: Tensor,
        cfg: float) -> Latent:
    """The host's sampling with its previews."""
    import latent_preview
    from comfy import sample, utils
    latent = in_format_of(model, latent)
    samples = latent["samples"]
    noise = sample.prepare_noise(samples, seed, latent.get("batch_index"))
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    result = sample.sample_custom(model, noise, cfg, sampler, sigmas, positive, negative, samples,
                                  noise_mask=latent.get("noise_mask"), callback=callback, seed=seed,
                                  disable_pbar=not utils.PROGRESS_BAR_ENABLED)
    return {**latent, "samples": result}


def in_format_of(model: Any, latent: Latent) -> Latent:
    """An empty LATENT of another family with this model's channels and, where it notes its scale, its size."""
    from comfy import sample
    fix = sample.fix_empty_latent_channels
    told = [latent[SCALED_BY]] if SCALED_BY in latent and SCALED_BY in inspect.signature(fix).parameters else []
    left = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio_")}
    return {**left, "samples": fix(model, latent["samples"], *told)}


def images_of(latent: Latent) -> list[int]:
    """Numbers of the images in their batch, which stay the same when some are taken out (Latent From Batch)."""
    return list(latent.get("batch_index") or range(latent["samples"].shape[0]))


def require_pixart(model: Any) -> None:
    from comfy.model_base import PixArt
    if not isinstance(model.model, PixArt):
        raise ValueError(f"this MODEL is a {type(model.model).__name__}, not a PixArt model; "
                         "load one with Load PixArt")


def check_latent(model: Any, latent: Latent) -> None:
    """Refuse latents of other models and damaged ones."""
    samples, wanted = latent["samples"], model.get_model_object("latent_format").latent_channels
    if getattr(samples, "is_nested", False):
        raise ValueError("this latent holds several tensors (video and sound); PixArt makes single images. "
                         "Connect PixArt Empty Latent.")
    empty = not torch.count_nonzero(samples)
    if samples.ndim != 4 or min(samples.shape[-2:]) < 2 or (samples.shape[1] != wanted and not empty):
        raise ValueError(f"this latent has shape {tuple(samples.shape)}; PixArt takes (images, {wanted}, height, "
                         "width). Connect PixArt Empty Latent, or VAE Encode with the VAE of this model.")
    if not torch.isfinite(samples).all():
        raise ValueError("this latent holds values that are not finite (NaN or infinite); look at what made it. "
                         "The SDXL VAE, for one, overflows in fp16: use its fp16-fix version, or fp32.")
