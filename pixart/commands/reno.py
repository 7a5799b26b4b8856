"""python -m pixart reno: noise whose picture scores higher."""
import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..dtypes import dtype_named
from ..reward.search import WAYS
from ..sampling.samplers import FEW_STEP_SAMPLERS, SAMPLERS
from .arguments import add_prompt, finite_number, positive_whole, require_prompt, size
from .generate import add_files, open_pipeline, saved_prompt
from .places import require_file_place

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipeline import Pipeline
    from ..reward.optimise import Iteration, NoiseRecipe, OptimisedNoise, WatchIteration
    from ..reward.protocol import WeightedSum
    from .progress import Bars

logger = logging.getLogger(__name__)


def add_options(command: argparse.ArgumentParser) -> None:
    add_prompt(command)
    command.add_argument("--out", type=Path, default=Path("reno.png"), metavar="FILE", help="picture to write; beside "
                         "it go -start.png, -noise.safetensors, -rewards.png and .json (default: reno.png)")
    add_files(command)
    _add_rewards(command)
    _add_drawing(command)
    _add_recipe(command)


def _add_rewards(command: argparse.ArgumentParser) -> None:
    rewards = command.add_argument_group("rewards")
    rewards.add_argument("--reward", action="append", default=[], metavar="R", help="NAME, NAME:WEIGHT, NAME=PATH or "
                         "NAME=PATH:WEIGHT, NAME one of judge (PixArt-mini only), clip, pickscore, hpsv2, imagereward; "
                         "may be given several times (default: judge with PixArt-mini)")
    rewards.add_argument("--rewards", type=Path, metavar="DIR", help="folder that holds them: clip and pickscore are "
                         "folders of Hugging Face in it, HPS_v2.1_compressed.pt a file, imagereward a folder")
    rewards.add_argument("--reward-tokenizer", type=Path, metavar="DIR", help="CLIP's vocab.json and merges.txt, where "
                         "they do not lie beside the weights")
    rewards.add_argument("--reward-dtype", choices=("fp32", "bf16"), default="fp32",
                         help="precision of the rewards; bf16 takes half the memory (default: fp32)")
    rewards.add_argument("--relevance", type=finite_number, default=1.0, metavar="W",
                         help="rewards of the CLIP type: how "
                         "much counts what all prompts share, 0..1; 0.3 in LongAlign, with --common (default: 1, all)")
    rewards.add_argument("--common", type=Path, metavar="FILE", help="prompts, one a line, to find out what all share")


def _add_drawing(command: argparse.ArgumentParser) -> None:
    drawing = command.add_argument_group("drawing")
    drawing.add_argument("--sampler", choices=tuple(SAMPLERS), default="lcm",
                         help=f"one that can be differentiated: {', '.join(FEW_STEP_SAMPLERS)} (default: lcm)")
    drawing.add_argument("--steps", type=positive_whole, metavar="N",
                         help="passes through the model (default: the sampler's)")
    drawing.add_argument("--rule", choices=("official", "diffusers"), default="official",
                         help="which published rule chooses the timesteps (default: official)")
    drawing.add_argument("--size", type=size, metavar="WxH", help="in pixels (default: what the model was trained on)")
    drawing.add_argument("--seed", type=int, default=0, help="chooses the noise to begin with (default: 0)")
    drawing.add_argument("--noise", type=Path, metavar="FILE", help="begin with this, from an earlier run")


def _add_recipe(command: argparse.ArgumentParser) -> None:
    recipe = command.add_argument_group("optimisation")
    recipe.add_argument("--by", choices=WAYS, default=WAYS[0],
                        help="gradient: ReNO; without gradients, three times as fast and with less memory: the best of "
                        "--iterations noises, or a random search around the best (default: gradient)")
    recipe.add_argument("--iterations", type=positive_whole, default=50, metavar="N",
                        help="pictures drawn (default: 50)")
    recipe.add_argument("--rate", type=finite_number, help="learning rate (default: 5)")
    recipe.add_argument("--clip", type=finite_number, help="largest norm of a gradient (default: 0.1)")
    recipe.add_argument("--regularisation", type=finite_number, metavar="W",
                        help="how strongly the noise is held at the length of Gaussian noise (default: 0.01)")


