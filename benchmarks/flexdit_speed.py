"""Time and multiplications of a FlexDiT's pass beside the PixArt model it was made from, full width, random weights.

    python -m benchmarks.flexdit_speed --depth 8

Rounds run A B A B, so that a machine whose speed drifts treats both alike; quote the ratios. On one thread of a CPU
processor seconds are taken, which other programs do not stretch. The count is of the whole network, also where fewer
blocks are timed. The work does not depend on the weights, so random ones are enough.
"""
import argparse
import statistics
import time
from dataclasses import replace

import torch

from pixart.accelerate.cost import Costs, macs_text
from pixart.accelerate.flexdit_cost import FlexDiTCosts
from pixart.accelerate.pooled_values import PooledValues
from pixart.checkpoint.to_flexdit import to_flexdit
from pixart.config import VARIANTS
from pixart.model.density import FlexDiTConfig, Segments
from pixart.model.transformer import PixArtTransformer

TIMESTEPS = (100.0, 400.0, 700.0, 999.0)        # one of each density
Call = dict[str, torch.Tensor]


def network(depth: int, dtype: torch.dtype) -> PixArtTransformer:
    torch.manual_seed(0)
    model = PixArtTransformer(replace(VARIANTS["alpha-512"], depth=depth), dtype=dtype).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def counted(depth: int, side: int, text: int) -> None:
    """The table of multiplications."""
    config, grid = replace(VARIANTS["alpha-512"], depth=depth), (side // 16, side // 16)
    flex, plain = FlexDiTConfig.of(config), Costs(config, grid[0] * grid[1], text).row()
    print(f"{depth} blocks, {side} px, {text} text tokens, one row; {Segments.for_depth(depth).text}")
    print("| timestep | sparse tokens | multiplications | of plain |\n|---|---|---|---|")
    for t in TIMESTEPS:
        costs = FlexDiTCosts.at(flex, grid, t, text)
        print(f"| {t:g} | {costs.sparse} of {costs.tokens} | {macs_text(costs.row(), plain)} | "
              f"{costs.row() / plain:.3f} |")
    mean = sum(FlexDiTCosts.at(flex, grid, float(t), text).row() for t in range(1000)) / 1000
    print(f"| all, mean | | {macs_text(mean, plain)} | {mean / plain:.3f} |")


def seconds(model: PixArtTransformer, given: Call, pooled: PooledValues | None = None) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    model(**given, policies=[] if pooled is None else [pooled])
    return clock() - started


@torch.inference_mode()
def timed(depth: int, side: int, text: int, rounds: int, dtype: torch.dtype) -> None:
    """Every timestep in its turn, plain and FlexDiT one after the other; the first pass of each warms up."""
    plain = network(depth, dtype)
    flex, pooled = to_flexdit(plain), PooledValues(plain, 2)
    names = ("plain", "two pooled blocks on plain", *(f"t {t:g}" for t in TIMESTEPS))
    spent: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for t in TIMESTEPS if turn else TIMESTEPS[:1]:
            given = {"latent": torch.randn(1, 4, side // 8, side // 8, dtype=dtype), "timestep": torch.tensor([t]),
                     "context": torch.randn(1, text, 4096, dtype=dtype)}
            one, other, third = seconds(plain, given), seconds(flex, given), seconds(plain, given, pooled)
            if turn:
                for name, each in (("plain", one), (f"t {t:g}", other), ("two pooled blocks on plain", third)):
                    spent[name].append(each)
    print(f"\n{depth} blocks, {side} px, {dtype}, {torch.get_num_threads()} threads, {rounds} rounds")
    print("| | best s | median s | best, of plain |\n|---|---|---|---|")
    for name, rounds_of in spent.items():
        best = min(rounds_of)
        print(f"| {name} | {best:.2f} | {statistics.median(rounds_of):.2f} | {best / min(spent['plain']):.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--text", type=int, default=120)
    parser.add_argument("--depth", type=int, default=8, help="blocks of the timed networks")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--count-only", action="store_true")
    args = parser.parse_args()
    for depth in sorted({28, args.depth}, reverse=True):
        counted(depth, args.size, args.text)
    if not args.count_only:
        timed(args.depth, args.size, args.text, args.rounds, getattr(torch, args.dtype))


if __name__ == "__main__":
    main()
