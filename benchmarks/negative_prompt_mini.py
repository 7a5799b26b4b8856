"""Does a negative prompt keep what it names out of the image, and what does that cost? PixArt-mini's LCM student.

    python benchmarks/negative_prompt_mini.py --work DIR [--count 500]     goes on where it was stopped; prints tables

Held-out prompts about one thing leave one attribute open, and the negative prompt names the value that their images
then show, as a user who wants another one would. Sentence, seed and negative prompt are the same for NAG and for
guidance in two passes. Judge B reads whether the named value is still there, and whether the rest is right.
"""
import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pixart.checkpoint import load  # noqa: E402
from pixart.files.atomic import replacing  # noqa: E402
from pixart.generation.pipeline import Pipeline  # noqa: E402
from pixart.generation.request import Request  # noqa: E402
from pixart.generation.sample import Conditioned  # noqa: E402
from pixart.mini import SHIPPED  # noqa: E402
from pixart.mini.autoencoder import load_autoencoder  # noqa: E402
from pixart.mini.grammar import PLACE_WORDS  # noqa: E402
from pixart.mini.images import BUCKETS  # noqa: E402
from pixart.mini.judge import load_judge  # noqa: E402
from pixart.mini.measure.batches import to_bytes  # noqa: E402
from pixart.mini.measure.bootstrap import estimate, paired_difference, resamples  # noqa: E402
from pixart.mini.measure.prompts import Prompts  # noqa: E402
from pixart.mini.measure.tables import markdown, signed  # noqa: E402
from pixart.mini.scenes import ATTRIBUTES, stated_facts  # noqa: E402
from pixart.model.nag import NAG  # noqa: E402
from pixart.sampling.guidance import guided  # noqa: E402
from pixart.sampling.noise import ImageNoise  # noqa: E402
from pixart.sampling.samplers import SAMPLERS  # noqa: E402
from pixart.text.encoded import Encoded, stack_captions  # noqa: E402
from pixart.text.t5 import T5Encoder  # noqa: E402

# What a sentence may leave open. Not texture: captions state all of these, but call a thing without words plain.
OPEN = ("shape", "colour", "size", "position", "background")
STEPS, KEPT = 4, 50


@dataclass(frozen=True)
class Case:
    """A sentence that leaves the attribute `open` open, what it states (and the image must show), and the size
    and seed of its image."""

    text: str
    open: str
    known: dict[str, str]
    height: int
    width: int
    seed: int


@dataclass(frozen=True)
class Way:
    """How the negative prompt is applied: by NAG, by guidance in two passes, or, with both at 1, not at all.

    whole: it is the sentence with the words for the value in it, not these words alone. other: it names the next value
    instead, which the image did not show: a control for images that change whatever the negative prompt names.
    """

    name: str
    nag: float = 1.0
    cfg: float = 1.0
    whole: bool = False
    other: bool = False


PLAIN = Way("no negative prompt")
WORDS = (Way("NAG 3", nag=3), Way("NAG 5", nag=5), Way("NAG 7", nag=7), Way("CFG 1.5", cfg=1.5), Way("CFG 2", cfg=2))
STEERED = (*WORDS, *(replace(way, name=f"{way.name}, sentence", whole=True) for way in (WORDS[1], WORDS[3])))
DISTURBED = tuple(replace(way, name=f"{way.name}, another value", other=True)
                  for way in STEERED if way.nag == 5 or way.cfg == 1.5)
WAYS = (PLAIN, *STEERED, *DISTURBED)
BASES = (PLAIN, STEERED[3], STEERED[6])


def sentence(known: dict[str, str]) -> str:
    """The wording of the grammar in which every attribute has words of its own, of those in `known`."""
    thing = " ".join(known[name] for name in ("size", "texture", "colour") if name in known)
    parts = [f"a {thing} {known.get('shape', 'thing')}"]
    parts += [PLACE_WORDS[known["position"]][0]] if "position" in known else []
    parts += [words_for("background", known["background"])] if "background" in known else []
    return " ".join(parts)


def words_for(what: str, value: str) -> str:
    if what == "background":
        return f"on a {value} background"
    return PLACE_WORDS[value][0] if what == "position" else value


