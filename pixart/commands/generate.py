"""python -m pixart generate: images from a prompt."""
import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..accelerate.methods import CACHE_METHODS
from ..config import VARIANTS
from ..dtypes import COMPUTE_DTYPES, dtype_or_auto
from ..sampling.samplers import SAMPLERS
from ..text.long import check_mode
from . import pt_dit
from .arguments import (
    add_bits,
    add_device,
    add_long,
    add_no_metadata,
    add_prompt,
    negative_of,
    refuse_guidance,
    refuse_missing_negative,
    refuse_silent_negative,
    require_prompt,
    saved_prompt,
    size,
)
from .numbers import drawn_seed, finite_number, positive_whole, seed_or_random
from .places import require_file_place, require_other_place
from .start_image import add_image_options, arguments_of, read_start, require_image, size_of

if TYPE_CHECKING:
    import torch

    from ..accelerate.choice import CacheChoice
    from ..accelerate.plan import SamplingJob
    from ..config import PixArtConfig
    from ..control.control_image import ControlImage
    from ..generation.pipeline import Pipeline
    from ..model.policy import Policy
    from ..text.encoded import Encoded

logger = logging.getLogger(__name__)

# Options that have an effect only with --control, and their defaults.
OF_CONTROL: dict[str, object] = {"controlnet": None, "hed": None, "edges": "canny", "strength": 1.0}
EDGE_CHOICES = ("canny", "soft", "hed", "none", "invert")
MINI_DEFAULT = "that of PixArt-mini"


def add_options(command: argparse.ArgumentParser) -> None:
    add_prompt(command)
    command.add_argument("--out", type=Path, default=Path("pixart.png"), metavar="FILE",
                         help="output file; further images get -1, -2, ... before the extension (default: pixart.png)")
    add_no_metadata(command)
    add_files(command)
    _add_sampling(command)
    _add_cache(command)
    add_image_options(command)
    _add_control(command)


def add_files(command: argparse.ArgumentParser, embeddings: bool = True) -> None:
    """embeddings: whether a prompt that was encoded before can be used."""
    files = command.add_argument_group("files")
    files.add_argument("--model", type=Path, help="transformer, a file or folder; that of a diffusers "
                                                     "pipeline brings VAE and T5 (default: PixArt-mini)")
    files.add_argument("--vae", type=Path,
                       help=f"VAE, a .safetensors file or diffusers folder (default: {MINI_DEFAULT})")
    text = files.add_mutually_exclusive_group()
    text.add_argument("--t5", type=Path, help=f"T5 encoder, a file or folder (default: {MINI_DEFAULT})")
    if embeddings:
        text.add_argument("--embeddings", type=Path, metavar="FILE", help="a prompt saved by `encode`, instead of T5")
    add_long(files)
    files.add_argument("--variant", choices=("auto", *VARIANTS), default="auto",
                       help="variant of the model, if its weights do not determine it (default: auto)")
    files.add_argument("--lora", type=Path, nargs="+", default=[], metavar="FILE", help="LoRA files or peft folders")
    files.add_argument("--lora-strength", type=finite_number, default=1.0, metavar="S",
                       help="strength of the LoRAs (default: 1, as trained)")
    files.add_argument("--dtype", choices=("auto", *COMPUTE_DTYPES), default="auto",
                       help="precision of the transformer (default: bf16 on a GPU, on a CPU whichever is faster)")
    files.add_argument("--compile", action="store_true", help="compile the transformer's blocks: the first image of "
                                                              "a size takes longer, later ones less")
    add_bits(files, "8; 16 for the small one of PixArt-mini and on Apple GPUs")
    add_device(files)


