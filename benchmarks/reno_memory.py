"""Memory of noise optimisation at full size, computed: every allocation of an iteration is traced, none made.

    python benchmarks/reno_memory.py                prints the table

As in benchmarks/training_memory.py: tensors without data go through sampler, decoder, rewards and backward pass, and
the highest sum of what their storages would hold counts. CUDA and its libraries usually take another 1 to 2 GiB.
T5 is not in memory then. Rewards are networks of the size of CLIP ViT-H/14.
"""
import argparse
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.instruments.held import GIB, Held  # noqa: E402
from pixart.config import VARIANTS  # noqa: E402
from pixart.generation.request import Request  # noqa: E402
from pixart.model.transformer import PixArtTransformer  # noqa: E402
from pixart.reward.eyes import clip_normalised, middle_square  # noqa: E402
from pixart.reward.generator import Generator, recomputed  # noqa: E402
from pixart.text.encoded import Encoded  # noqa: E402
from pixart.text.tokens import PromptReport  # noqa: E402
from pixart.vae import _KL, decoder  # noqa: E402

EVERY_TOKEN = torch.ones(1, 120, dtype=torch.bool)      # with data: its values are read


@dataclass(frozen=True)
class Case:
    """An iteration whose memory is computed."""

    side: int = 1024                # pixels
    sampler: str = "lcm"
    steps: int = 4
    rewards: int = 1
    recompute: bool = True
    weights: torch.dtype = torch.bfloat16


def eye() -> nn.Module:
    """The vision half of CLIP ViT-H/14."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    return CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict({
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
        "patch_size": 14, "image_size": 224, "projection_dim": 1024, "hidden_act": "gelu"},
        attn_implementation="sdpa"))


def networks(case: Case) -> tuple[PixArtTransformer, Any, list[nn.Module]]:
    from diffusers import AutoencoderKL
    config = VARIANTS["alpha-1024" if case.side > 512 else "alpha-512"]
    usual = torch.get_default_dtype()
    torch.set_default_dtype(case.weights)           # networks without data cannot be cast
    try:
        model = PixArtTransformer(config)
        vae: Any = AutoencoderKL(**_KL)
        eyes = [eye() for _ in range(case.rewards)]
    finally:
        torch.set_default_dtype(usual)
    made: list[nn.Module] = [model, vae, *eyes]
    for network in made:
        network.eval().requires_grad_(False)
    return model, vae, eyes


def iterate(case: Case, model: PixArtTransformer, vae: Any, eyes: list[nn.Module]) -> None:
    """Generate, score, and compute the gradient of the noise."""
    request = Request(("x",), "", case.side, case.side, case.sampler, case.steps)
    caption = Encoded(torch.zeros(1, 120, 4096), EVERY_TOKEN,
                      [PromptReport("x", "x", 120, 120, 120)])
    sides = (1, 4, case.side // 8, case.side // 8)
    generate = Generator(model, decoder(vae, model.config.latent_scale), request, caption, lambda: torch.zeros(sides))
    noise = torch.zeros(sides, requires_grad=True)
    with recomputed(model, vae) if case.recompute else nullcontext():
        images = generate(noise)
        total = torch.stack([score(network, images) for network in eyes]).sum()
        torch.autograd.grad(total, noise)


def score(network: Any, images: Tensor) -> Tensor:
    shown = clip_normalised(middle_square(images, 224)).to(next(network.parameters()).dtype)
    return network(pixel_values=shown).image_embeds.float().sum()


def computed(case: Case) -> tuple[int, int]:
    """Peak bytes, and bytes of the weights."""
    with FakeTensorMode(allow_non_fake_inputs=True), Held() as held:
        model, vae, eyes = networks(case)
        weights = sum(p.numel() * p.element_size() for network in (model, vae, *eyes) for p in network.parameters())
        held.peak = held.now
        iterate(case, model, vae, eyes)
        return held.peak, weights


TABLE = (
    ("512 px, DMD, 1 step, 1 reward", Case(512, "dmd", 1)),
    ("the same, nothing recomputed", Case(512, "dmd", 1, recompute=False)),
    ("512 px, LCM, 4 steps, 1 reward", Case(512)),
    ("512 px, LCM, 4 steps, 3 rewards", Case(512, rewards=3)),
    ("1024 px, DMD-like, 1 step, 1 reward", Case(1024, "dmd", 1)),
    ("1024 px, LCM, 4 steps, 1 reward", Case()),
    ("the same, nothing recomputed", Case(recompute=False)),
    ("1024 px, LCM, 4 steps, 3 rewards", Case(rewards=3)),
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| one image, 16 bits | peak | weights | activations |\n|---|---|---|---|")
    for title, case in TABLE:
        peak, weights = computed(case)
        print(f"| {title} | {peak / GIB:.1f} GiB | {weights / GIB:.1f} GiB | {(peak - weights) / GIB:.1f} GiB |",
              flush=True)


if __name__ == "__main__":
    main()
