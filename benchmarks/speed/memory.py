"""Topic: the peak memory of the whole job, prompt to image, computed: every allocation traced, none made.

Tensors without data go through the library's own networks. T5 has the layers of transformers, whose weights count in
the precision that they would have; what dequantising one int8 layer takes is counted beside it. Not included: what CUDA
itself and its libraries take, usually 1 to 2 GiB, and scratch space inside kernels.
"""
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer
from pixart.text.fitting import t5_bytes
from pixart.text.quantized import INT8, Bits

from ..instruments.cases import Case
from ..instruments.files import TINY_T5, XXL, t5_shapes
from ..instruments.held import GIB, Held
from ..instruments.networks import KL, TINY_KL
from ..instruments.notes import Notes
from ..instruments.setting import Setting, need
from .wish import Wish, config_for, pixels

PARTS, JOBS = "Peak memory of each part, computed", "Peak memory of the whole job, computed"
BITS: dict[str, Bits] = {"16 bits": 16, "LLM.int8": 8, "int8": INT8, "NF4": 4}
DECODED = {"whole, fp32": (torch.float32, None), "whole, 16 bits": (torch.bfloat16, None),
           "tiles of 768 px, fp32": (torch.float32, 96), "tiles of 512 px, fp32": (torch.float32, 64)}
LIMIT, AIM = 8.0, 6.0           # GB of a job of 1024 px with any of the small T5s


def cases(setting: Setting, wish: Wish) -> dict[str, Case]:
    return {f"memory, {side} px, batch {batch}": partial(measure, side, batch, wish)
            for side in wish.sides for batch in wish.batches}


def measure(side: int, batch: int, wish: Wish, setting: Setting, notes: Notes) -> None:
    """Each part alone, and their maximum: T5, transformer and autoencoder are freed before the next is loaded."""
    need("diffusers")
    need("transformers")
    config, here = config_for(side, setting), pixels(side, setting)
    beside = text_activations(wish.tokens, setting)
    text = {name: text_peak(bits, beside, setting) for name, bits in BITS.items()}
    sampling = {name: sampling_peak(config, here, prompts * batch, wish.tokens, setting)
                for name, prompts in (("not guided", 1), ("guided", 2))}
    decoding = {name: decoding_peak(here, dtype, tile, setting) for name, (dtype, tile) in DECODED.items()}
    for part, found in (("T5", text), ("transformer, 16 bits", sampling), ("decoding one", decoding)):
        for name, size in found.items():
            notes.row(PARTS, px=side, batch=batch, part=part, how=name, GiB=size / GIB)
    for name, size in text.items():
        for how in ("whole, fp32", "tiles of 768 px, fp32"):
            peak = max(size, sampling["guided"], decoding[how])
            notes.row(JOBS, px=side, batch=batch, T5=name, decoding=how, **{"GiB": peak / GIB, "GB": peak / 1e9})
    if side == 1024 and batch == 1 and not setting.tiny:
        for name in ("LLM.int8", "int8", "NF4"):
            size = max(text[name], sampling["guided"], decoding["whole, fp32"])
            notes.aim(f"whole 1024 px job, T5 as {name}, decoded whole in fp32", size / 1e9, LIMIT, "GB")
            notes.aim(f"the same, {name}", size / 1e9, AIM, "GB")


def traced(make: Callable[[], tuple[torch.nn.Module, Callable[[], object]]]) -> tuple[int, int]:
    """(bytes of the weights, peak bytes of a run beyond them)."""
    with FakeTensorMode(allow_non_fake_inputs=True), Held() as held, torch.no_grad():
        model, run = make()
        weights = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
        before = held.peak = held.now
        run()
        return weights, held.peak - before


def in_dtype(dtype: torch.dtype, make: Callable[[], Any]) -> Any:
    """Networks without data cannot be cast: they are made in their type."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make().eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)


def text_activations(tokens: int, setting: Setting) -> int:
    """What encoding one prompt in 16 bits holds beside the weights."""
    sizes = TINY_T5 if setting.tiny else XXL

    def make() -> tuple[torch.nn.Module, Callable[[], object]]:
        from transformers import T5Config, T5EncoderModel
        config = T5Config.from_dict({"feed_forward_proj": "gated-gelu", **sizes})
        model = in_dtype(torch.bfloat16, lambda: T5EncoderModel(config))
        ids = torch.zeros(1, tokens, dtype=torch.long)
        return model, lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return traced(make)[1]


def text_peak(bits: Bits, beside: int, setting: Setting) -> int:
    """Weights in their precision; int8 dequantises a layer to fp32 as it runs, twice for a moment, NF4 to 16 bits."""
    sizes = TINY_T5 if setting.tiny else XXL
    largest = sizes["d_model"] * sizes["d_ff"]
    dequantized = largest * (4 + 4) if bits == INT8 else largest * 2 if bits == 4 else 0
    return t5_bytes(dict(t5_shapes(sizes)), bits) + beside + dequantized


def sampling_peak(config: PixArtConfig, side: int, rows: int, tokens: int, setting: Setting) -> int:
    def make() -> tuple[torch.nn.Module, Callable[[], object]]:
        model = PixArtTransformer(config, dtype=torch.bfloat16).eval().requires_grad_(False)
        latent = torch.zeros(rows, 4, side // 8, side // 8, dtype=torch.bfloat16)
        context = torch.zeros(rows, tokens, config.caption_width, dtype=torch.bfloat16)
        return model, lambda: model(latent, torch.full((rows,), 500.0), context)
    return sum(traced(make))


def decoding_peak(side: int, dtype: torch.dtype, tile: int | None, setting: Setting) -> int:
    """One image, or one of its tiles, which are put together on the CPU."""
    from diffusers import AutoencoderKL
    inside = side // 8 if tile is None else min(side // 8, tile)

    def make() -> tuple[torch.nn.Module, Callable[[], object]]:
        vae: Any = in_dtype(dtype, lambda: AutoencoderKL(**(TINY_KL if setting.tiny else KL)))
        latent = torch.zeros(1, 4, inside, inside, dtype=dtype)
        return vae, lambda: vae.decode(latent).sample
    return sum(traced(make))
