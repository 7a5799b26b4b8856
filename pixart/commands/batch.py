"""python -m pixart batch: images for a list of prompts."""
import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..sampling.samplers import SAMPLERS
from ..text.long import check_mode
from .arguments import add_no_metadata, size
from .generate import add_files, require_lora
from .numbers import finite_number, positive_whole
from .places import require_folder_place

if TYPE_CHECKING:
    from ..batch.generate import GenerationSettings
    from ..batch.run import Workers
    from ..files.prompts import PromptLine
    from ..generation.pipeline import Pipeline


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("prompts", type=Path, help="list of prompts: .txt, .csv or .jsonl, see docs/headless.md")
    command.add_argument("--out", type=Path, required=True, metavar="DIR",
                         help="output folder; the same command resumes an interrupted run")
    command.add_argument("--shards", type=positive_whole, metavar="N",
                         help="write tar files of N images, for WebDataset")
    seeds = command.add_mutually_exclusive_group()
    seeds.add_argument("--seeds", metavar="N..M", help="seeds for each prompt: 1..4 or 1,5,9")
    seeds.add_argument("--seed", type=int, default=0, metavar="N",
                       help="seed of the first prompt; the others count up (default: 0)")
    add_no_metadata(command)
    add_files(command, embeddings=False)
    sampling = command.add_argument_group("sampling")
    sampling.add_argument("--sampler", choices=("auto", *SAMPLERS), default="auto",
                          help="auto: what the checkpoint was made for, by its file or its name, dpm where neither "
                               "says anything (default: auto)")
    sampling.add_argument("--steps", type=positive_whole, metavar="N",
                          help="(default: the sampler's usual number)")
    sampling.add_argument("--guidance", type=finite_number, metavar="W",
                          help="scale of guided samplers (default: that of the checkpoint, else 4.5)")
    sampling.add_argument("--nag", type=finite_number, default=1.0, metavar="S", help="scale of normalized attention "
                          "guidance, so that negative prompts work with any sampler; 5 is usual (default: 1, off)")
    sampling.add_argument("--rule", help="rule for the timesteps (default: official)")
    sampling.add_argument("--size", type=size, metavar="WxH", help="for prompts without a size (default: the training "
                                                                   "resolution)")
    sampling.add_argument("--batch", type=positive_whole, default=4, metavar="N", help="images at once (default: 4)")
    where = command.add_argument_group("where").add_mutually_exclusive_group()
    where.add_argument("--devices", metavar="A,B", help="one process each, such as cuda:0,cuda:1 (default: every GPU)")
    where.add_argument("--ray", nargs="?", const="auto", metavar="ADDRESS", help="use a Ray cluster started with "
                                                                                 "`ray start` (default address: that "
                                                                                 "of this machine)")
    command.add_argument("--workers", type=positive_whole, metavar="N",
                         help="actors on the Ray cluster (default: one per GPU)")


def run(args: argparse.Namespace) -> None:
    """Generate what is missing, and print how it went. Raises ValueError where something failed."""
    from ..batch.generate import opened
    from ..batch.run import run_batch
    from ..batch.tasks import tasks_of
    from ..client.graph import seeds_of
    from ..files.prompts import read_prompts
    from .progress import Bars

    if args.device and (args.devices or args.ray):
        raise ValueError("--device names one device; leave it out beside --devices and --ray")
    if args.workers and not args.ray:
        raise ValueError("--workers is for --ray; for one machine name --devices")
    require_folder_place(args.out)
    lines, settings = read_prompts(args.prompts), generation_settings(args)
    devices = None if args.ray else devices_of(args)
    pipe = opened(settings, None if devices is None else devices[0])
    check_generation(pipe, settings, lines)
    side = pipe.config.resolution
    width, height = args.size or (side, side)
    tasks = tasks_of(lines, seeds_of(args.seeds) if args.seeds else None, args.seed, width, height)
    with Bars() as bars:
        summary = run_batch(tasks, settings, args.out, workers_of(args, settings, devices), args.batch, args.shards,
                            bars)
    print(summary.line)
    if summary.failed:
        raise ValueError(f"{len(summary.failed)} of {summary.total} images failed; the reasons are in {args.out}, the "
                         "same command tries them again")


def generation_settings(args: argparse.Namespace) -> "GenerationSettings":
    from ..batch.generate import GenerationSettings
    from ..generation.pipeline_files import parts_in

    check_mode(args.long, args.inner_ends)
    require_lora(args)
    vae, t5 = parts_in(args.model, args.vae, args.t5)
    places = {name: str(Path(path).expanduser().absolute()) if path else None
              for name, path in (("model", args.model), ("vae", vae), ("t5", t5))}
    loras = tuple((str(path.expanduser().absolute()), args.lora_strength) for path in args.lora)
    return GenerationSettings(**places, variant=args.variant, loras=loras, dtype=args.dtype, bits=args.bits,
                              sampler=args.sampler, steps=args.steps, guidance=args.guidance, rule=args.rule,
                              nag=args.nag, long=args.long, inner_ends=args.inner_ends, compile=args.compile,
                              metadata=args.metadata)


def check_generation(pipe: "Pipeline", settings: "GenerationSettings", lines: Sequence["PromptLine"]) -> None:
    """Refuse before anything is generated what would fail for every image, or for a line of the list. ValueError."""
    wanted = pipe.wanted(settings.sampler, settings.steps, settings.guidance, settings.rule)
    chosen = SAMPLERS[wanted.sampler]
    chosen.times(wanted.steps, wanted.rule)
    if settings.guidance not in (None, 1) and not chosen.guided:
        raise ValueError(f"--guidance has no effect with --sampler {wanted.sampler}, which works without guidance")
    negative = next((line.line for line in lines if line.negative), None)
    if negative is not None and settings.nag == 1 and not (chosen.guided and wanted.guidance != 1):
        because = "--guidance 1" if chosen.guided else f"--sampler {wanted.sampler}"
        raise ValueError(f"line {negative} has a negative prompt, which has no effect with {because}; leave it out, "
                         "give --nag 5, or choose a guided sampler and another guidance")


def devices_of(args: argparse.Namespace) -> list[str]:
    """The devices of this machine to generate on. ValueError for one that is not there."""
    from ..device import checked_device

    named = args.devices.split(",") if args.devices else all_devices(args.device)
    return [str(checked_device(name.strip())) for name in named]


def workers_of(args: argparse.Namespace, settings: "GenerationSettings", devices: list[str] | None) -> "Workers":
    """Where images are generated; devices: None for a Ray cluster."""
    from ..batch import workers

    if devices is None:
        return lambda groups: workers.on_ray(settings, args.ray, args.workers, groups)
    if len(devices) > 1:
        return partial(workers.processes, settings, devices)
    return partial(workers.here, settings, devices[0])


def all_devices(chosen: str | None) -> list[str]:
    """That one, or every GPU, or what else there is."""
    import torch

    from ..device import best_device

    if chosen:
        return [chosen]
    count = torch.cuda.device_count()
    return [f"cuda:{index}" for index in range(count)] if count > 1 else [str(best_device())]