def _add_sampling(command: argparse.ArgumentParser) -> None:
    names = "; ".join(f"{name}: {sampler.title}" for name, sampler in SAMPLERS.items())
    steps = ", ".join(f"{name} {sampler.steps}" for name, sampler in SAMPLERS.items())
    guided = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.guided)
    rules = dict.fromkeys(rule for sampler in SAMPLERS.values() for rule in sampler.rules)
    sampling = command.add_argument_group("sampling")
    sampling.add_argument("--sampler", choices=("auto", *SAMPLERS), default="auto",
                          help="auto: what the checkpoint was made for, by its file or its name, dpm where neither "
                               f"says anything; {names} (default: auto)")
    sampling.add_argument("--steps", type=positive_whole, metavar="N",
                          help=f"sampling steps (default: {steps})")
    sampling.add_argument("--guidance", type=finite_number, metavar="W",
                          help=f"how strictly the prompt is followed, with --sampler {guided}; 1 for none "
                               "(default: 4.5; with --sampler auto that of the checkpoint, 2.5 for PixArt-mini)")
    negative = sampling.add_mutually_exclusive_group()
    negative.add_argument("--negative", default="", metavar="TEXT",
                          help=f"what to avoid, with --sampler {guided}; with others it needs --nag")
    negative.add_argument("--negative-embeddings", type=Path, metavar="FILE",
                          help="the same, saved by `encode`; guidance with --embeddings needs it")
    sampling.add_argument("--nag", type=finite_number, default=1.0, metavar="S",
                          help="scale of normalized attention guidance (NAG), so that --negative works with any "
                               "sampler, few-step ones too; 5 is usual (default: 1, off)")
    sampling.add_argument("--rule", choices=tuple(rules),
                          help="rule for the timesteps (default: official)")
    sampling.add_argument("--size", type=size, metavar="WxH",
                          help="width x height in pixels (default: that of --image, else the training resolution)")
    sampling.add_argument("--seed", type=seed_or_random, default=0, metavar="N",
                          help="seed of the noise; the same seed gives the same image, also a negative one such as -1; "
                               "random: a new one each time, which is printed (default: 0)")
    sampling.add_argument("--noise", type=Path, metavar="FILE",
                          help="initial noise saved by `reno`; use its --seed, --size, --sampler and --steps too")
    sampling.add_argument("--count", type=positive_whole, default=1, metavar="N",
                          help="number of images; seeds count up from --seed (default: 1)")
    sampling.add_argument("--input-bits", type=int, choices=(6, 8), help="round activations to 6 or 8 bits, to see "
                                                                         "the loss of quality; saves nothing")
    sampling.add_argument("--batch", type=positive_whole, default=4, metavar="N",
                          help="images at once; more need more memory (default: 4)")


def _add_cache(command: argparse.ArgumentParser) -> None:
    cache = command.add_argument_group("reuse of work from step to step")
    cache.add_argument("--cache", choices=tuple(CACHE_METHODS), help="; ".join(
        f"{name}: {method.title}" for name, method in CACHE_METHODS.items()))
    cache.add_argument("--budget", metavar="Nx", help="with --cache: factor by which the work is reduced (default: "
                                                      "2x)")
    cache.add_argument("--ecad", type=Path, metavar="JSON", help="an ECAD schedule, instead of --cache; it fits one "
                                                                 "number of --steps and one model depth")
    cache.add_argument("--pooled-blocks", type=positive_whole, metavar="N", help="replace self-attention in the "
                                                                                 "first N blocks by the mean of its "
                                                                                 "values (the part of FlexDiT that "
                                                                                 "needs no training); also with "
                                                                                 "--cache")
    cache.add_argument("--feedback", type=Path, metavar="FILE", help="inner loop feedback (ILF) for this model, with "
                                                                     "--sampler ddim: fewer steps, each one longer")


def feedback_policies(args: argparse.Namespace, pipe: "Pipeline", sampler: str) -> "list[Policy]":
    """What --feedback asks for, checked against the model. ValueError where it cannot work."""
    if args.feedback is None:
        return []
    from ..checkpoint.feedback import load_feedback
    from ..model.feedback import PlacedInnerLoop

    if args.cache or args.ecad:
        raise ValueError("--feedback and --cache do not go together: a cache would answer in its place; leave one out")
    if sampler != "ddim":
        raise ValueError(f"--feedback is trained for --sampler ddim, not {sampler}; give that")
    feedback = load_feedback(args.feedback)
    feedback.check(pipe.config)
    return [PlacedInnerLoop(feedback)]


def pooling_policies(args: argparse.Namespace, pipe: "Pipeline") -> "list[Policy]":
    """What --pooled-blocks asks for."""
    if args.pooled_blocks is None:
        return []
    from ..accelerate.pooled_values import PooledValues

    return [PooledValues(pipe.config, args.pooled_blocks)]


