"""Values of options, checked as they are read; what several commands share."""
import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..resolution import LEAST_SIDE, MOST_SIDE
from ..sampling.samplers import SAMPLERS
from ..text.fitting import AUTO
from ..text.long import MODES
from ..text.quantized import T5_PRECISIONS, Bits

if TYPE_CHECKING:
    from ..text.encoded import Encoded


def size(text: str) -> tuple[int, int]:
    """"1024x768" -> (width, height)."""
    width, _, height = text.lower().partition("x")
    sides = [int(side) if side.isdecimal() and len(side) < 10 else 0 for side in (width, height)]
    if not LEAST_SIDE <= min(sides) <= max(sides) <= MOST_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write WIDTHxHEIGHT, for example 1024x768, with "
                                         f"sides of {LEAST_SIDE} to {MOST_SIDE} pixels")
    return sides[0], sides[1]


def bits(text: str) -> Bits:
    """A number of bits, or the name of a choice, such as int8 or auto."""
    return int(text) if text.isdecimal() else text


def add_prompt(command: argparse.ArgumentParser) -> None:
    command.add_argument("prompt", nargs="?", help="the prompt; not needed with --embeddings")


def require_prompt(args: argparse.Namespace) -> None:
    """ValueError where neither `prompt` nor `embeddings` says what to generate."""
    if args.prompt is None and args.embeddings is None:
        raise ValueError("the prompt is missing; write it before options that take several values, such as --lora, or "
                         "name a saved one with --embeddings")


def embeddings_of(args: argparse.Namespace) -> "Encoded":
    """The prompt that --embeddings names.

    Raises as `saved_in`, and ValueError for one other than the given prompt.
    """
    saved = saved_in(args.embeddings, "--embeddings")
    told = saved.reports[0].prompt
    if args.prompt is not None and args.prompt != told:
        raise ValueError(f"--embeddings holds another prompt, {told[:60]!r}; leave the prompt out, or encode this one: "
                         f"{args.embeddings}")
    return saved


def saved_prompt(args: argparse.Namespace, guided: bool) -> "Encoded | None":
    """The features that --embeddings names. guided: whether a negative prompt is needed beside them."""
    if args.embeddings is None:
        return None
    found = embeddings_of(args)
    if guided:
        refuse_missing_negative(args, "guidance (not --guidance 1, and not --sampler lcm, tdm or dmd)")
    return found


def saved_in(path: Path, option: str) -> "Encoded":
    """The one prompt in the file that an option names. Raises as `load_embeddings`, and ValueError for several."""
    from ..text.encoded import load_embeddings

    saved = load_embeddings(path)
    if len(saved) != 1:
        raise ValueError(f"{option} holds {len(saved)} prompts, and one is expected; save each in a file of its own: "
                         f"{path}")
    return saved


def negative_of(args: argparse.Namespace) -> "str | Encoded":
    """What --negative or --negative-embeddings says. Raises as `saved_in`."""
    if args.negative_embeddings is None:
        return args.negative
    return saved_in(args.negative_embeddings, "--negative-embeddings")


def refuse_missing_negative(args: argparse.Namespace, why: str) -> None:
    """ValueError for --embeddings without a negative prompt that was encoded too; why: what reads one."""
    if args.embeddings is not None and args.negative_embeddings is None:
        raise ValueError(f"{why} needs a negative prompt, and --embeddings holds none; give --negative-embeddings "
                         "FILE, one that `encode` wrote, of the empty prompt \"\" too")


def negative_option(args: argparse.Namespace) -> str | None:
    """The option that names a negative prompt, if one does."""
    return "--negative" if args.negative else "--negative-embeddings" if args.negative_embeddings else None


def refuse_guidance(args: argparse.Namespace, sampler: str) -> None:
    """ValueError for options of guidance beside a sampler that works without."""
    if SAMPLERS[sampler].guided:
        return
    without = f"has no effect with --sampler {sampler}, which works without guidance"
    if args.guidance not in (None, 1):
        raise ValueError(f"--guidance {without}")
    if (negative := negative_option(args)) and args.nag == 1:
        raise ValueError(f"{negative} {without}; with --nag 5 it has")


def refuse_silent_negative(args: argparse.Namespace) -> None:
    """ValueError for a negative prompt beside --guidance 1, at which nothing reads it."""
    if (negative := negative_option(args)) and args.guidance == 1 and args.nag == 1:
        raise ValueError(f"{negative} has no effect with --guidance 1; leave one of them out, or give --nag 5")


def add_no_metadata(command: argparse._ActionsContainer) -> None:
    command.add_argument("--no-metadata", dest="metadata", action="store_false",
                         help="leave out of the image files how they were made (prompt, seed, steps, model, ...)")


def add_device(command: argparse._ActionsContainer) -> None:
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps or xpu (default: the best available)")


def add_bits(command: argparse._ActionsContainer, default: str) -> None:
    command.add_argument("--bits", type=bits, choices=(AUTO, *T5_PRECISIONS),
                         help="precision of T5; fewer bits need less memory; int8 is for machines without "
                              f"bitsandbytes, auto takes the best that the free memory holds (default: {default})")


def add_long(command: argparse._ActionsContainer) -> None:
    command.add_argument("--long", choices=MODES, default="truncate", help="how to handle prompts longer than the "
                                                                           "training captions: cut them, encode them "
                                                                           "whole, or sentence by sentence (default: "
                                                                           "truncate)")
    command.add_argument("--inner-ends", action="store_true",
                         help="with --long segments: keep the end token of every sentence, not only of the last")
