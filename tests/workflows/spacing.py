"""How much room the nodes of a workflow need, and `python tests/workflows/spacing.py`, which moves those that lack it.

A node grows when it runs, by the text that it shows on itself; the page's newer renderer draws taller nodes as well.
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TITLE, TALLER, MARGIN = 30, 38, 25          # pixels: above a node; more in the newer renderer; around a group's nodes
TEXT = 66                                   # what a node shows on itself, two lines
TEXT_NODES = {"PixArtLoader", "PixArtT5Loader", "PixArtControlNetLoader", "PixArtDeltaLoraLoader", "PixArtEmptyLatent",
              "PixArtPromptList", "PixArtFeedback", "PixArtCheck", "PixArtSteps", "PixArtLCMSampler", "PixArtCache",
              "PixArtReNO", "PixArtCompare"}
PREVIEW = 235                               # the image in a sampler while it works, if the host makes previews
PREVIEW_NODES = {"KSampler", "SamplerCustom", "PixArtLCMSampler", "PixArtDMDSampler", "PixArtReNO", "PixArtCompare"}
# With many inputs; with the bar that says that a file is missing.
TALLER_OF = {"PixArtControlNetApply": 46, "PixArtHED": 62}
LEAST_HIGH = {"PixArtTextEncode": 298}      # with its text; a text box gives room up to here and no further
ENTRY = re.compile(r'^(\s*)(\{"id": .*\})(,?)$')


def room(node: dict) -> int:
    """Pixels that must be free from the lower edge of a node, as it is in the file, to the `pos` of the one below."""
    return growth(node) + TITLE + TALLER_OF.get(node["type"], TALLER)


def growth(node: dict) -> int:
    """Pixels that a node gains when it runs."""
    shown = TEXT * (node["type"] in TEXT_NODES) + PREVIEW * (node["type"] in PREVIEW_NODES)
    return max(shown, LEAST_HIGH.get(node["type"], 0) - node["size"][1])


def beside(a: dict, b: dict) -> bool:
    """Whether no node moved up or down could meet the other."""
    return a["pos"][0] >= b["pos"][0] + b["size"][0] or b["pos"][0] >= a["pos"][0] + a["size"][0]


def too_near(nodes: list[dict]) -> list[tuple[str, str, float]]:
    """Type of a node, of the one below it, and the pixels that are lacking between them."""
    found = [(upper["type"], lower["type"], upper["pos"][1] + upper["size"][1] + room(upper) - lower["pos"][1])
             for upper in nodes for lower in nodes if upper["pos"][1] < lower["pos"][1] and not beside(upper, lower)]
    return [each for each in found if each[2] > 0]


def spread(nodes: list[dict]) -> None:
    """Move nodes down until each has its room."""
    placed: list[dict] = []
    for node in sorted(nodes, key=lambda each: each["pos"][1]):
        lowest = [above["pos"][1] + above["size"][1] + room(above) for above in placed if not beside(above, node)]
        node["pos"][1] = max([node["pos"][1], *lowest])
        placed.append(node)


def inside(group: dict, node: dict) -> bool:
    left, top, wide, high = group["bounding"]
    return left <= node["pos"][0] < left + wide and top <= node["pos"][1] < top + high


def rearranged(text: str) -> str:
    """The file with its nodes spread and its groups as tall as these need; a node or group is one line."""
    page = json.loads(text)
    members = {group["id"]: [node for node in page["nodes"] if inside(group, node)] for group in page["groups"]}
    spread(page["nodes"])
    for group in page["groups"]:
        reach = [node["pos"][1] + node["size"][1] + growth(node) for node in members[group["id"]]]
        group["bounding"][3] = max([group["bounding"][3], *(y + MARGIN - group["bounding"][1] for y in reach)])
    made = {(kind, each["id"]): each for kind in ("nodes", "groups") for each in page[kind]}

    def line(old: str) -> str:
        match = ENTRY.match(old)
        entry = json.loads(match[2]) if match else {}
        new = made.get(("nodes" if "type" in entry else "groups", entry.get("id")))
        return old if new is None or new == entry else f"{match[1]}{json.dumps(new, ensure_ascii=False)}{match[3]}"

    return "\n".join(map(line, text.split("\n")))


def main() -> None:
    for path in sorted((ROOT / "workflows").glob("*.json")):
        text = path.read_text(encoding="utf-8")
        if too_near(json.loads(text)["nodes"]):
            path.write_text(rearranged(text), encoding="utf-8")
            sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    main()
