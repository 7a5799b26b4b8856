"""What the facts share: the pack's modules, tiny models as the host holds them, and its sampling."""
import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import comfy.model_management
import comfy.sample
import comfy.utils
import folder_paths
import torch
from host import tiny
from torch import Tensor

MODELS = Path(folder_paths.models_dir)
WIDTH = tiny.WIDTH


def pack(name: str = "") -> ModuleType:
    """A module of the pack, e.g. "nodes.host.model", as the host imported it."""
    root = sys.modules["pack"].__name__
    return importlib.import_module(f"{root}.{name}" if name else root)


@functools.cache
def node(name: str) -> type:
    return pack().NODE_CLASS_MAPPINGS[name]


def load(name: str, weight_dtype: str = "fp32", variant: str = "auto"):
    """A MODEL from one of the tiny files."""
    path = MODELS / "diffusion_models" / f"{name}.safetensors"
    return pack("nodes.host.model").load_model(str(path), variant, weight_dtype)


def load_control(name: str = "control", weight_dtype: str = "fp32"):
    """A CONTROL_NET from one of the tiny files."""
    path = MODELS / "controlnet" / f"{name}.safetensors"
    return pack("nodes.host.control").load_control_net(path, weight_dtype)


@functools.cache
def vae():
    """The tiny VAE, as the stock loader gives it."""
    from nodes import VAELoader
    return VAELoader().load_vae("tiny-vae.safetensors")[0]


def image(height: int, width: int, images: int = 1, seed: int = 9) -> Tensor:
    """IMAGE of random pixels."""
    return torch.rand(images, height, width, 3, generator=torch.Generator().manual_seed(seed))


def network(model):
    """The transformer inside a MODEL, loaded."""
    comfy.model_management.load_models_gpu([model])
    return model.model.diffusion_model


def text(tokens: int, seed: int = 0, width: int = WIDTH) -> Tensor:
    """(1, tokens, width)"""
    return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed))


def condition(context: Tensor, **extra: object) -> list:
    return [[context, {"pooled_output": None, **extra}]]


def latent(height: int, width: int, images: int = 1) -> dict:
    """Empty, for an image of this many pixels."""
    return {"samples": torch.zeros(images, 4, height // 8, width // 8)}


def image_latent(height: int, width: int, images: int = 1, seed: int = 5) -> dict:
    """A latent that is not empty."""
    generator = torch.Generator().manual_seed(seed)
    return {"samples": torch.randn(images, 4, height // 8, width // 8, generator=generator)}


def sample(model, positive: list, negative: list, given: dict, steps: int = 2, cfg: float = 1.0, seed: int = 1,
           sampler: str = "euler", callback=None) -> Tensor:
    """What the stock KSampler does."""
    samples = given["samples"]
    noise = comfy.sample.prepare_noise(samples, seed)
    return comfy.sample.sample(model, noise, steps, cfg, sampler, "normal", positive, negative, samples,
                               noise_mask=given.get("noise_mask"), callback=callback, disable_pbar=True, seed=seed)


def off(got: Tensor, want: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    return ((got.double() - want.double()).abs().max() / want.double().abs().max()).item()


def refusal(function, *arguments: object, **named: object) -> str:
    """The message of the ValueError that must come."""
    try:
        function(*arguments, **named)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    raise AssertionError("it was not refused")


@contextlib.contextmanager
def heard_progress() -> Iterator[list[tuple[int, int]]]:
    """What bars tell meanwhile, (done, total); no mark of an interruption stays behind."""
    heard: list[tuple[int, int]] = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: heard.append((value, total)))
    try:
        yield heard
    finally:
        comfy.model_management.interrupt_current_processing(False)
        comfy.utils.set_progress_bar_global_hook(None)


def stopped_by_the_user(function, *arguments: object, **named: object) -> bool:
    """Whether it ends with the host's own exception when the user has pressed Cancel."""
    comfy.model_management.interrupt_current_processing(True)
    try:
        function(*arguments, **named)
    except comfy.model_management.InterruptProcessingException:
        return True
    return False


def off_when_offloaded(model) -> float:
    """How far a pass with the weights kept out of the device, patched layer by layer, is from one with all there."""
    x, t, context = torch.randn(1, 4, 16, 16), torch.tensor([500.0]), text(5)
    want = network(model)(x, t, context)
    comfy.model_management.unload_all_models()
    device = torch.device("cpu")
    low = model.patch_model(device_to=device, lowvram_model_memory=1000)
    try:
        assert low.model_lowvram
        return off(low.diffusion_model(x, t, context), want)
    finally:
        model.unpatch_model(device)
