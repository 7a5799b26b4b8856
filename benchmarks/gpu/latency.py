"""Stage: how long a pass and an image take, eager, beside the card's own ceiling and beside other implementations."""
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from pixart.config import PixArtConfig
from pixart.generation.pipeline import Pipeline
from pixart.generation.request import Request
from pixart.model.transformer import PixArtTransformer
from pixart.vae import decode

from ..instruments.cases import Case
from ..instruments.networks import as_passed, autoencoder, distance, encoded, given, transformer
from ..instruments.notes import Cell, Notes
from ..instruments.peers import Run, implementations
from ..instruments.profile import profiled
from ..instruments.setting import HALF, Setting
from ..instruments.timing import matrix_peak, median, medians, pass_flops

PASSES, IMAGES, PAIRS = "One pass", "One image, prompt encoded before: 4 LCM steps and decoding", "A guided step"
PEERS = "One pass beside other implementations, eager, in turns"
IMAGE_AIM, RATIO_AIM, BUSY_AIM = 0.12, 1.0, 80.0
TOKENS = 120


@dataclass(frozen=True)
class Size:
    """Of a measurement: pixels a side, and images at a time."""

    side: int
    batch: int

    def config(self, setting: Setting) -> PixArtConfig:
        return setting.config({512: "alpha-512", 1024: "alpha-1024", 2048: "sigma-2k"}[self.side])

    def latent(self, setting: Setting) -> int:
        return setting.pixels(self.side) // 8


MAIN, FOUR = Size(1024, 1), Size(1024, 4)
OTHERS = (Size(512, 1), Size(2048, 1), Size(512, 4), Size(2048, 4))


def cases(setting: Setting) -> dict[str, Case]:
    found: dict[str, Case] = {"image, 1024 px, batch 1, fp16": partial(image, MAIN, "fp16"),
                              "image, 1024 px, batch 4, fp16": partial(image, FOUR, "fp16"),
                              "profile": partial(profiled_image, FOUR),
                              "profile of one": partial(profiled_image, MAIN),
                              "profile of decoding": profiled_decoding,
                              "other implementations": partial(peers, "fp16"), "guided step": guided_step,
                              "image, 1024 px, batch 1, bf16": partial(image, MAIN, "bf16"),
                              "other implementations, bf16": partial(peers, "bf16")}
    return found | {f"image, {size.side} px, batch {size.batch}, fp16": partial(image, size, "fp16")
                    for size in (OTHERS[:2] if setting.tiny else OTHERS)}


def dtype_of(name: str, setting: Setting) -> torch.dtype:
    return HALF[name] if setting.cuda else torch.float32


_ceiling: dict[str, float] = {}


def ceiling(name: str, setting: Setting, notes: Notes) -> float:
    """TFLOP/s, measured once a process."""
    if not _ceiling:
        _ceiling.update(matrix_peak(setting))
        for key, value in _ceiling.items():
            notes.row("Measured ceiling: product of 8192 x 8192 matrices", dtype=key, **{"TFLOP/s": value})
    return _ceiling[name]