def run(args: argparse.Namespace) -> None:
    """Optimise, save, and say what came of it. Ctrl-C ends it with the best so far."""
    from ..pictures import format_of
    from ..reward.record import load_noise
    from ..reward.reno import reno
    from .progress import Bars

    require_prompt(args)
    require_file_place(args.out)
    format_of(args.out)
    args.negative, args.guidance, args.control, args.controlnet = "", 1.0, None, None
    recipe = recipe_of(args)
    begin = None if args.noise is None else load_noise(args.noise)
    pipe = open_pipeline(args)
    reward = open_reward(args, pipe)
    width, height = args.size or (pipe.config.resolution, pipe.config.resolution)
    with Bars() as bars:
        prompt = saved_prompt(args, False) or pipe.encode(args.prompt, bars, args.long, args.inner_ends)
        found = reno(pipe, prompt, reward, recipe, steps=args.steps, seed=args.seed,
                     width=width, height=height, sampler=args.sampler, rule=args.rule, noise=begin,
                     watch=progress_watch(bars, recipe, args.out), by=args.by)
    write_result(args, recipe, prompt.reports[0].prompt, found, reward)


def recipe_of(args: argparse.Namespace) -> "NoiseRecipe":
    """ValueError for what only gradients know, without them."""
    from ..reward.optimise import NoiseRecipe

    names = ("rate", "clip", "regularisation")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if given and args.by != "gradient":
        raise ValueError(f"--{next(iter(given))} has no effect with --by {args.by}; leave it out")
    return NoiseRecipe(args.iterations, **given)


def open_reward(args: argparse.Namespace, pipe: "Pipeline") -> "WeightedSum":
    """What --reward names, on the device of the pipeline."""
    from ..prompts import read_lines
    from ..reward.embedding import EmbeddingReward
    from ..reward.table import RewardChoice, open_rewards

    if not args.reward and args.model:
        raise ValueError("which reward? --model needs --reward, such as --reward hpsv2; judge reads PixArt-mini only")
    if (args.relevance != 1) != (args.common is not None):
        raise ValueError("--relevance and --common go together: what all prompts share is found out from --common")
    choices = [RewardChoice.parse(text) for text in args.reward or ["judge"]]
    reward = open_rewards(choices, args.rewards, args.reward_tokenizer, pipe.device, dtype_named(args.reward_dtype))
    if args.common is not None:
        lines = read_lines(args.common, "prompts")
        for part in reward.rewards:
            if isinstance(part, EmbeddingReward):
                part.reweight(args.relevance, lines)
    return reward


def progress_watch(bars: "Bars", recipe: "NoiseRecipe", out: Path) -> "WatchIteration":
    """A bar, and the picture that it began with, saved at once."""
    from ..pictures import save_picture

    def watch(done: "Iteration", pictures: "Tensor") -> None:
        bars(f"optimising, reward {done.best[0]:.3g}", done.number, recipe.iterations)
        if done.number == 1:
            save_picture(named_beside(out, "-start", out.suffix), pictures[0].float().cpu())
    return watch


def write_result(args: argparse.Namespace, recipe: "NoiseRecipe", prompt: str, found: "OptimisedNoise",
                 reward: "WeightedSum") -> None:
    from ..pictures import save_picture
    from ..reward.record import history_summary, plot, save_log, save_noise

    about = {"prompt": prompt, "seed": args.seed, "sampler": args.sampler, "weights": reward.weights, "by": args.by,
             "relevance": args.relevance}
    if args.by == "gradient":
        about |= {"rate": recipe.rate, "clip": recipe.clip, "regularisation": recipe.regularisation}
    print(("stopped; " if found.stopped else "") + history_summary(found.history))
    print(save_picture(args.out, found.pictures[0]))
    print(save_noise(named_beside(args.out, "-noise", ".safetensors"), found.noise, about))
    print(save_log(args.out.with_suffix(".json"), found, about))
    try:
        print(plot(named_beside(args.out, "-rewards", ".png"), found.history, reward.weights))
    except ImportError as error:        # all else is there already
        logger.warning("%s", error)


def named_beside(path: Path, ending: str, suffix: str) -> Path:
    return path.with_name(f"{path.stem}{ending}{suffix}")
