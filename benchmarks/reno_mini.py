"""Does optimising noise help? PixArt-mini's student, rewarded by judge A, measured by judge B on held-out prompts.

    python benchmarks/reno_mini.py --work DIR [--count 100]     goes on where it was stopped; prints the table so far
    python benchmarks/reno_mini.py --plot PNG "DMD, 1 step=DIR" "LCM, 4 steps=DIR"      curves of what was measured

The baselines cost as much without gradients (a backward pass counts as two forward ones): the best of that many
noises, and a random search around the best. The reference is the noise of the seed as it is.
"""
import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.checkpoint import load, read_config  # noqa: E402
from pixart.checkpoint.merged import with_loras  # noqa: E402
from pixart.files.atomic import replacing  # noqa: E402
from pixart.generation.request import Request  # noqa: E402
from pixart.mini import SHIPPED  # noqa: E402
from pixart.mini.judge import load_judge  # noqa: E402
from pixart.mini.measure.bootstrap import estimate, paired_difference, resamples  # noqa: E402
from pixart.mini.measure.prompts import PromptGroup, Prompts  # noqa: E402
from pixart.mini.scenes import labels  # noqa: E402
from pixart.model.attention import matmul_attention  # noqa: E402
from pixart.model.cpu_dtype import fitting_dtype  # noqa: E402
from pixart.reward.generator import Generator  # noqa: E402
from pixart.reward.judge import JudgeReward  # noqa: E402
from pixart.reward.optimise import Iteration, NoiseRecipe, optimise_noise  # noqa: E402
from pixart.reward.protocol import WeightedSum  # noqa: E402
from pixart.reward.search import forwards_of, fresh_noise, near, search_noise  # noqa: E402
from pixart.text.t5 import T5Encoder  # noqa: E402
from pixart.vae import decoder, load_vae  # noqa: E402

WAYS = ("as it is", "optimised", "best of n", "search")


class Bench:
    """The networks, and the scores of images by both judges."""

    def __init__(self, weights: Path, lora: Path | None, sampler: str, steps: int, recipe: NoiseRecipe) -> None:
        dtype = fitting_dtype(torch.device("cpu"), read_config(weights).hidden)
        model = load(weights, dtype=dtype, attend=matmul_attention)
        self.model = with_loras(model, [(lora, 1.0)] if lora else []).eval().requires_grad_(False)
        vae = load_vae(SHIPPED.vae).to(dtype, memory_format=torch.channels_last)
        self.decode = decoder(vae, self.model.config.latent_scale)
        self.t5 = T5Encoder(SHIPPED.t5, 16)
        self.reward = WeightedSum([(JudgeReward.open(), 1.0)])
        self.judge_b, self.likely_b = load_judge(SHIPPED.judge), JudgeReward(load_judge(SHIPPED.judge))
        self.sampler, self.steps, self.recipe = sampler, steps, recipe

    def measure(self, prompts: Prompts, group: PromptGroup) -> dict:
        """Every way of finding noise for the prompts of a group."""
        texts = tuple(prompts.captions[i] for i in group.members)
        wanted = torch.tensor([labels(prompts.scenes[i]) for i in group.members])
        request = Request(texts, "", group.height, group.width, self.sampler, self.steps, seed=group.seed)
        generate = Generator(self.model, self.decode, request, self.t5.encode(list(texts), 256))
        curve: list[list[float]] = []

        def watch(done: Iteration, images: Tensor) -> None:
            with torch.no_grad():
                curve.append(self.likely_b(images, texts).tolist())
        found = {"optimised": optimise_noise(generate, self.reward, texts, generate.start, self.recipe, watch)}
        tries = forwards_of(self.recipe)
        for name, propose in (("best of n", fresh_noise), ("search", near)):
            found[name] = search_noise(generate, self.reward, texts, generate.start, tries,
                                       propose(torch.Generator().manual_seed(group.seed + 1)))
        with torch.no_grad():
            shown = {"as it is": generate(generate.start), **{name: each.images for name, each in found.items()}}
            said = {name: self.scores(images, texts, wanted) for name, images in shown.items()}
        return {"members": list(group.members), "ways": said, "curve b": curve,
                "curve a": [each.total for each in found["optimised"].history],
                "best a": [each.best for each in found["optimised"].history],
                "norm": [each.norm for each in found["optimised"].history]}

    def scores(self, images: Tensor, texts: tuple[str, ...], wanted: Tensor) -> dict[str, list[float]]:
        read = torch.stack([logits.argmax(1) for logits in self.judge_b((images * 255).round() / 255)], 1)
        right = (read == wanted) & (wanted >= 0)
        return {"right": right.sum(1).tolist(), "asked": (wanted >= 0).sum(1).tolist(),
                "a": self.reward(images, texts).tolist(), "b": self.likely_b(images, texts).tolist()}


