"""How should copies of a transformer's blocks steer it? The ablation of PixArt-delta section 4, on PixArt-mini.

    python benchmarks/control_ablation.py train --data F --work W --case half
    python benchmarks/control_ablation.py table --work W --sheet sheet.png

Every case trains the same number of steps on the same batches from the same frozen teacher. "unet" is the wiring the
paper rejects: copies of the first half whose residuals enter the second half, the first copy's last, as in a U-Net.
"""
import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.checkpoint import load, load_control, save_control  # noqa: E402
from pixart.mini import SHIPPED  # noqa: E402
from pixart.mini.agreement import ControlBench, Followed, agreement_table  # noqa: E402
from pixart.mini.measure.batches import BenchImages  # noqa: E402
from pixart.mini.measure.methods import LCM_METHOD  # noqa: E402
from pixart.mini.measure.prompts import Prompts  # noqa: E402
from pixart.mini.measure.sheets import method_sheet  # noqa: E402
from pixart.model.attention import Options, matmul_attention  # noqa: E402
from pixart.model.controlnet import Controlled, PixArtControlNet  # noqa: E402
from pixart.model.transformer import PixArtTransformer  # noqa: E402
from pixart.train.data import PreparedFolder  # noqa: E402
from pixart.train.loop import train  # noqa: E402
from pixart.train.loop_config import LoopConfig  # noqa: E402
from pixart.train.objectives import ControlDiffusion  # noqa: E402


class UNetWired(PixArtControlNet):
    """Residual i (from 1) goes to block depth - i instead of block i."""

    def forward(self, base: PixArtTransformer, hint: Tensor, latent: Tensor, timestep: Tensor, context: Tensor,
                mask: Tensor | None = None, size: Tensor | None = None, aspect: Tensor | None = None,
                options: Options = None) -> list[Tensor | None]:
        residuals = super().forward(base, hint, latent, timestep, context, mask, size, aspect, options)[1:]
        return [None] * (base.config.depth - len(residuals)) + residuals[::-1]


@dataclass(frozen=True)
class Case:
    title: str
    blocks: int
    network: type[PixArtControlNet] = PixArtControlNet


CASES = {"one": Case("ControlNet-Transformer, N = 1", 1), "half": Case("ControlNet-Transformer, N = 4", 4),
         "all": Case("ControlNet-Transformer, N = 7", 7), "unet": Case("U-Net style, N = 4", 4, UNetWired)}


def config_for(steps: int) -> LoopConfig:
    return LoopConfig(steps=steps, batch=32, learning_rate=5e-4, warmup=50, cooldown=steps // 4, ema=0.99,
                      precision="auto", save_every=100, log_every=25)


def run(case: str, data: PreparedFolder, work: Path, steps: int) -> None:
    base = load(SHIPPED.teacher, dtype=torch.float32, attend=matmul_attention).requires_grad_(False)
    control = CASES[case].network.copy_of(base, CASES[case].blocks, attend=matmul_attention)
    average: Any = train(Controlled(base, control), ControlDiffusion(data), data, config_for(steps), work / case)
    save_control(work / f"{case}.safetensors", average.control)


def compare(work: Path, count: int) -> tuple[list[Followed], dict[str, BenchImages], Prompts]:
    """Every case on the LCM student in 4 steps, and no control before them."""
    bench = ControlBench(count, 7, SHIPPED)
    rows: list[Followed] = []
    images = {"real": bench.instrument.real, "control": bench.maps}
    for name, case in CASES.items():
        trained = load_control(work / f"{name}.safetensors", torch.float32)
        network = case.network(trained.config, case.blocks).eval()
        network.load_state_dict(trained.state_dict())
        if not rows:
            rows.append(bench.measure(LCM_METHOD, "none", network, 0.0)[0])
        row, images[name] = bench.measure(LCM_METHOD, case.title, network, 1.0)
        rows.append(row)
    return rows, images, bench.bench.prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    training = tasks.add_parser("train")
    training.add_argument("--data", type=Path, required=True, help="prepared folder with hints")
    training.add_argument("--case", choices=CASES, action="append", help="default: all of them, one after the other")
    training.add_argument("--steps", type=int, default=800)
    training.add_argument("--work", type=Path, required=True)
    measuring = tasks.add_parser("table")
    measuring.add_argument("--work", type=Path, required=True)
    measuring.add_argument("--count", type=int, default=300)
    measuring.add_argument("--sheet", type=Path, help="PNG to draw")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.task == "table":
        rows, images, prompts = compare(args.work, args.count)
        print(agreement_table(rows))
        if args.sheet:
            method_sheet(images, prompts, range(min(10, args.count))).save(args.sheet)
        return
    data = PreparedFolder(args.data)
    for case in args.case or CASES:
        if not (args.work / f"{case}.safetensors").exists():
            run(case, data, args.work, args.steps)


if __name__ == "__main__":
    main()
