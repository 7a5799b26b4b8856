"""docs/compatibility.md from tests/host/compatibility.json: python tests/compatibility_table.py writes it anew."""
import json
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE = ROOT / "tests" / "host" / "compatibility.json", ROOT / "docs" / "compatibility.md"
COLUMNS = ("0.3.64", "0.33.0")
WORDS = {"works": "works", "same": "no effect", "refused": "refused", "absent": "not there",
         "gpu": "needs a GPU"}
HEAD = """# What works with PixArt in ComfyUI

Stock nodes put between Load PixArt, Load T5 for PixArt or Load PixArt ControlNet and the sampler, each run with a small
random model on both versions of ComfyUI. *works*: the picture is finite and differs from the one without the node.
*refused*: one clear error, quoted. *no effect*: the picture is the same, bit for bit. *not there*: that version has no
such node or option. Start options: both versions were started with them and drew PixArt-mini over HTTP, on a CPU
(`pytest -m slow tests/host/test_starts.py`). *works* there means another picture of the same thing, and *needs a GPU*
that the option means nothing without a card, so it was not tried.

This page is written by `python tests/compatibility_table.py` from `tests/host/compatibility.json`; the host tests run
every row (`tests/host/inside/facts_compatibility.py`, `tests/host/test_starts.py`).
"""
TAIL = """
## Samplers and schedulers of KSampler

Every sampler and every scheduler in the lists of both versions draws a finite picture (not run:
dpm_adaptive, which chooses its number of passes and takes hundreds with random weights).

## Other packs

By the parts of the host that they use, each tried with a small stand-in that does the same:

| pack | what it does | with PixArt |
|---|---|---|
| Tiled Diffusion | wraps the network, cuts the latent, repeats the conditions | works: equal tiles are equal |
| WaveSpeed, TeaCache | replaces a block, looks at its output | works: an unchanged block changes nothing |
| KJNodes, SageAttention | puts another attention into the options | works: called in every attention |
| Dynamic Thresholding, ppm | computes guidance itself | works |
| AnimateDiff-Evolved, context windows | runs some pictures of a batch at a time | works: equal to all at once |
| prompt control packs | encode parts of a prompt apart, combine and schedule them | works |
| ComfyUI_ExtraModels | has its own `PixArtLoraLoader` | both load; ours is `PixArtDeltaLoraLoader` |
"""


def rows() -> list[dict]:
    return json.loads(DATA.read_text(encoding="utf-8"))


def line(row: dict) -> str:
    outcomes = [WORDS[row["outcome"][column]] for column in COLUMNS]
    said = f"\"{row['says']}\"" if "says" in row else ""
    notes = "; ".join(part for part in (said, row.get("note", "")) if part)
    return f"| {row['name']} | {' | '.join(outcomes)} | {notes} |"


def page() -> str:
    parts = [HEAD]
    ordered = sorted(rows(), key=lambda row: GROUPS.index(row["group"]))
    for group, members in groupby(ordered, key=lambda row: row["group"]):
        parts.append(f"\n## {group}\n\n| node | {' | '.join(COLUMNS)} | |\n|---|---|---|---|\n"
                     + "\n".join(map(line, members)) + "\n")
    return "".join(parts) + TAIL


GROUPS = list(dict.fromkeys(row["group"] for row in rows()))

if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
