"""Pairs of noise and what a teacher makes from it, for one-step distillation: a prepared folder with noise in it.

Captions and image sizes come from a prepared folder, its images are not looked at. Shard by shard, so that a kill
costs one shard; the noise of a shard follows from the seed and its name, so it does not matter when it was made, nor
what was added to the captions since.
"""
import hashlib
import logging
from pathlib import Path

import torch
from torch import Tensor

from ..files.claim import claimed
from ..model.transformer import PixArtTransformer
from ..progress import CountProgress
from ..sampling.dpm_solver import dpm_solver_pp
from ..sampling.guidance import guided
from ..text.encoded import Encoded, stack_captions
from ..weights.fingerprint import weights_fingerprint
from ..weights.safetensors_file import write_tensors
from .captions import half
from .shards import Shard, load_null, shard_paths, write_shard
from .state import settle

logger = logging.getLogger(__name__)


def make_pairs(captions: Path, out: Path, teacher: PixArtTransformer, steps: int = 20, guidance: float = 4.5,
               seed: int = 0, batch: int = 8, progress: CountProgress = lambda done, total: None,
               weights: Path | None = None) -> int:
    """Generate latents for every caption of the folder `captions` that is not in `out` yet; how many there were.

    teacher: in evaluation mode, where it is to compute. steps and guidance: of DPM-Solver++. weights: the teacher's
    file, to tell it from others. Raises ValueError, naming the folder, for captions of another text encoder, and where
    `out` was begun with other settings.
    """
    if out.exists() and out.samefile(captions):
        raise ValueError(f"pairs go into a folder of their own, not into that of the captions: {out}")
    paths = shard_paths(captions)
    if not paths:
        raise FileNotFoundError(f"{captions} holds no prepared captions; prepare them first: python -m pixart prepare")
    features, mask = load_null(captions)
    width = teacher.config.caption_width
    if features.shape[1] != width:
        raise ValueError(f"the text features have width {features.shape[1]}, this teacher reads {width}; prepare the "
                         f"captions with the text encoder that belongs to it: {captions}")
    out.mkdir(parents=True, exist_ok=True)
    null, total = Encoded(features[None], mask[None], []), sum(len(Shard(path)) for path in paths)
    made = done = 0
    with claimed(out):
        settle(out, {"steps": steps, "guidance": guidance, "seed": seed, "teacher": weights_fingerprint(weights)},
               begun=bool(shard_paths(out)))
        write_tensors(out / "null.safetensors", {"features": features.half(), "mask": mask.byte()})
        for path in paths:
            shard = Shard(path)
            if (out / path.name).exists():
                check_captions_of(Shard(out / path.name), shard)
            else:
                write_shard(out / path.name, _generated(shard, teacher, null, steps, guidance, seed, batch),
                            {**{key: value for key, value in shard.metadata.items() if key not in ("keys", "format")},
                             "edges": "none", "latent_space": teacher.config.latent_space}, shard.keys, shard.marks)
                made += len(shard)
            done += len(shard)
            progress(done, total)
    return made


def noise_of(shard: Shard, channels: int, seed: int) -> Tensor:
    """(N, channels, h, w) float32, image by image from one generator of the shard."""
    named = hashlib.sha256(f"{seed} {shard.path.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(named[:4], "big"))     # torch looks at 32 bits, no more
    return torch.stack([torch.randn(channels, *shard.sides, generator=generator) for _ in range(len(shard))])


def check_captions_of(pairs: Shard, captions: Shard) -> None:
    """Refuse to keep pairs of other captions than those of the shard of the same name."""
    if pairs.keys != captions.keys or (pairs.marks and pairs.marks != captions.marks):
        raise ValueError("these pairs were made for other captions than those in the folder now; choose a new "
                         f"folder: {pairs.path}")


@torch.inference_mode()
def _generated(shard: Shard, teacher: PixArtTransformer, null: Encoded, steps: int, guidance: float,
               seed: int, batch: int) -> dict[str, Tensor]:
    """The tensors of a shard of pairs."""
    noise = noise_of(shard, teacher.config.channels, seed)
    latents = [_sampled(shard, rows, noise[rows], teacher, null, steps, guidance)
               for rows in torch.arange(len(shard)).split(batch)]
    kept = {name: shard.tensors[name].clone() for name in ("features", "mask", "size", "aspect")}
    # joined before they are halved: autocast on a CPU cannot join float16
    return {"latents": half(torch.cat(latents), "the teacher"), "noise": noise.half(), **kept}


def _sampled(shard: Shard, rows: Tensor, noise: Tensor, teacher: PixArtTransformer, null: Encoded,
             steps: int, guidance: float) -> Tensor:
    """What the teacher makes from the noise as it will be stored, in 16 bits; (B, C, h, w) on the CPU."""
    weight = teacher.x_embedder.proj.weight
    captions = Encoded(shard.rows("features", rows).float(), shard.rows("mask", rows).bool(), [])
    both, keep = stack_captions(null, captions)
    size, aspect = (shard.rows(name, rows).float().repeat(2, *[1] * (shard.tensors[name].ndim - 1))
                    for name in ("size", "aspect"))
    given = [both.to(weight.device, weight.dtype), *(part.to(weight.device) for part in (keep, size, aspect))]

    def model(x: Tensor, t: Tensor) -> Tensor:
        some = [part[-len(x):] for part in given]          # the captions alone where there is no guidance
        return teacher(x.to(weight.dtype), t, *some).float()

    start = noise.half().float().to(weight.device)
    return dpm_solver_pp(model if guidance == 1 else guided(model, guidance), start, steps).cpu()
