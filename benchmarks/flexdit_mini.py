"""Does FlexDiT learn? PixArt-mini's teacher as a FlexDiT beside the teacher itself, both trained on for equal steps.

    python -m benchmarks.flexdit_mini --work DIR [--steps 300] [--count 100]     goes on where it was stopped

Both see the same images, captions, timesteps and noise. Measured by judge B on held-out prompts, 20 steps of
DPM-Solver++ with guidance 2.5: the teacher, in as many steps as are equal work too, the FlexDiT before any training,
both after it, and the teacher with pooled values in its first block.
"""
import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pixart.accelerate.pooled_values import PooledValues
from pixart.checkpoint import load, save_checkpoint
from pixart.commands.numbers import finite_number, positive_number
from pixart.mini import SHIPPED
from pixart.mini.evaluate import evaluate, write_results
from pixart.mini.measure.bench import Bench
from pixart.mini.measure.methods import Sampled
from pixart.mini.recipe import Builder, MiniRecipe
from pixart.model.attention import matmul_attention
from pixart.model.flexdit import FlexDiT
from pixart.model.flexdit_config import Density
from pixart.model.policy import Policy
from pixart.model.to_flexdit import to_flexdit
from pixart.model.transformer import PixArtTransformer
from pixart.train.loop import train_averages
from pixart.train.loop_config import LoopConfig
from pixart.train.objectives import Diffusion
from pixart.train.one_density import one_density

WAY: dict[str, Any] = {"sampler": "dpm", "steps": 20, "guidance": 2.5}
EQUAL_STEPS = 12            # of the plain model: as much work as 20 of the FlexDiT
WARMUP = 20                 # of training


class Pooled(Sampled):
    """The same with pooled values in the first block."""

    def policies(self, bench: Bench, model: PixArtTransformer) -> list[Policy]:
        return [PooledValues(model.config, 1)]


def teacher() -> PixArtTransformer:
    return load(SHIPPED.teacher, dtype=torch.float32, attend=matmul_attention)


def networks(density: Density) -> dict[str, Callable[[], PixArtTransformer]]:
    """The networks to train, by name, made anew."""
    return {"plain": teacher, "flexdit": lambda: to_flexdit(teacher(), density=density)}


def trained(work: Path, name: str, model: PixArtTransformer, builder: Builder, config: LoopConfig) -> Path:
    """The file of the trained network; its mean losses lie beside it."""
    path, losses = work / f"{name}-{config.steps}.safetensors", work / f"{name}-losses.jsonl"
    if path.exists():
        return path
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()         # views of the file
    data, recipe = builder.data(), builder.recipe
    # Of the plain model too: both see the same timesteps.
    timesteps = one_density(recipe.timesteps, model.config.density if isinstance(model, FlexDiT) else Density())
    objective = Diffusion(data, timesteps=timesteps, weighting=recipe.weighting, weighting_cap=recipe.weighting_cap)

    def note(step: int, loss: float) -> None:
        with losses.open("a") as file:
            file.write(json.dumps([step, loss]) + "\n")
    average: nn.Module = train_averages(model.requires_grad_(True), objective, data, config, work / name,
                                        note)[config.ema]
    return save_checkpoint(path, average, dtype=torch.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for states, files and tables")
    parser.add_argument("--steps", type=int, default=300, help="of training, each")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=positive_number, default=3e-4, help="learning rate")
    parser.add_argument("--scenes", type=int, default=5000, help="different scenes to learn from")
    parser.add_argument("--r-min", type=finite_number, default=Density.r_min)
    parser.add_argument("--r-max", type=finite_number, default=Density.r_max)
    parser.add_argument("--count", type=int, default=100, help="held-out prompts that are measured; 0: train only")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = LoopConfig(steps=args.steps, batch=args.batch, learning_rate=args.rate, warmup=WARMUP,
                        cooldown=args.steps // 3, ema=0.98, precision="auto", threads=1, save_every=50, log_every=25)
    recipe = replace(MiniRecipe(), scenes=args.scenes, crowds=args.scenes // 4)
    builder, made = Builder(args.work / "data", SHIPPED, recipe), networks(Density(args.r_min, args.r_max))
    start = save_checkpoint(args.work / "flexdit-0.safetensors", made["flexdit"]())
    files = {name: trained(args.work, name, make(), builder, config) for name, make in made.items()}
    if args.count:
        methods = [Sampled("teacher", "teacher", **WAY),
                   Sampled(f"teacher, {EQUAL_STEPS} steps", "teacher", **{**WAY, "steps": EQUAL_STEPS}),
                   Pooled("teacher, one block pooled", "teacher", **WAY), Sampled("flexdit, converted", start, **WAY),
                   *(Sampled(f"{name}, {args.steps} steps", file, **WAY) for name, file in files.items())]
        found = evaluate(args.count, methods=methods, batch=50, diverse=0)
        write_results(found.measured, args.work, "teacher")
        print(found.table())


if __name__ == "__main__":
    main()
