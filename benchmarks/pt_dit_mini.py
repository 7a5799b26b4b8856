"""A small PT-DiT beside a PixArt of equal work, both trained from scratch on PixArt-mini's images by rectified flow.

    python -m benchmarks.pt_dit_mini --work DIR [--steps 9000] [--count 500]     goes on where it was stopped

Four blocks of PT-DiT do the work of six of PixArt at 128 px. Both see the same images, captions, noise levels and
noise. Reported are the loss over the last fifth of the training, paired by step, and judge B on held-out
prompts: 20 Euler steps, guidance 2.5.
"""
import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixart.accelerate.cost import Costs
from pixart.commands.numbers import positive_number
from pixart.config import PixArtConfig
from pixart.mini import SHIPPED
from pixart.mini.evaluate import evaluate, write_results
from pixart.mini.measure.batches import BenchImages
from pixart.mini.measure.bench import Bench
from pixart.mini.measure.prompts import PromptGroup
from pixart.mini.recipe import Builder, MiniRecipe
from pixart.model.attention import matmul_attention
from pixart.model.transformer import PixArtTransformer
from pixart.pt_dit.config import PTDiTConfig
from pixart.pt_dit.cost import PTDiTCosts
from pixart.pt_dit.transformer import PTDiT
from pixart.sampling.flow import euler_flow, flow_shares
from pixart.sampling.guidance import guided
from pixart.sampling.noise import ImageNoise
from pixart.text.encoded import stack_captions
from pixart.train.initialize import initialize, initialize_pt_dit
from pixart.train.loop import train
from pixart.train.loop_config import LoopConfig
from pixart.train.rectified_flow import RectifiedFlow

SIDE, TEXT, EVERY = 128, 32, 5           # pixels; tokens of a usual caption; steps between two losses
SHARED: dict[str, Any] = {"hidden": 192, "heads": 4, "caption_width": 128, "caption_tokens": 256, "base_size": 8,
                          "position_scale": 1.0, "micro_conditioning": False, "learned_variance": False}
PIXART = PixArtConfig(depth=6, **SHARED)
PT_DIT = PTDiTConfig(depth=4, window=4, proxy=4, flow_side=SIDE, **SHARED)
WORK = {"PixArt": Costs(PIXART, (SIDE // 16) ** 2, TEXT).row(), "PT-DiT": PTDiTCosts(PT_DIT, SIDE, SIDE, TEXT).row()}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "PixArt": lambda: initialize(PixArtTransformer(PIXART, attend=matmul_attention), 0),
    "PT-DiT": lambda: initialize_pt_dit(PTDiT(PT_DIT, attend=matmul_attention), 0)}


@dataclass(frozen=True)
class FlowSampled:
    """A network that predicts velocities, as a method that can be evaluated."""

    name: str
    network: nn.Module
    steps: int = 20
    guidance: float = 2.5

    def generate(self, bench: Bench) -> BenchImages:
        parts: dict[tuple[int, int], list[Tensor]] = {}
        for group in bench.prompts.groups(bench.batch):
            parts.setdefault((group.height, group.width), []).append(bench.decode(self.latents(bench, group)))
        return BenchImages(tuple(torch.cat(part) for part in parts.values()))

    @torch.inference_mode()
    def latents(self, bench: Bench, group: PromptGroup) -> Tensor:
        context, mask = stack_captions(bench.null, bench.text(group))
        seeds = [group.seed + number for number in range(len(group.members))]
        noise = ImageNoise(seeds, (4, group.height // 8, group.width // 8))

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.network(x, t, context, mask)
        return euler_flow(guided(velocity, self.guidance), noise(), flow_shares(self.steps))


def trained(work: Path, name: str, builder: Builder, config: LoopConfig) -> nn.Module:
    """The average after the training, which goes on from its last state; losses go to a file beside it."""
    losses = work / f"{name}-losses.jsonl"

    def note(step: int, loss: float) -> None:
        with losses.open("a") as file:
            file.write(json.dumps([step, loss]) + "\n")
    data = builder.data()
    return train(NETWORKS[name](), RectifiedFlow(data, flow_side=SIDE), data, config, work / name, note).eval()


def compared(work: Path, steps: int) -> str:
    """Mean losses of the last fifth, and their difference, paired by step, with its standard error."""
    lines = {name: dict(map(json.loads, (work / f"{name}-losses.jsonl").read_text().splitlines())) for name in NETWORKS}
    plain, other = (torch.tensor([loss for step, loss in sorted(each.items()) if step > 0.8 * steps])
                    for each in lines.values())
    difference = other - plain
    return (f"loss of steps {int(0.8 * steps)} to {steps}: PixArt {plain.mean():.4f}, PT-DiT {other.mean():.4f}, "
            f"difference {difference.mean():+.4f} ± {1.96 * difference.std() / len(difference) ** 0.5:.4f}; work of a "
            f"pass {WORK['PixArt'] / 1e6:.0f} and {WORK['PT-DiT'] / 1e6:.0f} MMACs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for states, losses and tables")
    parser.add_argument("--steps", type=int, default=9000, help="of training, each")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=positive_number, default=1e-3, help="learning rate")
    parser.add_argument("--scenes", type=int, default=20000, help="different scenes to learn from")
    parser.add_argument("--count", type=int, default=500, help="held-out prompts that are measured; 0: losses alone")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = LoopConfig(steps=args.steps, batch=args.batch, learning_rate=args.rate, warmup=min(100, args.steps // 4),
                        cooldown=args.steps // 3, ema=0.98, optimizer="muon", betas=(0.9, 0.98), precision="auto",
                        threads=1, save_every=50, log_every=EVERY)
    builder = Builder(args.work / "data", SHIPPED, replace(MiniRecipe(), scenes=args.scenes, crowds=args.scenes // 4))
    networks = {name: trained(args.work, name, builder, config) for name in NETWORKS}
    told = compared(args.work, args.steps)
    if args.count:
        methods = [FlowSampled(name, network) for name, network in networks.items()]
        found = evaluate(args.count, methods=methods, batch=50, diverse=0)
        write_results(found.measured, args.work, "PixArt")
        told += "\n\n" + found.table()
    print(told)


if __name__ == "__main__":
    main()