def round_activations(args: argparse.Namespace, pipe: "Pipeline") -> None:
    """What --input-bits asks for, on the transformer of the pipeline."""
    if args.input_bits is None:
        return
    from ..quantize.activations import round_inputs

    if args.compile:
        raise ValueError("--input-bits and --compile do not go together; leave one out")
    if pipe.t5 is not None:
        pipe.t5.make_room(False)
    round_inputs(pipe.transformer, args.input_bits)


def cache_choice(args: argparse.Namespace) -> "CacheChoice | None":
    """What --cache, --budget and --ecad ask for. ValueError for options that have no effect."""
    from ..accelerate.budget import budget_of
    from ..accelerate.choice import CacheChoice

    if args.ecad and (args.cache or args.budget):
        raise ValueError("--ecad brings its own schedule; leave out --cache and --budget")
    if args.budget and not args.cache:
        raise ValueError("--budget needs --cache, the method to be set")
    if args.ecad:
        return CacheChoice("ecad", file=args.ecad)
    return CacheChoice(args.cache, budget_of(args.budget or "2x")) if args.cache else None


def cache_policies(choice: "CacheChoice | None", job: "SamplingJob") -> "list[Policy]":
    """The policies of the job, their setting printed."""
    if choice is None:
        return []
    plan, line = choice.plan(job)
    print(line)
    return plan.make()


def _add_control(command: argparse.ArgumentParser) -> None:
    control = command.add_argument_group("control")
    control.add_argument("--control", type=Path, metavar="IMAGE", help="image whose edges the result follows")
    control.add_argument("--edges", choices=EDGE_CHOICES, default="canny",
                         help="edge detector; none: IMAGE already is an edge map, white on black; invert: black on "
                              "white (default: canny)")
    control.add_argument("--controlnet", type=Path, metavar="FILE",
                         help=f"ControlNet, a file or folder (default: {MINI_DEFAULT})")
    control.add_argument("--hed", type=Path, metavar="FILE", help="ControlNetHED.pth, for --edges hed")
    control.add_argument("--strength", type=finite_number, default=1.0, metavar="S",
                         help="strength of the control, 0 for none (default: 1)")


def run(args: argparse.Namespace) -> None:
    """Generate and save images, a batch at a time; print what became of the prompt and where the images lie."""
    from ..accelerate.plan import SamplingJob
    from ..files.images import format_of
    from .progress import Bars

    require_prompt(args)
    require_file_place(args.out)
    require_other_place(args.out, args.control, args.image, args.mask)
    format_of(args.out)
    require_parts(args)
    require_effects(args)
    args.seed = drawn_seed(args.seed)
    if (opened := pt_dit.pt_dit_in(args)) is not None:
        pt_dit.generate_with_pt_dit(args, opened)
        return
    start, pipe = read_start(args), open_pipeline(args)
    width, height = size_of(args, start, pipe.config.resolution)
    control, noise = chosen_control(args, pipe.config, width, height), noise_of_one(args)
    choice = cache_choice(args)
    wanted = pipe.wanted(args.sampler, args.steps, args.guidance, args.rule)
    refuse_guidance(args, wanted.sampler)
    guided = SAMPLERS[wanted.sampler].guided and wanted.guidance != 1
    negative = negative_of(args)
    prompt = saved_prompt(args, guided) or pipe.encode(args.prompt, None, args.long, args.inner_ends)
    passes = SAMPLERS[wanted.sampler].times(wanted.steps, wanted.rule, 1.0 if start is None else start.denoise)
    job = SamplingJob.of(pipe.config, len(passes), height, width, prompt.mask.shape[1], guided)
    policies = cache_policies(choice, job) + feedback_policies(args, pipe, wanted.sampler)
    policies += pooling_policies(args, pipe)
    round_activations(args, pipe)
    told = False
    for first in range(0, args.count, args.batch):
        count = min(args.batch, args.count - first)
        with Bars() as bars:
            images = pipe(repeated(prompt, count), negative, steps=args.steps, seed=args.seed + first, width=width,
                          height=height, sampler=args.sampler, guidance=args.guidance, rule=args.rule, control=control,
                          batch=count, progress=bars, policies=policies, noise=noise, nag=args.nag,
                          **arguments_of(start))
        if not told:
            print(images.reports[0].summary, *images.reports[0].notes, sep="\n")
            told = True
        for path in images.save(args.out, first, args.metadata):
            print(path, flush=True)