def cases_of(count: int) -> list[Case]:
    """The first `count` held-out scenes of one thing; each attribute is left open in each size of image."""
    scenes = [scene for scene in Prompts.held_out(2 * count + 20, 7).scenes if len(scene.things) == 1][:count]
    made = []
    for number, scene in enumerate(scenes):
        left, facts = OPEN[(number + number // len(BUCKETS)) % len(OPEN)], stated_facts(scene)
        known = {name: value for name, value in facts.items() if name != left}
        made.append(Case(sentence(known), left, known, *BUCKETS[number % len(BUCKETS)], number))
    return made


def negative_prompt(case: Case, shown: str, way: Way) -> str:
    values = ATTRIBUTES[case.open]
    named = values[(values.index(shown) + way.other) % len(values)]
    return sentence(case.known | {case.open: named}) if way.whole else words_for(case.open, named)


class Networks:
    """The networks, and what judge B reads in one image at a time."""

    def __init__(self) -> None:
        self.model = load(SHIPPED.student, dtype=torch.float32).eval().requires_grad_(False)
        self.pipe, self.t5 = Pipeline.of(self.model), T5Encoder(SHIPPED.t5, 16)
        self.vae, self.judge = load_autoencoder(SHIPPED.vae), load_judge(SHIPPED.judge)

    def read(self, case: Case, shown: str | None, way: Way) -> dict:
        """What the judge reads, and the seconds of computing that the latent took. shown: without negative prompt."""
        caption = self.t5.encode([case.text], 256)
        negative = caption if shown is None else self.t5.encode([negative_prompt(case, shown, way)], 256)
        request = Request((case.text,), height=case.height, width=case.width, steps=STEPS, seed=case.seed)
        started = time.process_time()
        latent = self.latent(request, caption, negative, way)
        seconds = time.process_time() - started
        with torch.inference_mode():
            image = to_bytes(self.vae.decode(latent)).float() / 255
            read = {name: values[int(logits.argmax())]
                    for (name, values), logits in zip(ATTRIBUTES.items(), self.judge(image))}
        return {"seconds": seconds, "read": read}

    def latent(self, request: Request, caption: Encoded, negative: Encoded, way: Way) -> Tensor:
        if way.cfg != 1:
            return guided_latent(self.pipe, request, caption, negative, way.cfg)
        policies = [NAG(self.pipe.config, negative.context, way.nag)] if way.nag != 1 else []
        return self.pipe.sample(request, caption, caption, policies=policies)


@torch.inference_mode()
def guided_latent(pipe: Pipeline, request: Request, caption: Encoded, negative: Encoded, scale: float) -> Tensor:
    """(1, 4, h, w): guidance with an unguided sampler of the library, as PixArt LCM Sampler does at cfg above 1."""
    chosen, shape = SAMPLERS[request.sampler], (pipe.config.channels, *request.latent_shape)
    network = Conditioned(pipe.transformer, request, *stack_captions(negative, caption), None)
    return chosen.run(guided(network, scale), ImageNoise([request.seed], shape), request.steps, request.rule, None)


def answers(work: Path, way: Way, cases: Sequence[Case], networks: Networks) -> list[dict]:
    """Readings of all cases, kept in a file of the way that is written every `KEPT` cases and not made again."""
    path, first = work / f"{way.name}.json", work / f"{PLAIN.name}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    shown = [None] * len(cases) if way == PLAIN else [
        row["read"][case.open] for row, case in zip(json.loads(first.read_text()), cases)]
    while len(rows) < len(cases):
        some = slice(len(rows), min(len(rows) + KEPT, len(cases)))
        rows += [networks.read(case, value, way) for case, value in zip(cases[some], shown[some], strict=True)]
        with replacing(path) as beside:
            beside.write_text(json.dumps(rows))
    return rows[:len(cases)]


Share = tuple[Tensor, Tensor]       # values and weights of every sentence, (n,) float64 each


def shares(cases: Sequence[Case], plain: Sequence[dict], rows: Sequence[dict]) -> dict[str, Share]:
    """Whether the value that `plain` showed is still there, the share of stated facts that are right, and whether an
    image no longer shows the value and has every stated fact right."""
    there = torch.tensor([row["read"][case.open] == first["read"][case.open]
                          for case, first, row in zip(cases, plain, rows)]).double()
    right = torch.tensor([sum(row["read"][name] == value for name, value in case.known.items())
                          for case, row in zip(cases, rows)]).double()
    asked = torch.tensor([len(case.known) for case in cases]).double()
    each = torch.ones(len(cases)).double()
    return {"still there": (there, each), "stated and right": (right, asked),
            "gone, all else right": ((there == 0).double() * (right == asked).double(), each)}


def main_table(found: dict[Way, dict[str, Share]], seconds: dict[Way, float], drawn: Tensor) -> str:
    """Per cent, +- half of the 95 % interval; the time without decoding."""
    rows = []
    for way, measured in found.items():
        values = [estimate(*share, drawn) for share in measured.values()]
        rows.append([way.name, str(STEPS * (1 if way.cfg == 1 else 2)), f"{1000 * seconds[way]:.0f}",
                     *(f"{100 * value.value:.1f} +- {100 * value.half:.1f}" for value in values)])
    return markdown(["", "passes", "ms", *next(iter(found.values()))], rows)


def differences_table(found: dict[Way, dict[str, Share]], base: Way, drawn: Tensor) -> str:
    """In brackets the paired 95 % interval, bold where it excludes zero."""
    rows = [[way.name, *(signed(paired_difference(measured[name], other, drawn), 100, 1)
                         for name, other in found[base].items())] for way, measured in found.items() if way != base]
    return markdown([f"minus {base.name}", *found[base]], rows)


def table_by_attribute(found: dict[Way, dict[str, Share]], cases: Sequence[Case]) -> str:
    """Share of the images that still show the value, by what the sentence leaves open."""
    members = {name: torch.tensor([case.open == name for case in cases]) for name in OPEN}
    rows = [[way.name, *(f"{100 * measured['still there'][0][rows].mean():.0f}" for rows in members.values())]
            for way, measured in found.items()]
    return markdown(["still there", *(f"{name} ({int(rows.sum())})" for name, rows in members.items())], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for results")
    parser.add_argument("--count", type=int, default=500, help="held-out prompts")
    args = parser.parse_args(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cases, networks = cases_of(args.count), Networks()
    rows = {way: answers(args.work, way, cases, networks) for way in WAYS}
    found = {way: shares(cases, rows[PLAIN], each) for way, each in rows.items()}
    seconds = {way: statistics.median(row["seconds"] for row in each) for way, each in rows.items()}
    drawn = resamples(len(cases))
    print(f"{len(cases)} held-out prompts")
    for table in (main_table(found, seconds, drawn), *(differences_table(found, base, drawn) for base in BASES),
                  table_by_attribute(found, cases)):
        print(f"\n{table}")


if __name__ == "__main__":
    main()
