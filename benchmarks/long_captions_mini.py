"""Long captions on PixArt-mini: paragraphs about three to five things, cut at 120 tokens, whole, or in segments.

    python benchmarks/long_captions_mini.py [--count 100]       prints the table
"""
import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.checkpoint import load  # noqa: E402
from pixart.checkpoint.merged import with_loras  # noqa: E402
from pixart.generation.pipeline import Pipeline  # noqa: E402
from pixart.generation.request import Request  # noqa: E402
from pixart.mini import SHIPPED  # noqa: E402
from pixart.mini.judge import load_judge  # noqa: E402
from pixart.mini.measure.bootstrap import estimate, resamples  # noqa: E402
from pixart.mini.measure.prompts import Prompts  # noqa: E402
from pixart.mini.scenes import labels  # noqa: E402
from pixart.model.attention import matmul_attention  # noqa: E402
from pixart.text.encoded import Encoded, join_encoded  # noqa: E402
from pixart.text.long import encode_long  # noqa: E402
from pixart.text.t5 import T5Encoder  # noqa: E402
from pixart.vae import decode, load_vae  # noqa: E402

ALPHA, SIGMA = 120, 300         # tokens of training captions of PixArt-alpha and -Sigma
WAYS = (("cut at 120 tokens", "truncate", ALPHA, False), ("whole", "whole", ALPHA, False),
        ("segments, inner end tokens dropped", "segments", SIGMA, False),
        ("segments, inner end tokens kept", "segments", SIGMA, True))


class Bench:
    """The networks, and the images of all prompts from given features."""

    def __init__(self, weights: Path, lora: Path | None, sampler: str, steps: int, crowded: bool, count: int) -> None:
        model = load(weights, dtype=torch.float32, attend=matmul_attention)
        self.model = with_loras(model, [(lora, 1.0)] if lora else []).eval().requires_grad_(False)
        self.pipe = Pipeline.of(self.model)
        self.vae, self.t5, self.judge = load_vae(SHIPPED.vae), T5Encoder(SHIPPED.t5, 16), load_judge(SHIPPED.judge)
        self.prompts = Prompts.held_out(count, 7, crowded)
        self.sampler, self.steps = sampler, steps

    def encode(self, mode: str, limit: int, inner_ends: bool) -> Encoded:
        return encode_long(lambda some, most: self.t5.encode(some, most), self.prompts.captions, limit, mode,
                           inner_ends)

    def answers(self, caption: Encoded, batch: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
        """For every prompt and attribute: whether it is right, and whether it was asked for, bool (n, attributes)."""
        wanted = torch.tensor([labels(scene) for scene in self.prompts.scenes])
        read = torch.empty_like(wanted)
        for group in self.prompts.groups(batch):
            rows = list(group.members)
            request = Request(tuple(self.prompts.captions[i] for i in rows), "", group.height, group.width,
                              self.sampler, self.steps, 2.5, seed=group.seed)
            null = self.t5.encode([""], 1)
            latents = self.pipe.sample(request, join_encoded([caption.one(i) for i in rows]), null, batch=batch)
            images = (decode(self.vae, latents, self.model.config.latent_scale) * 255).round() / 255
            with torch.inference_mode():
                read[rows] = torch.stack([logits.argmax(1) for logits in self.judge(images)], 1)
        return (read == wanted) & (wanted >= 0), wanted >= 0


def row(name: str, right: torch.Tensor, asked: torch.Tensor, caption: Encoded) -> str:
    drawn = resamples(len(right))
    facts = estimate(right.sum(1).double(), asked.sum(1).double(), drawn)
    things = right[:, 10:].sum(1).double(), asked[:, 10:].sum(1).double()      # shape and colour of all nine places
    of_things = estimate(*things, drawn) if things[1].sum() else facts
    whole = estimate((right.sum(1) == asked.sum(1)).double(), torch.ones(len(right)).double(), drawn)
    tokens = sum(report.tokens for report in caption.reports) / len(right)
    lost = sum(len(report.cut_words) for report in caption.reports) / len(right)
    return (f"| {name} | {tokens:.0f} | {lost:.0f} | {100 * facts.value:.1f} ± {100 * facts.half:.1f} | "
            f"{100 * of_things.value:.1f} ± {100 * of_things.half:.1f} | {100 * whole.value:.1f} ± "
            f"{100 * whole.half:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=SHIPPED.student, help="transformer")
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--sampler", default="lcm")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--count", type=int, default=100, help="held-out paragraphs")
    parser.add_argument("--ordinary", action="store_true", help="short prompts instead of paragraphs, whole alone")
    args = parser.parse_args()
    bench = Bench(args.weights, args.lora, args.sampler, args.steps, not args.ordinary, args.count)
    print("| text | tokens | words lost | all attributes, % | of the objects', % | whole images, % |\n"
          "|---|---|---|---|---|---|", flush=True)
    for name, mode, limit, inner_ends in WAYS[1:2] if args.ordinary else WAYS:
        caption = bench.encode(mode, limit, inner_ends)
        print(row(name, *bench.answers(caption), caption), flush=True)


if __name__ == "__main__":
    main()