@torch.inference_mode()
def one_pass(size: Size, name: str, model: PixArtTransformer, setting: Setting, notes: Notes) -> float:
    """Milliseconds."""
    inputs = as_passed(given(model.config, [size.latent(setting)] * 2, [TOKENS] * size.batch, setting.device,
                             dtype_of(name, setting)))
    most = ceiling(name, setting, notes)
    taken = median(lambda: model(**inputs), setting)
    flops = size.batch * pass_flops(model.config, (size.latent(setting) // 2) ** 2, TOKENS)
    notes.row(PASSES, px=size.side, batch=size.batch, dtype=name, ms=taken, TFLOP=flops / 1e12,
              **{"TFLOP/s": flops / taken / 1e9, "of the ceiling %": 100 * flops / taken / 1e9 / most})
    return taken


def sampling(size: Size, model: PixArtTransformer, setting: Setting) -> Run:
    """Noise to latents in four steps, as the library does it."""
    text, side = encoded(model.config, [TOKENS] * size.batch), setting.pixels(size.side)
    request = Request(("",) * size.batch, height=side, width=side)
    pipe = Pipeline.of(model)
    return lambda: pipe.sample(request, text, text, batch=size.batch)


def image(size: Size, name: str, setting: Setting, notes: Notes) -> None:
    model = transformer(size.config(setting), dtype_of(name, setting), setting.device)
    one_pass(size, name, model, setting, notes)
    sample = sampling(size, model, setting)
    steps = median(sample, setting)
    row: dict[str, Cell] = {"px": size.side, "batch": size.batch, "dtype": name, "4 steps ms": steps}
    latents, scale = sample(), model.config.latent_scale
    try:
        for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            vae = autoencoder(setting.tiny, dtype, setting.device)
            taken = median(partial(decode, vae, latents, scale), setting, seconds=2.0)
            row |= {f"decode {kind} ms": taken, f"s per image, decode {kind}": (steps + taken) / 1000 / size.batch}
            if size == MAIN and name == "fp16" and setting.cuda:
                notes.aim(f"1024 px, 4 LCM steps fp16 and decoding {kind}", (steps + taken) / 1000, IMAGE_AIM, "s")
    finally:
        notes.row(IMAGES, **row)


@torch.inference_mode()
def guided_step(setting: Setting, notes: Notes) -> None:
    """Both prompts of a guided step, of different lengths, in one pass, and in two passes one after the other."""
    for size in (MAIN, FOUR):
        model = transformer(size.config(setting), dtype_of("fp16", setting), setting.device)
        sides, dtype = [size.latent(setting)] * 2, dtype_of("fp16", setting)
        both = given(model.config, sides, [TOKENS, 1] * size.batch, setting.device, dtype)
        apart = [as_passed(given(model.config, sides, [length] * size.batch, setting.device, dtype))
                 for length in (TOKENS, 1)]
        found = medians({"one": partial(run, model, [both]), "two": partial(run, model, apart)}, setting)
        notes.row(PAIRS, px=size.side, batch=size.batch, **{"one pass ms": found["one"], "two passes ms": found["two"],
                                                            "ratio": found["one"] / found["two"]})


def run(model: nn.Module, inputs: list[dict]) -> None:
    for given_ in inputs:
        model(**given_)


def peers(name: str, setting: Setting, notes: Notes) -> None:
    """Ours, diffusers and the host's own PixArt with equal weights and inputs, without masks and size conditions."""
    dtype = dtype_of(name, setting)
    for size in (MAIN, FOUR):
        trained = setting.config("alpha-512") if setting.tiny else size.config(setting)
        config = replace(trained, micro_conditioning=False)
        side = 2 * config.base_size     # the trained size: at others the host's own has other positions
        runs = implementations(config, side, size.batch, TOKENS, dtype, setting, notes)
        compare(runs, size, name, setting, notes)


@torch.inference_mode()
def compare(runs: dict[str, Run], size: Size, name: str, setting: Setting, notes: Notes) -> None:
    wanted = runs["ours"]()
    for title, other in runs.items():
        notes.check("same result as other implementations", f"{title}, {size.side} px, {name}",
                    distance(other(), wanted), 5e-2)
    found = medians(runs, setting, seconds=3.0)
    for title, taken in found.items():
        ratio = found["ours"] / taken
        notes.row(PEERS, px=size.side, batch=size.batch, dtype=name, implementation=title, ms=taken,
                  **{"ours / this": ratio})
        if title != "ours" and setting.cuda:
            notes.aim(f"ours / {title}, {size.side} px, batch {size.batch}, {name}", ratio, RATIO_AIM)


def profiled_image(size: Size, setting: Setting, notes: Notes) -> None:
    """Where the time of an image goes."""
    model = transformer(size.config(setting), dtype_of("fp16", setting), setting.device)
    sample = sampling(size, model, setting)
    busy = profiled(f"{size.side} px, batch {size.batch}, 4 steps, fp16", sample, setting, notes)
    if size == FOUR and setting.cuda:
        notes.aim("GPU busy, 4 steps at batch 4", busy, BUSY_AIM, "%", at_most=False)


def profiled_decoding(setting: Setting, notes: Notes) -> None:
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        vae = autoencoder(setting.tiny, dtype, setting.device)
        latents = torch.randn(1, 4, *[MAIN.latent(setting)] * 2, device=setting.device)
        profiled(f"decoding 1024 px, batch 1, {name}", partial(decode, vae, latents, 0.18215), setting, notes)