def require_parts(args: argparse.Namespace) -> None:
    """Take from a diffusers pipeline's folder what is not named. ValueError for a model without what belongs to it."""
    from ..generation.pipeline_files import parts_in

    args.vae, t5 = parts_in(args.model, args.vae, args.t5)
    args.t5 = t5 if args.embeddings is None else None
    for name, given in (("--vae", args.vae), ("a T5: --t5 or --embeddings", args.t5 or args.embeddings)):
        if args.model and not given:
            raise ValueError(f"--model needs {name}: those of PixArt-mini only fit PixArt-mini. Only the folder of a "
                             "whole diffusers pipeline brings its own")


def require_lora(args: argparse.Namespace) -> None:
    """ValueError for the strength of no LoRA."""
    if args.lora_strength != 1 and not args.lora:
        raise ValueError("--lora-strength has no effect without --lora")


def require_effects(args: argparse.Namespace) -> None:
    """ValueError for options that would change nothing beside the others."""
    require_lora(args)
    require_image(args)
    given = [name for name, unset in OF_CONTROL.items() if getattr(args, name) != unset]
    if given and args.control is None:
        raise ValueError(f"--{given[0]} has no effect without --control, the image whose edges are followed")
    if args.nag != 1:
        refuse_missing_negative(args, "--nag")
    if args.hed and args.edges != "hed":
        raise ValueError(f"--hed has no effect with --edges {args.edges}; give --edges hed, or leave it out")


def open_pipeline(args: argparse.Namespace) -> "Pipeline":
    """The files that the options name, checked."""
    from ..generation.pipeline import Pipeline

    require_parts(args)
    if args.control and args.model and not args.controlnet:
        raise ValueError("--control with --model needs --controlnet: that of PixArt-mini only fits PixArt-mini")
    if args.sampler != "auto":
        refuse_guidance(args, args.sampler)
    refuse_silent_negative(args)
    check_mode(args.long, args.inner_ends)
    if args.embeddings and args.long != "truncate":
        raise ValueError(f"--long {args.long} has no effect with --embeddings; give it to `encode`, which makes these")
    from ..mini import SHIPPED
    dtype = dtype_or_auto(args.dtype)
    return Pipeline.open(args.model, args.vae, args.t5 or (SHIPPED.t5 if args.model else None), args.device,
                         dtype, variant=args.variant, bits=args.bits, controlnet=args.controlnet,
                         loras=[(path, args.lora_strength) for path in args.lora], keep_t5=False, compile=args.compile)


def noise_of_one(args: argparse.Namespace) -> "torch.Tensor | None":
    """The noise that --noise names."""
    if args.noise is None:
        return None
    from ..reward.record import load_noise

    if args.count != 1:
        raise ValueError("--noise is that of one image; leave --count out")
    return load_noise(args.noise)


def repeated(caption: "Encoded", count: int) -> "Encoded":
    from ..text.encoded import join_encoded

    return join_encoded([caption] * count)


def chosen_control(args: argparse.Namespace, config: "PixArtConfig", width: int, height: int) -> "ControlImage | None":
    """The edge map that the options ask for, found at the size of the new image, as the model's ControlNet knows it."""
    if args.control is None:
        return None
    from ..control.control_image import ControlImage
    from ..control.edges import edge_maps
    from ..control.hed import hed_edges, load_hed
    from ..control.images import fit
    from ..files.images import read_image
    from ..mini import is_mini
    from ..mini.images import CANNY

    image = fit(read_image(args.control), width, height)
    if args.edges == "hed":
        if not args.hed:
            raise ValueError("--edges hed needs --hed, the file ControlNetHED.pth")
        return ControlImage(hed_edges(load_hed(args.hed), image), args.strength)
    as_trained = CANNY if args.edges == "canny" and is_mini(config) else {}
    return ControlImage(edge_maps(image, args.edges, **as_trained), args.strength)
