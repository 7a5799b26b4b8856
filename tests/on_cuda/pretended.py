"""Torch with the pretended device in it: everything that asks which devices there are is told of one."""
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from on_cuda.pretend import GPU, Cuda, on_gpu
from torch import Tensor


def generator_patches() -> list[Any]:
    """Generators that say cuda. A subclass made before is changed where it stands."""
    real = torch.Generator

    def new(cls: type, device: Any = "cpu") -> torch.Generator:
        made = real.__new__(cls)
        made.__dict__["_where"] = GPU if on_gpu(device) else torch.device("cpu")
        return made

    class Pretended(real):      # type: ignore[misc, valid-type]
        """torch.Generator on either device."""
        __new__ = new           # type: ignore[assignment]

        def __init__(self, device: Any = "cpu") -> None:
            pass

        device = property(lambda self: self.__dict__.get("_where", torch.device("cpu")))

    patches = [mock.patch.object(torch, "Generator", Pretended)]
    for kind in real.__subclasses__():
        if kind is not Pretended:
            patches += [mock.patch.object(kind, "__new__", new),
                        mock.patch.object(kind, "__init__", lambda self, device="cpu": None),
                        mock.patch.object(kind, "device", Pretended.device, create=True)]
    return patches


def cuda_patches(device: Cuda) -> list[Any]:
    gib = 1 << 30
    properties = SimpleNamespace(name="pretended", major=8, minor=0, total_memory=24 * gib, multi_processor_count=1)
    said: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "is_bf16_supported": lambda including_emulation=True: True, "mem_get_info": lambda d=None: (20 * gib, 24 * gib),
        "memory_reserved": lambda d=None: 0, "memory_allocated": lambda d=None: 0, "empty_cache": lambda: None,
        "max_memory_allocated": lambda d=None: 0, "reset_peak_memory_stats": lambda d=None: None,
        "synchronize": lambda d=None: device.note("wait", "synchronize"), "set_device": lambda d: None,
        "get_device_name": lambda d=None: "pretended", "get_device_capability": lambda d=None: (8, 0),
        "get_device_properties": lambda d=None: properties,
        "is_initialized": lambda: True, "is_current_stream_capturing": lambda: False,
        "ipc_collect": lambda: None,
        "memory_stats": lambda d=None: Counter(), "manual_seed_all": lambda seed: device_seed(device, seed),
        "manual_seed": lambda seed: device_seed(device, seed), "get_rng_state": lambda d=None: device.state.clone(),
        "get_rng_state_all": lambda: [device.state.clone()], "set_rng_state": lambda s, d=None: set_state(device, s),
        "set_rng_state_all": lambda states: set_state(device, states[0])}
    patches = [mock.patch.object(torch.cuda, name, answer) for name, answer in said.items()]
    return [*patches, *autocast_patches()]


def device_seed(device: Cuda, seed: int) -> None:
    device.state = torch.Generator().manual_seed(seed).get_state()


def set_state(device: Cuda, state: Tensor) -> None:
    device.state = state.clone()


def autocast_patches() -> list[Any]:
    """The device's numbers lie on the CPU, so it is the CPU's autocast that reaches them."""
    kind, real = torch.amp.autocast_mode.autocast, torch.amp.autocast_mode.autocast.__init__
    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        real(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    return [mock.patch.object(kind, "__init__", init),
            mock.patch.object(torch, "is_autocast_enabled", lambda device="cpu": enabled("cpu")),
            mock.patch.object(torch, "get_autocast_dtype", lambda device: dtype("cpu"))]


@contextlib.contextmanager
def pretend_cuda() -> Iterator[Cuda]:
    """Inside, there is one CUDA device."""
    import bitsandbytes.nn  # noqa: F401   Both would load kernels of the device that is not there.
    from diffusers.models import AutoencoderKL  # noqa: F401
    device = Cuda()
    Cuda.active = device
    with contextlib.ExitStack() as stack:
        for patch in [*generator_patches(), *cuda_patches(device)]:
            stack.enter_context(patch)
        stack.enter_context(device)
        yield device
