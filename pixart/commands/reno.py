"""python -m pixart reno: noise whose image scores higher."""
import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..dtypes import dtype_named
from ..reward.search import WAYS
from ..sampling.samplers import FEW_STEP_RULES, FEW_STEP_SAMPLERS, SAMPLERS
from .arguments import add_no_metadata, add_prompt, require_prompt, saved_prompt, size
from .generate import add_files, open_pipeline
from .numbers import finite_number, positive_whole
from .places import require_file_place

if TYPE_CHECKING:
    from torch import Tensor

    from ..generation.pipeline import Pipeline
    from ..generation.request import Request
    from ..reward.optimise import Iteration, NoiseRecipe, OptimisedNoise, WatchIteration
    from ..reward.protocol import WeightedSum
    from .progress import Bars

logger = logging.getLogger(__name__)


def add_options(command: argparse.ArgumentParser) -> None:
    add_prompt(command)
    command.add_argument("--out", type=Path, default=Path("reno.png"), metavar="FILE", help="output file; "
                                                                                            "-start.png, "
                                                                                            "-noise.safetensors, "
                                                                                            "-rewards.png and .json "
                                                                                            "are written next to it "
                                                                                            "(default: reno.png)")
    add_no_metadata(command)
    add_files(command)
    _add_rewards(command)
    _add_sampling(command)
    _add_recipe(command)


def _add_rewards(command: argparse.ArgumentParser) -> None:
    rewards = command.add_argument_group("rewards")
    rewards.add_argument("--reward", action="append", default=[], metavar="R", help="NAME, NAME:WEIGHT, NAME=PATH or "
                         "NAME=PATH:WEIGHT, NAME one of judge (PixArt-mini only), clip, pickscore, hpsv2, imagereward; "
                         "may be given several times (default: judge with PixArt-mini)")
    rewards.add_argument("--rewards", type=Path, metavar="DIR", help="folder of the reward models: Hugging Face "
                                                                     "folders clip and pickscore, the file "
                                                                     "HPS_v2.1_compressed.pt, folder imagereward")
    rewards.add_argument("--reward-tokenizer", type=Path, metavar="DIR", help="folder with CLIP's vocab.json and "
                                                                              "merges.txt, if they are not next to "
                                                                              "the weights")
    rewards.add_argument("--reward-dtype", choices=("fp32", "bf16"), default="fp32",
                         help="precision of the reward models; bf16 needs half the memory (default: fp32)")
    rewards.add_argument("--relevance", type=finite_number, default=1.0, metavar="W",
                         help="CLIP-type rewards: weight of what all prompts have in common, 0 to 1, with --common; "
                              "0.3 in LongAlign (default: 1)")
    rewards.add_argument("--common", type=Path, metavar="FILE", help="prompts, one per line, to estimate what they "
                                                                     "have in common")


def _add_sampling(command: argparse.ArgumentParser) -> None:
    sampling = command.add_argument_group("sampling")
    sampling.add_argument("--sampler", choices=("auto", *SAMPLERS), default="auto",
                          help="auto: what the checkpoint was made for, by its file or its name; one that can be "
                               f"differentiated: {', '.join(FEW_STEP_SAMPLERS)} (default: auto)")
    sampling.add_argument("--steps", type=positive_whole, metavar="N",
                          help="sampling steps (default: those of the checkpoint, else of the sampler)")
    sampling.add_argument("--rule", choices=FEW_STEP_RULES,
                          help="rule for the timesteps; lcm: official or diffusers, tdm: official or tdm-800, dmd: no "
                               "effect (default: that of the checkpoint, else official)")
    sampling.add_argument("--size", type=size, metavar="WxH", help="width x height in pixels (default: the training "
                                                                   "resolution)")
    sampling.add_argument("--seed", type=int, default=0, help="seed of the initial noise (default: 0)")
    sampling.add_argument("--noise", type=Path, metavar="FILE", help="initial noise, saved by an earlier run")


def _add_recipe(command: argparse.ArgumentParser) -> None:
    recipe = command.add_argument_group("optimisation")
    recipe.add_argument("--by", choices=WAYS, default=WAYS[0],
                        help="gradient: ReNO; best-of-n: the best of --iterations noises; search: random search "
                             "around the best; both three times as fast and with less memory (default: gradient)")
    recipe.add_argument("--iterations", type=positive_whole, default=50, metavar="N",
                        help="number of images generated (default: 50)")
    recipe.add_argument("--rate", type=finite_number, help="learning rate (default: 5)")
    recipe.add_argument("--clip", type=finite_number, help="maximum gradient norm (default: 0.1)")
    recipe.add_argument("--regularisation", type=finite_number, metavar="W",
                        help="weight of keeping the norm of the noise close to that of Gaussian noise (default: 0.01)")


