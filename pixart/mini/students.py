"""PixArt-mini's few-step students, all trained as LoRAs of the teacher: latent consistency (LCM), TDM and DMD."""
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..checkpoint import load, save_checkpoint
from ..checkpoint.lora import Lora, merge_lora
from ..model.transformer import PixArtTransformer
from ..prepare.pairs import make_pairs
from ..prepare.shards import shard_path, write_shard
from ..sampling.preset import preset
from ..train.data import PreparedFolder
from ..train.draws import generator_for
from ..train.jobs import TrainingJob, lora_job, matched_lora
from ..train.loop import Training
from ..train.lora import lora_parts
from ..train.method_settings import DmdMethod, TdmMethod
from ..train.rivals import TwoPlayers
from ..train.settings import OutputSettings
from ..weights.safetensors_file import write_tensors

if TYPE_CHECKING:
    from .recipe import Builder
    from .stream import EndlessData

PAIRS_PER_FILE = 128         # captions a file
PAIR_STEPS = 20              # of the teacher that makes the pairs


def train_lcm(builder: "Builder") -> None:
    """Train the LCM student of a build as a LoRA, and write the teacher with the LoRA merged into it.

    At equal training a LoRA of rank 16 learns latent consistency better than all weights do: see docs/measurements.md.
    """
    recipe, data, result = builder.recipe, builder.data(), builder.files.student
    output = OutputSettings(builder.work / "student", result)
    job = lora_job(builder.base(), recipe.student_method, data, output, recipe.seed)
    builder.fit("student", job.model, job.objective, data, recipe.student, partial(save_merged, builder.base()), result,
                facts=job.facts)


def save_merged(base: PixArtTransformer, network: nn.Module, path: Path) -> Path:
    """Write the adapters of a network merged into a copy of its base: an LCM student that needs no LoRA."""
    model = copy.deepcopy(base)
    merge_lora(model, Lora(lora_parts(network)))
    return save_checkpoint(path, model, model.config, torch.float16, preset("lcm").to_header())


def train_matched(builder: "Builder", stage: str) -> None:
    """Train the student "tdm" or "dmd" of a build, and write it to its place."""
    recipe, captions = builder.recipe, builder.data(images=False)
    method: TdmMethod | DmdMethod = recipe.tdm_method
    data: EndlessData | PreparedFolder = captions
    if stage == "dmd":
        method = recipe.dmd_method
        data = pairs(builder, captions, method.guidance)
    result: Path = getattr(builder.files, stage)
    base = builder.base().to(builder.device)
    job = matched_lora(base, method, data, OutputSettings(builder.work / stage, result), recipe.seed)
    builder.fit(stage, job.model, job.objective, data, getattr(recipe, stage), job.write, result, maker(job), job.facts)


def maker(job: TrainingJob) -> Callable[..., Training]:
    """Makes the training of a job; of its model or of a copy, as a probe of the speed takes one."""
    if job.rival is None:
        raise ValueError("this job has no second player")
    return partial(TwoPlayers, rival=job.rival)


def pairs(builder: "Builder", captions: "EndlessData", guidance: float) -> PreparedFolder:
    """Noise and what the teacher makes from it, for captions of the training scenes; made once a work folder."""
    folder = builder.work / "captions"
    write_captions(folder, captions, builder.recipe.pairs, builder.recipe.seed)
    teacher = load(builder.files.teacher, dtype=torch.float32, attend=builder.attend).to(builder.device)
    with torch.autocast(builder.device.type, torch.bfloat16, enabled=builder.autocast):
        make_pairs(folder, builder.work / "pairs", teacher, PAIR_STEPS, guidance, builder.recipe.seed, PAIRS_PER_FILE,
                   weights=builder.files.teacher)
    return PreparedFolder(builder.work / "pairs")


def write_captions(folder: Path, captions: "EndlessData", count: int, seed: int) -> None:
    """`count` captions or a few more, in shards that are written once."""
    folder.mkdir(parents=True, exist_ok=True)
    null = captions.null_context
    write_tensors(folder / "null.safetensors", {"features": null.half().cpu(), "mask": captions.null_mask.byte().cpu()})
    for number in range(-(-count // PAIRS_PER_FILE)):
        batch = captions.batch(generator_for(seed, number, device=captions.device), min(PAIRS_PER_FILE, count))
        sides = batch.latents.shape[-2], batch.latents.shape[-1]
        path = shard_path(folder, sides, number)
        if not path.exists():
            tensors = {"latents": batch.latents.half(), "features": batch.context.half(), "mask": batch.mask.byte(),
                       "size": batch.size, "aspect": batch.aspect}
            write_shard(path, {name: value.cpu() for name, value in tensors.items()},
                        {"latent_space": "sd", "caption_tokens": str(captions.caption_tokens), "edges": "none"})
