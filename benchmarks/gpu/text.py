"""Stage: T5-XXL in 8, 4 and 16 bits, and the whole job from prompt to image, from files with random weights."""
import time
from functools import partial
from pathlib import Path

import torch

from pixart.generation.pipeline import Pipeline
from pixart.text.t5 import T5Encoder

from ..instruments.cases import Case
from ..instruments.files import t5_folder, transformer_file, vae_folder
from ..instruments.networks import distance
from ..instruments.notes import Notes
from ..instruments.setting import Setting, need
from ..instruments.timing import peak

PROMPT = "a small red house on a green hill beside a large blue lake under a grey sky, in the style of an old master"
ENCODERS, JOBS = "Text encoder (T5-XXL, random weights)", "The whole job, two stages: text, then image"
LIMITS = {8: 0.25, 4: 1.0}              # relative, against 16 bits; random weights do not dampen errors
BUDGET, AIM = 8.0, 6.0                  # GB of the whole job with an 8-bit T5


def cases(setting: Setting) -> dict[str, Case]:
    found: dict[str, Case] = {"T5-XXL file": write}
    found["whole job, T5 in 8 bits"] = partial(job, 8)
    found["T5-XXL in 16, 8 and 4 bits"] = encoders
    return found | {f"whole job, T5 in {bits} bits": partial(job, bits) for bits in (4, 16)}


def write(setting: Setting, notes: Notes) -> None:
    started = time.perf_counter()
    size = sum(file.stat().st_size for file in t5_folder(setting).iterdir())
    notes.row("Files of random weights", file="T5-XXL", GB=size / 1e9, seconds=time.perf_counter() - started)


def encoders(setting: Setting, notes: Notes) -> None:
    path, features = t5_folder(setting), {}
    for bits in (16, 8, 4):
        if bits < 16:
            need("bitsandbytes")
        setting.tidy()
        started = time.perf_counter()
        encoder = T5Encoder(path, bits=bits, device=setting.device)
        loading = time.perf_counter() - started
        features[bits] = encoder.encode([PROMPT], 120).context
        started = time.perf_counter()
        again = encoder.encode([PROMPT], 120).context
        notes.row(ENCODERS, bits=bits, **{"loading s": loading, "a prompt s": time.perf_counter() - started},
                  tokens=again.shape[1], **peak(setting))
        notes.holds("T5-XXL", f"{bits} bits, the same twice", torch.equal(again, features[bits]))
        encoder.close()
        del encoder
    for bits, limit in LIMITS.items():
        notes.check("T5-XXL", f"{bits} bits against 16 bits", distance(features[bits], features[16]), limit)


def job(bits: int, setting: Setting, notes: Notes) -> None:
    """Memory by stage is the peak since the stage before it ended."""
    if bits < 16:
        need("bitsandbytes")
    config = setting.config()
    files = transformer_file(setting, config, "alpha-1024"), vae_folder(setting)
    held: dict[str, dict[str, float | None]] = {}
    images, seconds = generated(files, bits, setting, held)
    notes.row(JOBS, **{"T5 bits": bits, "px": setting.pixels(1024), "seconds, files read": seconds},
              **{f"{stage} GiB": found["allocated GiB"] for stage, found in held.items()},
              **{"reserved GiB": most(held, "reserved GiB")})
    notes.holds("whole job", f"T5 in {bits} bits: an image of finite numbers", bool(torch.isfinite(images).all()))
    if setting.cuda:
        gigabytes = (most(held, "allocated GiB") or 0) * 2 ** 30 / 1e9
        for limit, kind in ((BUDGET, "budget"), (AIM, "aim")) if bits == 8 else ():
            notes.aim(f"whole 1024 px job, T5 in 8 bits, peak of tensors ({kind})", gigabytes, limit, "GB")


def generated(files: tuple[Path, Path], bits: int, setting: Setting, held: dict) -> tuple[torch.Tensor, float]:
    """An image and the seconds it took; what each stage held goes into `held`."""
    def progress(stage: str, done: int, total: int) -> None:
        if done == total:
            held[stage] = peak(setting)
            if setting.cuda:
                torch.cuda.reset_peak_memory_stats()

    side = setting.pixels(1024)
    started = time.perf_counter()
    pipe = Pipeline.open(files[0], files[1], t5_folder(setting), setting.device,
                         torch.float16 if setting.cuda else torch.float32, variant="alpha-1024", bits=bits,
                         keep_t5=False)
    images = pipe(PROMPT, width=side, height=side, sampler="lcm", progress=progress)
    return images.pixels, time.perf_counter() - started


def most(held: dict[str, dict[str, float | None]], name: str) -> float | None:
    return max((size for found in held.values() if (size := found[name]) is not None), default=None)