def run(args: argparse.Namespace) -> None:
    """Optimise, save, and say what came of it. Ctrl-C ends it with the best so far."""
    from ..files.images import format_of
    from ..generation.facts import image_facts_of
    from ..reward.record import load_noise
    from ..reward.reno import reno, request_of
    from .progress import Bars

    require_prompt(args)
    require_file_place(args.out)
    format_of(args.out)
    args.negative, args.guidance, args.nag, args.control, args.controlnet = "", 1.0, 1.0, None, None
    args.negative_embeddings = None
    recipe = recipe_of(args)
    begin = None if args.noise is None else load_noise(args.noise)
    pipe = open_pipeline(args)
    width, height = args.size or (None, None)
    saved = saved_prompt(args, False)
    request = request_of(pipe, saved or args.prompt, begin, steps=args.steps, seed=args.seed, width=width,
                         height=height, sampler=args.sampler, rule=args.rule)
    reward = open_reward(args, pipe)
    with Bars() as bars:
        prompt = saved or pipe.encode(args.prompt, bars, args.long, args.inner_ends)
        first, best = (image_facts_of(request, pipe.files, own_noise=own)[0].parameters if args.metadata else None
                       for own in (begin is not None, True))
        found = reno(pipe, prompt, reward, recipe, steps=args.steps, seed=args.seed,
                     width=width, height=height, sampler=args.sampler, rule=args.rule, noise=begin,
                     watch=progress_watch(bars, recipe, args.out, first), by=args.by)
    write_result(args, recipe, request, found, reward, best)


def recipe_of(args: argparse.Namespace) -> "NoiseRecipe":
    """ValueError for settings of the gradient method with another --by."""
    from ..reward.optimise import NoiseRecipe

    names = ("rate", "clip", "regularisation")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if given and args.by != "gradient":
        raise ValueError(f"--{next(iter(given))} has no effect with --by {args.by}; leave it out")
    return NoiseRecipe(args.iterations, **given)


def open_reward(args: argparse.Namespace, pipe: "Pipeline") -> "WeightedSum":
    """What --reward names, on the device of the pipeline."""
    from ..files.prompts import read_lines
    from ..reward.embedding import reweight_all
    from ..reward.table import RewardChoice, open_rewards

    if not args.reward and args.model:
        raise ValueError("--model needs --reward, such as --reward hpsv2; judge reads PixArt-mini only")
    if (args.relevance != 1) != (args.common is not None):
        raise ValueError("--relevance and --common go together: what all prompts share is estimated from --common")
    choices = [RewardChoice.parse(text) for text in args.reward or ["judge"]]
    reward = open_rewards(choices, args.rewards, args.reward_tokenizer, pipe.device, dtype_named(args.reward_dtype))
    if args.common is not None:
        reweight_all(reward, args.relevance, read_lines(args.common, "prompts"))
    return reward


def progress_watch(bars: "Bars", recipe: "NoiseRecipe", out: Path, parameters: str | None) -> "WatchIteration":
    """A bar, and the image that it began with, saved at once; parameters: how that was made."""
    from ..files.images import save_image

    def watch(done: "Iteration", images: "Tensor") -> None:
        bars(f"optimising, reward {done.best[0]:.3g}", done.number, recipe.iterations)
        if done.number == 1:
            save_image(named_beside(out, "-start", out.suffix), images[0].float().cpu(), parameters)
    return watch


def write_result(args: argparse.Namespace, recipe: "NoiseRecipe", request: "Request", found: "OptimisedNoise",
                 reward: "WeightedSum", parameters: str | None) -> None:
    """All files of the result, each printed; parameters: how its image was made."""
    from ..files.images import save_image
    from ..reward.record import history_summary, plot, save_log, save_noise

    about = {"prompt": request.prompts[0], "seed": args.seed, "sampler": request.sampler, "weights": reward.weights,
             "by": args.by, "relevance": args.relevance}
    if args.by == "gradient":
        about |= {"rate": recipe.rate, "clip": recipe.clip, "regularisation": recipe.regularisation}
    print(("stopped; " if found.stopped else "") + history_summary(found.history))
    print(save_image(args.out, found.images[0], parameters))
    print(save_noise(named_beside(args.out, "-noise", ".safetensors"), found.noise, about))
    print(save_log(args.out.with_suffix(".json"), found, about))
    try:
        print(plot(named_beside(args.out, "-rewards", ".png"), found.history, reward.weights))
    except ImportError as error:        # everything else is written already
        logger.warning("%s", error)


def named_beside(path: Path, ending: str, suffix: str) -> Path:
    return path.with_name(f"{path.stem}{ending}{suffix}")
