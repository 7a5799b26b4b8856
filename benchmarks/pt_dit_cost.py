"""PT-DiT beside a PixArt of the same width and depth: counted work, and time of a few blocks side by side.

    python benchmarks/pt_dit_cost.py [--sizes 512 1024] [--depth 2] [--rounds 5]

Random weights of full width. Rounds run A B C A B C; the ratio is the median of those within a round.
"""
import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.accelerate.cost import Costs  # noqa: E402
from pixart.config import PixArtConfig  # noqa: E402
from pixart.model.transformer import PixArtTransformer  # noqa: E402
from pixart.pt_dit.config import PTDiTConfig  # noqa: E402
from pixart.pt_dit.cost import PTDiTCosts  # noqa: E402
from pixart.pt_dit.transformer import PTDiT  # noqa: E402

TEXT = 120
PIXART = PixArtConfig(micro_conditioning=False)
KINDS = {"with shifted windows (published)": PTDiTConfig(), "without": PTDiTConfig(shifted=False)}


def counted(sizes: list[int]) -> None:
    """Work of one row, caption of TEXT tokens, attention products included."""
    print("| px | PixArt, T MACs | PT-DiT, shifted, T MACs | / PixArt | PT-DiT, not shifted | / PixArt |\n"
          "|---|---|---|---|---|---|")
    for side in sizes:
        plain = Costs(PIXART, (side // 16) ** 2, TEXT).row()
        cells = [f"{plain / 1e12:.3f}"]
        for config in KINDS.values():
            work = PTDiTCosts(config, side, side, TEXT).row()
            cells += [f"{work / 1e12:.3f}", f"{work / plain:.2f}"]
        print(f"| {side} | {' | '.join(cells)} |")


def filled(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.eval().requires_grad_(False).parameters():
        nn.init.normal_(parameter, std=0.02)
    return network


def timed(side: int, depth: int, rounds: int) -> None:
    """Seconds of a pass, and how many times longer than the PixArt beside it."""
    given = (torch.randn(1, 4, side // 8, side // 8), torch.tensor([500.0]), torch.randn(1, TEXT, 4096))
    networks = {"PixArt": filled(PixArtTransformer(replace(PIXART, depth=depth))),
                **{f"PT-DiT, {name}": filled(PTDiT(replace(config, depth=depth))) for name, config in KINDS.items()}}
    runs: dict[str, Callable[[], Tensor]] = {name: partial(network, *given) for name, network in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if turn:                                        # the first warms up
                seconds[name].append(time.process_time() - started)
    for name, each in seconds.items():
        ratios = [one / other for one, other in zip(each, seconds["PixArt"])]
        print(f"| {side} | {name} | {statistics.median(each):.2f} | {statistics.median(ratios):.2f} "
              f"({min(ratios):.2f} to {max(ratios):.2f}) |", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="pixels, to be timed")
    parser.add_argument("--depth", type=int, default=2, help="blocks to be timed")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    counted([512, 1024, 2048, 4096])
    print(f"\n{args.depth} blocks, fp32, torch {torch.__version__}, {torch.get_num_threads()} threads\n\n"
          "| px | network | processor s a pass | / PixArt |\n|---|---|---|---|")
    for side in args.sizes:
        timed(side, args.depth, args.rounds)


if __name__ == "__main__":
    main()
