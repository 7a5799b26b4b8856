"""The command line: python -m pixart generate | encode | prepare | train | mini."""
import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .config import VARIANTS
from .mini import SHIPPED
from .mini import command as mini
from .prepare import command as prepare
from .train import command as train

if TYPE_CHECKING:
    import torch

    from .pipeline import Guide

DTYPES = ("auto", "fp32", "bf16", "fp16")
EDGES = ("canny", "soft", "hed", "none", "invert")


def size_of(text: str) -> tuple[int, int]:
    """"1024x768" -> (width, height)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit()) or not int(width) or not int(height):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write WIDTHxHEIGHT, for example 1024x768")
    return int(width), int(height)


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m pixart", description="PixArt-alpha, -delta and -Sigma.")
    main.add_argument("--verbose", action="store_true", help="say more about what is loaded")
    commands = main.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="draw a picture from a prompt")
    generate.add_argument("prompt", help="what to draw")
    generate.add_argument("--model", type=Path, help="transformer file or folder (default: the embedded PixArt-mini)")
    generate.add_argument("--vae", type=Path, help="VAE file or diffusers folder (default: that of PixArt-mini)")
    text = generate.add_mutually_exclusive_group()
    text.add_argument("--t5", type=Path, help="T5 encoder file or folder (default: that of PixArt-mini)")
    text.add_argument("--embeddings", type=Path, help="prompt encoded by `encode`, instead of a T5 encoder")
    generate.add_argument("--negative", default="", help="what to avoid; only with --sampler dpm")
    generate.add_argument("--sampler", choices=("lcm", "dpm", "dmd"), default="lcm")
    generate.add_argument("--steps", type=int, help="default: lcm 4, dpm 20, dmd 1")
    generate.add_argument("--guidance", type=float, default=4.5, help="guidance scale of --sampler dpm")
    generate.add_argument("--rule", choices=("official", "diffusers"), default="official", help="timestep rule")
    generate.add_argument("--size", type=size_of, help="WIDTHxHEIGHT in pixels (default: what the model was trained on)")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--count", type=int, default=1, help="pictures, with seeds following --seed")
    generate.add_argument("--variant", choices=("auto", *VARIANTS), default="auto")
    generate.add_argument("--control", type=Path, help="picture whose edges the new one shall follow")
    generate.add_argument("--edges", choices=EDGES, default="canny", help="how they are found; none: the picture is "
                          "an edge map already, white on black; invert: black on white (default: canny)")
    generate.add_argument("--controlnet", type=Path, help="ControlNet file or folder (default: that of PixArt-mini)")
    generate.add_argument("--hed", type=Path, help="ControlNetHED.pth, for --edges hed")
    generate.add_argument("--strength", type=float, default=1.0, help="of the control, 0 for none (default: 1)")
    generate.add_argument("--lora", type=Path, nargs="+", default=[], metavar="FILE", help="LoRA files or peft folders")
    generate.add_argument("--lora-strength", type=float, default=1.0, help="of each LoRA, 1 as trained (default)")
    generate.add_argument("--out", type=Path, default=Path("pixart.png"))
    encode = commands.add_parser("encode", help="save an encoded prompt, for machines too small for T5")
    encode.add_argument("prompt")
    encode.add_argument("--t5", type=Path, required=True)
    encode.add_argument("--max-tokens", type=int, default=120, help="120 for alpha and delta, 300 for Sigma")
    encode.add_argument("--clean", action="store_true", help="clean the caption as in alpha's training")
    encode.add_argument("--out", type=Path, default=Path("prompt.safetensors"))
    for command in (generate, encode):
        command.add_argument("--bits", type=int, choices=(16, 8, 4), default=8, help="precision of T5")
        command.add_argument("--device", default=None, help="cpu, cuda, mps (default: the best there is)")
    generate.add_argument("--dtype", choices=DTYPES, default="auto", help="precision of the transformer")
    prepare.add_parser(commands)
    train.add_parser(commands)
    mini.add_parser(commands)
    return main


def best_device() -> str:
    import torch
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_dtype(name: str, device: str, width: int) -> "torch.dtype":
    """The asked-for dtype; on "auto" bf16 on a GPU, and on a CPU what the processor is faster with."""
    import torch

    from .model.cpu_dtype import faster_dtype
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    return faster_dtype(width) if device == "cpu" else torch.bfloat16


def show(stage: str, done: int, total: int) -> None:
    """One line that is overwritten while a stage runs."""
    end = "\n" if done == total else ""
    print(f"\r{stage}: {done} of {total}", end=end, file=sys.stderr, flush=True)


def require_folder(path: Path) -> None:
    """Refuse a place that cannot be written to before any work is done for it."""
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"--out {path}: the folder {path.absolute().parent} does not exist; create it first")


def read_guide(args: argparse.Namespace, width: int, height: int) -> "tuple[Path, Guide] | None":
    """ControlNet file and edge map that the options ask for, the map found at the size of the new picture."""
    if args.control is None:
        return None
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    from .control.edges import edge_maps
    from .control.hed import hed_edges, load_hed
    from .control.pictures import fit
    from .mini.pictures import CANNY
    from .pipeline import Guide
    if args.model and not args.controlnet:
        raise ValueError("--control with --model needs --controlnet: that of PixArt-mini only fits PixArt-mini")
    with Image.open(args.control) as file:
        pixels = torch.from_numpy(np.array(ImageOps.exif_transpose(file).convert("RGBA"))).permute(2, 0, 1)[None] / 255
    picture = fit(pixels, width, height)
    if args.edges == "hed":
        if not args.hed:
            raise ValueError("--edges hed needs --hed, the file ControlNetHED.pth")
        found = hed_edges(load_hed(args.hed), picture)
    else:
        found = edge_maps(picture, args.edges, **(CANNY if args.edges == "canny" and not args.model else {}))
    return args.controlnet or SHIPPED.control, Guide(found.repeat(1, 3, 1, 1), args.strength)


def run_generate(args: argparse.Namespace) -> None:
    from PIL import Image

    from .checkpoint import read_config
    from .pipeline import Request, generate
    from .text.encoded import join, load_embeddings

    require_folder(args.out)
    model = args.model or SHIPPED.student
    for name, needed in (("--vae", args.vae), ("a T5: --t5 or --embeddings", args.t5 or args.embeddings)):
        if args.model and not needed:
            raise ValueError(f"--model needs {name}: those of PixArt-mini only fit PixArt-mini")
    if args.count < 1:
        raise ValueError(f"--count is {args.count}; at least 1 picture can be drawn")
    if args.sampler != "dpm" and args.negative:
        raise ValueError(f"--negative has no effect with --sampler {args.sampler}, which works without guidance")
    config = read_config(model, args.variant)
    width, height = args.size or (config.resolution, config.resolution)
    steps = args.steps if args.steps is not None else {"lcm": 4, "dpm": 20, "dmd": 1}[args.sampler]
    request = Request((args.prompt,) * args.count, args.negative, height, width, args.sampler, steps, args.guidance,
                      args.rule, args.seed)
    device = args.device or best_device()
    text = args.t5 or SHIPPED.t5
    if args.embeddings:
        if request.guided:
            raise ValueError("--embeddings holds no negative prompt; use --sampler lcm or dmd, or --guidance 1")
        caption = load_embeddings(args.embeddings)
        text = (join([caption] * args.count), caption)
    pictures, reports = generate(model, args.vae or SHIPPED.vae, request, text, args.variant, args.bits,
                                 choose_dtype(args.dtype, device, config.hidden), device, show,
                                 read_guide(args, width, height), [(path, args.lora_strength) for path in args.lora])
    print(reports[0].summary)
    for number, picture in enumerate(pictures):
        path = args.out if number == 0 else args.out.with_stem(f"{args.out.stem}-{number}")
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(path)
        print(path)


def run_encode(args: argparse.Namespace) -> None:
    from .text.encoded import save_embeddings
    from .text.t5 import T5Encoder
    require_folder(args.out)
    encoded = T5Encoder(args.t5, args.bits, args.device or best_device()).encode([args.prompt], args.max_tokens, args.clean)
    save_embeddings(args.out, encoded)
    print(encoded.reports[0].summary)
    print(args.out)


def main() -> int:
    args = parser().parse_args()
    chatty = args.verbose or args.command in ("mini", "train")
    logging.basicConfig(level=logging.INFO if chatty else logging.WARNING, format="%(message)s")
    run = {"generate": run_generate, "encode": run_encode, "prepare": prepare.run, "train": train.run,
           "mini": mini.run}[args.command]
    try:
        run(args)
    except (ValueError, OSError, ImportError, FloatingPointError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
