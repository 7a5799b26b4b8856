"""docs/compatibility.md from tests/host/compatibility.json: python tests/compatibility_table.py writes it anew."""
import json
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE = ROOT / "tests" / "host" / "compatibility.json", ROOT / "docs" / "compatibility.md"
COLUMNS = ("0.3.64", "0.33.0")
WORDS = {"works": "works", "same": "no effect", "refused": "refused", "absent": "not there",
         "gpu": "needs a GPU"}
HEAD = """# Compatibility with stock nodes and other packs

Each stock node was placed between Load PixArt, Load T5 for PixArt or Load PixArt ControlNet and the sampler, and run
with a small random model on ComfyUI 0.3.64 and 0.33.0.

| result | meaning |
|---|---|
| works | the image is finite and differs from the one without the node |
| no effect | the image is the same, bit for bit |
| refused | one clear error message, quoted |
| not there | this version of ComfyUI has no such node or option |
| needs a GPU | the option has no meaning without a GPU and was not tried |

Start options were tested by starting both versions with them and generating images with PixArt-mini over HTTP on a CPU
(`pytest -m slow tests/host/test_starts.py`); *works* there means a slightly different image of the same content.

This page is written by `python tests/compatibility_table.py` from `tests/host/compatibility.json`; the host tests run
every row (`tests/host/inside/facts_compatibility.py`, `tests/host/test_starts.py`).
"""
TAIL = """
## Samplers and schedulers of KSampler

Every sampler and every scheduler in the lists of both versions gives a finite image. Not run: dpm_adaptive, which
chooses its own number of passes and takes hundreds with random weights.

## Other packs

The packs themselves were not run. For each, a small stand-in that uses the same mechanism of ComfyUI was tested:

| mechanism | used by | with PixArt |
|---|---|---|
| wraps the network, tiles the latent, repeats the conditions | Tiled Diffusion | works: equal tiles are equal |
| replaces a block and looks at its output | WaveSpeed, TeaCache (in 2026 both only for models in their own lists, \
without PixArt: use PixArt Cache) | works: an unchanged block changes nothing |
| replaces the attention function | KJNodes, SageAttention (whose first version needs head sizes of 64, 96 or 128; \
PixArt has 72) | works: called in every attention |
| computes guidance itself | Dynamic Thresholding, ppm | works |
| runs parts of a batch separately | AnimateDiff-Evolved, context windows | works: equal to all at once |
| encodes parts of a prompt separately, combines and schedules them | prompt control packs | works |
| has its own `PixArtLoraLoader` | ComfyUI_ExtraModels | both load; ours is `PixArtDeltaLoraLoader` |
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
