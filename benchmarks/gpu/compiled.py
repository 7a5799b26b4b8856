"""Stage: what torch.compile gains, and what a CUDA graph gains on top where launching kernels takes long."""
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from pixart.model.transformer import PixArtTransformer

from ..instruments.cases import Case
from ..instruments.networks import as_passed, autoencoder, distance, given, transformer
from ..instruments.notes import Notes
from ..instruments.profile import profiled
from ..instruments.setting import Absent, Setting
from ..instruments.timing import medians
from .latency import FOUR, MAIN, TOKENS, Size, dtype_of, sampling
from .models import backend

Run = Callable[..., torch.Tensor]
Make = Callable[[PixArtTransformer, dict[str, torch.Tensor], Setting], Run]
TABLE, AIM = "Compiled and recorded beside eager, one pass", 1.3
DECODING = "Decoding one image of 1024 px, the decoder alone"


def blocks(model: PixArtTransformer, inputs: dict[str, torch.Tensor], setting: Setting) -> Run:
    """Compiled one by one: one graph for all."""
    for block in model.blocks:
        block.compile(fullgraph=True, dynamic=False, backend=backend(setting))
    return partial(model, **inputs)


def whole(model: PixArtTransformer, inputs: dict[str, torch.Tensor], setting: Setting) -> Run:
    return partial(torch.compile(model, fullgraph=True, dynamic=False, backend=backend(setting)), **inputs)


def recorded(model: PixArtTransformer, inputs: dict[str, torch.Tensor], setting: Setting) -> Run:
    """A CUDA graph: all launches of a pass recorded once and replayed, without CPU time between them."""
    if not setting.cuda:
        raise Absent("device graphs are CUDA's")
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            model(**inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(**inputs)
    return partial(replayed, graph, output)


def replayed(graph: torch.cuda.CUDAGraph, output: torch.Tensor) -> torch.Tensor:
    graph.replay()
    return output


def blocks_recorded(model: PixArtTransformer, inputs: dict[str, torch.Tensor], setting: Setting) -> Run:
    blocks(model, inputs, setting)()
    return recorded(model, inputs, setting)


def cases(setting: Setting) -> dict[str, Case]:
    found: dict[str, Case] = {
            "blocks, 1024 px, batch 1": partial(measure, "blocks", blocks, MAIN),
            "decoding": decoding, "profile, compiled": profile_compiled,
            "blocks, 1024 px, batch 4": partial(measure, "blocks", blocks, FOUR),
            "recorded, 1024 px, batch 1": partial(measure, "not compiled, recorded", recorded, MAIN),
            "blocks recorded, 1024 px, batch 1": partial(measure, "blocks, recorded", blocks_recorded, MAIN),
            "whole, 1024 px, batch 1": partial(measure, "whole", whole, MAIN)}
    return found if setting.tiny else found | {
            "blocks recorded, 512 px, batch 1": partial(measure, "blocks, recorded", blocks_recorded, Size(512, 1)),
            "blocks, 512 px, batch 1": partial(measure, "blocks", blocks, Size(512, 1)),
            "blocks, 2048 px, batch 1": partial(measure, "blocks", blocks, Size(2048, 1))}


@torch.inference_mode()
def measure(title: str, make: Make, size: Size, setting: Setting, notes: Notes) -> None:
    """Eager and compiled take turns; both have the same weights."""
    torch._dynamo.reset()
    dtype = dtype_of("fp16", setting)
    eager, other = (transformer(size.config(setting), dtype, setting.device) for _ in range(2))
    inputs = as_passed(given(eager.config, [size.latent(setting)] * 2, [TOKENS] * size.batch, setting.device, dtype))
    started = time.perf_counter()
    run = make(other, inputs, setting)
    found = run().clone()
    seconds = time.perf_counter() - started
    error = distance(found, eager(**inputs))
    notes.check("compiled = eager", f"{title}, {size.side} px, batch {size.batch}", error, 2e-2)
    taken = medians({"eager": partial(eager, **inputs), "compiled": run}, setting, seconds=2.0)
    gain = taken["eager"] / taken["compiled"]
    notes.row(TABLE, px=size.side, batch=size.batch, dtype="fp16", how=title,
              **{"eager ms": taken["eager"], "this way ms": taken["compiled"], "times as fast": gain,
                 "preparing s": seconds})
    if setting.cuda and "record" not in title:
        notes.aim(f"compiled ({title}) / eager, {size.side} px, batch {size.batch}", gain, AIM, "x", at_most=False)


def profile_compiled(setting: Setting, notes: Notes) -> None:
    torch._dynamo.reset()
    model = transformer(MAIN.config(setting), dtype_of("fp16", setting), setting.device)
    blocks(model, {}, setting)
    profiled("1024 px, batch 1, 4 steps, fp16, blocks compiled", sampling(MAIN, model, setting), setting, notes)


@torch.inference_mode()
def decoding(setting: Setting, notes: Notes) -> None:
    """The autoencoder's decoder as it is, with cuDNN's benchmark of convolutions, and compiled."""
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        vae = autoencoder(setting.tiny, dtype, setting.device)
        latents = torch.randn(1, 4, *[MAIN.latent(setting)] * 2, device=setting.device, dtype=dtype)
        row = {"as it is ms": one_decoding(vae, latents, setting)}
        torch.backends.cudnn.benchmark = True
        row["convolutions tried out ms"] = one_decoding(vae, latents, setting)
        if name == "bf16" and setting.cuda:
            vae.decoder.compile(dynamic=False, backend=backend(setting))
            row["compiled too ms"] = one_decoding(vae, latents, setting)
        torch.backends.cudnn.benchmark = False
        notes.row(DECODING, dtype=name, **row)


def one_decoding(vae: Any, latents: torch.Tensor, setting: Setting) -> float:
    """Milliseconds."""
    return medians({"": partial(vae.decode, latents)}, setting, seconds=1.0)[""]
