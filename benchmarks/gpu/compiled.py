"""Stage: what torch.compile gains: the blocks one by one, the whole network, and as a graph of the device."""
import time
from collections.abc import Callable
from functools import partial

import torch

from pixart.model.transformer import PixArtTransformer

from .latency import FOUR, MAIN, TOKENS, Size, drawing, dtype_of
from .models import backend
from .networks import autoencoder, distance, given, transformer
from .notes import Notes
from .profile import profiled
from .setting import Absent, Setting
from .stages import Case
from .timing import medians, milliseconds

Run = Callable[..., torch.Tensor]
TABLE, AIM = "Compiled beside eager, one pass", 1.3
Compile = Callable[[PixArtTransformer, Setting], Run]


def blocks(model: PixArtTransformer, setting: Setting) -> PixArtTransformer:
    for block in model.blocks:
        block.compile(fullgraph=True, dynamic=False, backend=backend(setting))
    return model


def whole(model: PixArtTransformer, setting: Setting) -> Run:
    return torch.compile(model, fullgraph=True, dynamic=False, backend=backend(setting))


def graph(model: PixArtTransformer, setting: Setting) -> Run:
    """Compiled and recorded: no launch costs."""
    if setting.tiny:
        raise Absent("device graphs are CUDA's")
    return torch.compile(model, fullgraph=True, dynamic=False, mode="reduce-overhead")


def cases(setting: Setting) -> dict[str, Case]:
    return {"blocks, 1024 px, batch 1": partial(measure, "blocks", blocks, MAIN),
            "blocks, 1024 px, batch 4": partial(measure, "blocks", blocks, FOUR),
            "blocks, 512 px, batch 1": partial(measure, "blocks", blocks, Size(512, 1)),
            "profile, compiled": profile_compiled, "decoding": decoding,
            "whole, 1024 px, batch 1": partial(measure, "whole", whole, MAIN),
            "graph, 512 px, batch 1": partial(measure, "whole, device graph", graph, Size(512, 1)),
            "blocks, 2048 px, batch 1": partial(measure, "blocks", blocks, Size(2048, 1))}


@torch.inference_mode()
def measure(title: str, make: Compile, size: Size, setting: Setting, notes: Notes) -> None:
    """Eager and compiled take turns; both have the same weights."""
    torch._dynamo.reset()
    dtype = dtype_of("fp16", setting)
    eager, other = (transformer(size.config(setting), dtype, setting.device) for _ in range(2))
    inputs = given(eager.config, [size.latent(setting)] * 2, [TOKENS] * size.batch, setting.device, dtype)
    compiled = make(other, setting)
    started = time.perf_counter()
    found = compiled(**inputs).clone()
    seconds = time.perf_counter() - started
    error = distance(found, eager(**inputs))
    notes.check("compiled = eager", f"{title}, {size.side} px, batch {size.batch}", error, 2e-2)
    taken = medians({"eager": partial(eager, **inputs), "compiled": partial(compiled, **inputs)}, setting, seconds=2.0)
    gain = taken["eager"] / taken["compiled"]
    notes.row(TABLE, px=size.side, batch=size.batch, dtype="fp16", compiled=title,
              **{"eager ms": taken["eager"], "compiled ms": taken["compiled"], "times as fast": gain,
                 "compiling s": seconds})
    if setting.cuda:
        notes.aim(f"compiled ({title}) / eager, {size.side} px, batch {size.batch}", gain, AIM, "x", at_most=False)


def profile_compiled(setting: Setting, notes: Notes) -> None:
    torch._dynamo.reset()
    model = blocks(transformer(MAIN.config(setting), dtype_of("fp16", setting), setting.device), setting)
    profiled("1024 px, batch 1, 4 steps, fp16, blocks compiled", drawing(MAIN, model, setting), setting, notes)


@torch.inference_mode()
def decoding(setting: Setting, notes: Notes) -> None:
    """The autoencoder's decoder with its memory laid out channels last, which its convolutions like better."""
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        vae = autoencoder(setting.tiny, dtype, setting.device)
        last = autoencoder(setting.tiny, dtype, setting.device).to(memory_format=torch.channels_last)
        latents = torch.randn(1, 4, *[MAIN.latent(setting)] * 2, device=setting.device, dtype=dtype)
        milliseconds(partial(last.decode, latents), setting)
        taken = medians({"as it is": partial(vae.decode, latents), "channels last": partial(last.decode, latents)},
                        setting, seconds=2.0)
        notes.row("Decoding one picture of 1024 px", dtype=name, **{f"{way}, ms": ms for way, ms in taken.items()})