def table(parts: list[dict]) -> str:
    """Means with 95 % intervals, and differences from the noise as it is, of the same prompts."""
    rows = {way: {what: torch.tensor([value for part in parts for value in part["ways"][way][what]]).double()
                  for what in ("right", "asked", "a", "b")} for way in WAYS}
    count = len(rows[WAYS[0]]["a"])
    drawn, one = resamples(count), torch.ones(count).double()
    lines = [f"{count} held-out prompts", "| noise | all attributes, % | whole images, % | difference | "
             "log-likelihood by judge B | by judge A |", "|---|---|---|---|---|---|"]
    whole = {way: (row["right"] == row["asked"]).double() for way, row in rows.items()}
    for way, row in rows.items():
        facts, images = estimate(row["right"], row["asked"], drawn), estimate(whole[way], one, drawn)
        more = paired_difference((whole[way], one), (whole[WAYS[0]], one), drawn)
        lines.append(f"| {way} | {100 * facts.value:.1f} ± {100 * facts.half:.1f} | {100 * images.value:.1f} ± "
                     f"{100 * images.half:.1f} | {100 * more.value:+.1f} [{100 * more.low:+.1f}, "
                     f"{100 * more.high:+.1f}] | {row['b'].mean():.3f} (median {row['b'].median():.3f}) | "
                     f"{row['a'].mean():.3f} |")
    return "\n".join(lines)


def plot(panels: dict[str, list[dict]], path: Path) -> None:
    """A panel each: mean log-likelihoods of the image at each iteration, by the rewarding judge and the other one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(3 + 4 * len(panels), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, parts) in zip(every, panels.items()):
        for name, label in (("curve a", "judge A, the reward"), ("best a", "judge A, best so far"),
                            ("curve b", "judge B")):
            rows = torch.cat([torch.tensor(part[name]) for part in parts], 1)
            axes.plot(range(1, len(rows) + 1), rows.mean(1), "--" if "best" in name else "-", label=label)
        axes.set(title=title, xlabel="iteration")
        axes.grid(alpha=0.3)
    every[0].set_ylabel("mean log-likelihood of what the prompt states")
    every[0].legend()
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=90)


def read_parts(folder: Path) -> list[dict]:
    """The results in a work folder, one per group of prompts."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]*.json"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for results")
    parser.add_argument("--plot", nargs="+", metavar=("PNG", "TITLE=DIR"), help="draw curves of work folders, no more")
    parser.add_argument("--weights", type=Path, default=SHIPPED.student, help="few-step student")
    parser.add_argument("--lora", type=Path, help="that makes the weights a few-step student, such as DMD's")
    parser.add_argument("--sampler", default="lcm")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--count", type=int, default=100, help="held-out prompts")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--groups", type=int, help="stop after so many groups of prompts")
    args = parser.parse_args()
    if args.plot:
        folders = dict(text.rsplit("=", 1) for text in args.plot[1:])
        plot({title: read_parts(Path(folder)) for title, folder in folders.items()}, Path(args.plot[0]))
        return
    if args.work is None:
        parser.error("--work is missing, the folder for results")
    args.work.mkdir(parents=True, exist_ok=True)
    prompts = Prompts.held_out(args.count, 7)
    bench = Bench(args.weights, args.lora, args.sampler, args.steps, NoiseRecipe(args.iterations))
    parts = []
    groups = sorted(prompts.groups(args.batch), key=lambda group: group.members.start // (5 * args.batch))
    for number, group in enumerate(groups[:args.groups]):
        place = args.work / f"{number:03d}.json"
        if not place.exists():
            with replacing(place) as beside:
                beside.write_text(json.dumps(bench.measure(prompts, group)))
        parts.append(json.loads(place.read_text()))
        plot({f"{args.sampler}, {args.steps} steps": parts}, args.work / "curve.png")
        print(table(parts), flush=True)


if __name__ == "__main__":
    main()
