"""A tiny model and prepared data, and a training of them as a program of its own that tests may kill."""
import argparse
import logging
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer
from pixart.train.data import PreparedFolder
from pixart.train.initialize import initialize
from pixart.train.loop import Training, train
from pixart.train.loop_config import LoopConfig
from pixart.train.objectives import Diffusion

ROOT = Path(__file__).resolve().parents[2]
TINY = PixArtConfig(depth=2, hidden=48, heads=4, caption_width=8, caption_tokens=6, base_size=4, position_scale=1.0)
SHORT = LoopConfig(steps=8, batch=4, learning_rate=1e-3, warmup=2, ema=0.9, save_every=3, log_every=4)


def write_data(folder: Path) -> Path:
    """Two buckets of 16 random examples with posterior spread and hints, and a null caption."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    for h, w in ((8, 8), (6, 10)):
        tensors = {name: torch.randn(16, 4, h, w, generator=generator).half() for name in ("latents", "hints")}
        save_file({**tensors, "spread": torch.full((16, 4, h, w), 0.1).half(),
                   "features": torch.randn(16, 6, 8, generator=generator).half(),
                   "mask": torch.tensor([[1, 1, 1, 1, 0, 0]] * 16, dtype=torch.uint8),
                   "size": torch.tensor([[8.0 * h, 8.0 * w]] * 16), "aspect": torch.full((16,), h / w)},
                  folder / f"bucket-{h}x{w}.safetensors")
    save_file({"features": torch.randn(1, 8, generator=generator), "mask": torch.ones(1, dtype=torch.uint8)},
              folder / "null.safetensors")
    return folder


def fresh() -> PixArtTransformer:
    """Random weights, in what starts silent too: every parameter has a gradient from the first step, captions count."""
    model, generator = initialize(PixArtTransformer(TINY), seed=1), torch.Generator().manual_seed(2)
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.02, generator=generator)
    for block in model.blocks:
        torch.nn.init.normal_(block.cross_attn.proj.weight, std=0.5, generator=generator)
    return model


def environment(**more: str) -> dict[str, str]:
    """For a subprocess: this checkout first, one thread, no GPU."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **more}


def noted(folder: Path, data: Path, config: LoopConfig) -> None:
    """Train, adding a line "step loss" to folder/losses after every step; the average goes to folder/average.pt."""
    torch.set_num_threads(1)
    prepared = PreparedFolder(data)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "losses", "a", buffering=1) as file:
        average = train(fresh(), Diffusion(prepared), prepared, config, folder,
                        report=lambda step, loss: print(step, loss.hex(), file=file))
    if int(os.environ.get("RANK", 0)) == 0:
        torch.save(average.state_dict(), folder / "average.pt")


def gradients(folder: Path, data: Path, config: LoopConfig) -> None:
    """The first step's gradients, reduced over all processes, to folder/gradients.pt."""
    prepared, model = PreparedFolder(data), fresh()
    Training(model, Diffusion(prepared), prepared, config).gradients(0)
    if int(os.environ.get("RANK", 0)) == 0:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({name: p.grad for name, p in model.named_parameters()}, folder / "gradients.pt")


def shard_on_cpu() -> None:
    """accelerate offers FSDP on accelerators only; told that these processes are such, it runs on CPUs just as well."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=SHORT.steps)
    parser.add_argument("--batch", type=int, default=SHORT.batch)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--gradients", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = replace(SHORT, steps=args.steps, batch=args.batch, log_every=1)
    if args.fsdp:
        shard_on_cpu()
    if args.gradients:
        gradients(args.folder, args.data, config)
    noted(args.folder, args.data, config)


if __name__ == "__main__":
    main()
