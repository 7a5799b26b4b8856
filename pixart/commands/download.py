"""python -m pixart download: published weights, from the model hub into ComfyUI's folders."""
import argparse
import os
from pathlib import Path


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("names", nargs="*", metavar="NAME", help="names from --list")
    command.add_argument("--list", action="store_true", help="list all files with size, licence and folder, and exit")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--comfyui", type=Path, metavar="PATH", help="ComfyUI whose model folders are used (default: "
                                                                    "one found on this machine)")
    where.add_argument("--out", type=Path, metavar="DIR", help="use this folder instead, created if missing")
    command.add_argument("--endpoint", default=os.environ.get("HF_ENDPOINT") or "https://huggingface.co", metavar="URL",
                         help="mirror of the hub (default: $HF_ENDPOINT, else https://huggingface.co)")


def run(args: argparse.Namespace) -> None:
    """Fetch one after the other; print where each lies."""
    from ..downloads.catalogue import BY_NAME, file_table, size_text
    from ..downloads.fetch import fetch
    from ..downloads.places import models_folder
    from .places import require_folder_place
    from .progress import Bars

    if args.list or not args.names:
        print(file_table())
        return
    unknown = [name for name in args.names if name not in BY_NAME]
    if unknown:
        raise ValueError(f"no published file is named {', '.join(unknown)}; there are: {', '.join(BY_NAME)}")
    if args.out:
        require_folder_place(args.out)
    root = args.out or models_folder(args.comfyui)
    for name in dict.fromkeys(args.names):
        file = BY_NAME[name]
        target = (root if args.out else root / file.folder) / file.saved_as
        target.parent.mkdir(parents=True, exist_ok=True)
        print(f"{name}: {size_text(file.bytes)}, licence {file.licence}, from {file.repo}", flush=True)
        with Bars() as bars:
            new = fetch(file, target, args.endpoint, bars)
        print(target if new else f"{target} is there already", flush=True)
