"""Time of one transformer pass: this package, the host's native PixArt and diffusers, side by side in one run.

    ~/comfy/ComfyUI/.venv/bin/python benchmarks/transformer_speed.py --comfyui ~/comfy/ComfyUI

All three get the same full-size random weights and inputs. Rounds run A B C A B C, so that a machine whose speed
drifts treats them alike; quote the ratios, not the times. Needs diffusers and a ComfyUI checkout, each optional.
"""
import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pixart.checkpoint import to_diffusers  # noqa: E402
from pixart.config import VARIANTS, PixArtConfig  # noqa: E402
from pixart.model.transformer import PixArtTransformer  # noqa: E402

Run = Callable[[], torch.Tensor]


def ours(config: PixArtConfig, dtype: torch.dtype, device: str) -> PixArtTransformer:
    torch.manual_seed(0)
    model = PixArtTransformer(config, dtype=dtype, device=device).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def diffusers_run(config: PixArtConfig, state: dict, given: dict, dtype: torch.dtype, device: str) -> Run:
    from diffusers import PixArtTransformer2DModel
    model: Any = PixArtTransformer2DModel(
        num_attention_heads=config.heads, attention_head_dim=config.hidden // config.heads, out_channels=8,
        num_layers=config.depth, cross_attention_dim=config.hidden, sample_size=2 * config.base_size,
        caption_channels=config.caption_width, interpolation_scale=config.position_scale,
        use_additional_conditions=False)
    model.to(device, dtype).eval()
    model.load_state_dict(to_diffusers(state))
    return lambda: model(given["latent"], encoder_hidden_states=given["context"], timestep=given["timestep"],
                         added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False)[0][:, :4]


def native_run(host: Path, config: PixArtConfig, state: dict, given: dict, dtype: torch.dtype, device: str) -> Run:
    sys.path.insert(0, str(host))
    sys.argv = sys.argv[:1] + (["--cpu"] if device == "cpu" else [])
    import comfy.options
    comfy.options.enable_args_parsing()
    import comfy.ops
    from comfy.ldm.pixart.pixartms import PixArtMS
    model = PixArtMS(input_size=2 * config.base_size, depth=config.depth, micro_condition=False, dtype=dtype,
                     hidden_size=config.hidden, num_heads=config.heads, caption_channels=config.caption_width,
                     pe_interpolation=config.position_scale, device=device, operations=comfy.ops.disable_weight_init)
    model.load_state_dict(state, strict=False)
    model.to(dtype).eval()
    return lambda: model(given["latent"], given["timestep"], given["context"])


def measure(runs: dict[str, Run], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds by name, after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def report(seconds: dict[str, list[float]], label: str) -> None:
    mine = seconds["ours"]
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(mine, values))
        print(f"| {label} | {name} | {statistics.median(values):.3f} | {min(values):.3f} | {ratio:.3f} |", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    args = parser.parse_args()
    config = replace(VARIANTS["alpha-512"], depth=args.depth)
    print(f"torch {torch.__version__}, {args.device}, {args.size} px, batch 1, {config.depth} blocks")
    print("| dtype | implementation | median s | best s | ours / this |\n|---|---|---|---|---|")
    for name in args.dtypes:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        model = ours(config, dtype, args.device)
        side = args.size // 8
        given = {"latent": torch.randn(1, 4, side, side, dtype=dtype, device=args.device),
                 "timestep": torch.tensor([500.0], device=args.device),
                 "context": torch.randn(1, args.tokens, config.caption_width, dtype=dtype, device=args.device)}
        state = {k.replace("_table.weight", "_table"): v for k, v in model.state_dict().items()}
        runs: dict[str, Run] = {"ours": partial(model, **given)}
        if args.comfyui:
            runs["ComfyUI native"] = native_run(args.comfyui, config, state, given, dtype, args.device)
        runs["diffusers"] = diffusers_run(config, state, given, dtype, args.device)
        reference = runs["ours"]().float()
        for other, run in runs.items():
            worst = ((run().float() - reference).abs().max() / reference.abs().max()).item()
            assert worst < (1e-4 if name == "fp32" else 0.2), f"{other} computes something else: {worst}"
        report(measure(runs, args.rounds, args.device), name)
        del runs, model, state


if __name__ == "__main__":
    main()
