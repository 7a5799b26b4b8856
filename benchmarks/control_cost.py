"""What control costs: a pass of the transformer with a ControlNet over one without, on full-size random weights.

    python benchmarks/control_cost.py --size 512 --rounds 3

Passes run in turn (plain, controlled, plain, ...); quote the ratio. In theory it is about 1 + (blocks + 1) / depth, as
block 0 of the base runs twice: 1.5 for 13 of 28 blocks.
"""
import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pixart.config import VARIANTS  # noqa: E402
from pixart.model.controlnet import Controlled, PixArtControlNet  # noqa: E402
from pixart.model.transformer import PixArtTransformer  # noqa: E402

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build(variant: str, blocks: int, dtype: torch.dtype, device: str) -> Controlled:
    torch.manual_seed(0)
    base = PixArtTransformer(VARIANTS[variant], dtype=dtype, device=device)
    network = Controlled(base, PixArtControlNet(VARIANTS[variant], blocks, dtype=dtype, device=device)).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return network


def seconds_of(network: Controlled, given: dict, device: str) -> float:
    started = time.perf_counter()
    network(**given)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, default="alpha-512")
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--blocks", type=int, default=13, help="of the ControlNet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    args = parser.parse_args()
    network = build(args.variant, args.blocks, DTYPES[args.dtype], args.device)
    like = {"dtype": DTYPES[args.dtype], "device": args.device}
    side = args.size // 8
    given = {"latent": torch.randn(1, 4, side, side, **like), "context": torch.randn(1, 120, 4096, **like),
             "timestep": torch.tensor([500.0], device=args.device)}
    hint = torch.randn(1, 4, side, side, **like)
    pairs = [(seconds_of(network, given, args.device), seconds_of(network, {**given, "hint": hint}, args.device))
             for _ in range(args.rounds + 1)][1:]
    plain, controlled = (statistics.median(column) for column in zip(*pairs))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{args.size} px, {args.dtype}, {args.device}, {args.blocks} of {network.config.depth} blocks: plain "
          f"{plain:.2f} s, controlled {controlled:.2f} s, ratio {ratio:.3f}")
    if args.device == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2 ** 30:.2f} GiB")


if __name__ == "__main__":
    main()
