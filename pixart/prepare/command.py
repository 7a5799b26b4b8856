"""python -m pixart prepare: its options, and what it says while it works."""
import argparse
import os
from pathlib import Path

from ..resolution import ASPECT_RATIOS
from .families import FAMILIES


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `prepare` to the commands of the program."""
    command = commands.add_parser(
        "prepare", help="encode images and captions into training data",
        description="Encode images and captions into training data: text features, latents and edge maps, grouped by "
                    "image shape. If interrupted, run the same command again to continue. Images that cannot be used "
                    "are listed in skipped.jsonl in the output folder.")
    command.add_argument("--source", type=Path, nargs="+", required=True, metavar="S",
                         help="folders of images with captions in .txt files of the same name; lists (.jsonl, .csv, "
                              ".tsv); captions alone, one per line (.txt); WebDataset shards (.tar, or a folder of "
                              "them); data of the official code (folder, .json)")
    command.add_argument("--out", type=Path, required=True, help="output folder")
    command.add_argument("--family", choices=tuple(FAMILIES), required=True,
                         help="family of the model to train (alpha: also for delta)")
    command.add_argument("--resolution", type=int, choices=tuple(ASPECT_RATIOS),
                         help="side of the square image in pixels (mini: 128)")
    command.add_argument("--vae", type=Path, help="VAE file or diffusers folder (mini: its own)")
    command.add_argument("--t5", type=Path, help="T5 encoder file or folder (mini: its own)")
    command.add_argument("--bits", type=int, choices=(16, 8, 4), default=16, help="precision of T5")
    command.add_argument("--null", type=Path, help="the empty caption saved by `encode`, if no T5 is available")
    command.add_argument("--edges", choices=("none", "canny", "soft", "hed"), default="none",
                         help="also prepare edge maps, to train a ControlNet")
    command.add_argument("--hed", type=Path, help="ControlNetHED.pth, for --edges hed")
    command.add_argument("--batch", type=int, default=4, help="images (on a GPU also captions) at a time")
    command.add_argument("--shard", type=int, default=128, help="images per file; an interruption loses at most one "
                                                                "file")
    command.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that read images")
    command.add_argument("--device", help="cpu, cuda or mps (default: the best available)")


def run(args: argparse.Namespace) -> None:
    """Prepare as `args` of `add_parser` say, and print what came out."""
    from ..commands.progress import Bars
    from ..device import checked_device
    from ..mini import SHIPPED
    from .prompts import are_prompts
    from .run import PreparationJob, prepare

    family, mini = FAMILIES[args.family], args.family == "mini"
    if args.resolution is None and not mini:
        raise ValueError(f"--family {args.family} needs --resolution: {', '.join(map(str, family.resolutions))}")
    job = PreparationJob(tuple(args.source), args.out, family, args.resolution or 128,
                         args.vae or (SHIPPED.vae if mini else None),
                         args.t5 or (SHIPPED.t5 if mini else None), args.edges, args.hed, args.null, args.bits,
                         args.batch, args.shard, args.workers, str(checked_device(args.device)))
    with Bars() as bars:
        report = prepare(job, bars)
    kind = "captions" if are_prompts(args.source) else "images"
    print(f"{report.examples} {kind} are prepared in {args.out}, {report.added} of them now")
    if report.cut:
        print(f"{report.cut} captions were longer than {family.tokens} tokens and were cut")
    if report.skipped:
        print(f"{len(report.skipped)} images were skipped, listed in {args.out / 'skipped.jsonl'}:")
        for reason, count in report.reasons.most_common(8):
            print(f"  {count} x {reason}")
