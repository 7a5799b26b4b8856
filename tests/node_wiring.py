"""A diagram for each node's help page: what it is usually connected with, as the workflows have it.

    python tests/node_wiring.py      draws web/docs/<id>/<language>.svg
"""
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from node_texts import DOCS, LANGUAGES, read  # noqa: E402

# Title of stock nodes, as ComfyUI has them in each language.
STOCK = {
    "en": {"KSampler": "KSampler", "SamplerCustom": "SamplerCustom", "VAELoader": "Load VAE", "VAEDecode": "VAE Decode",
           "VAEEncode": "VAE Encode", "SaveImage": "Save Image", "PreviewImage": "Preview Image",
           "LoadImage": "Load Image", "SamplerCustomAdvanced": "SamplerCustomAdvanced",
           "EmptyLatentImage": "Empty Latent Image", "ImageInvert": "Invert Image", "ImageScale": "Upscale Image",
           "ImageScaleBy": "Upscale Image By"},
    "zh": {"KSampler": "K采样器", "SamplerCustom": "自定义采样器", "VAELoader": "加载VAE", "VAEDecode": "VAE解码",
           "VAEEncode": "VAE编码", "SaveImage": "保存图像", "PreviewImage": "预览图像", "LoadImage": "加载图像",
           "SamplerCustomAdvanced": "自定义采样器（高级）", "EmptyLatentImage": "空Latent图像",
           "ImageInvert": "反转图像", "ImageScale": "缩放图像", "ImageScaleBy": "缩放图像（比例）"},
}
# Nodes that no workflow has, or has only beside what is unusual: (the other node, this one's input), (the other node,
# this one's output).
ELSEWHERE: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    "PixArtLoader": ([], [("PixArtTextEncode", "MODEL"), ("KSampler", "MODEL")]),
    "PixArtCheck": ([("PixArtLoader", "model"), ("PixArtT5Loader", "clip"), ("VAELoader", "vae"),
                     ("PixArtControlNetLoader", "control_net")], []),
    "PixArtFeedback": ([("PixArtLoader", "model")], [("KSampler", "MODEL")]),
    "PixArtLCMSigmas": ([("PixArtLoader", "model")], [("SamplerCustom", "MODEL"), ("SamplerCustom", "SAMPLER"),
                                                      ("SamplerCustom", "SIGMAS")]),
    "PixArtLoraLoader": ([("PixArtLoader", "model")], [("PixArtLCMSampler", "MODEL")]),
    "PixArtFormerSize": ([], [("EmptyLatentImage", "width"), ("EmptyLatentImage", "height")]),
    "PixArtFormerSizeCondition": ([("PixArtTextEncode", "cond")], [("KSampler", "cond")]),
}
WIDE, ROW, ARROW, MARGIN = 360, 34, 16, 10


@dataclass(frozen=True)
class Wiring:
    """Of one node: the nodes it is connected with, each with the names of the inputs or outputs of this one."""

    incoming: dict[str, str]
    outgoing: dict[str, str]
    wires: int = 0      # names connected, but for prompt and seed, which are usually written on the node


def by_node(wires: Iterable[tuple[str, str]]) -> dict[str, str]:
    """(node, name) -> node with its names, in order."""
    found: dict[str, list[str]] = {}
    for node, name in dict.fromkeys(wires):
        found.setdefault(node, []).append(name)
    return {node: ", ".join(names) for node, names in found.items()}


def in_workflow(path: Path) -> Iterable[tuple[str, Wiring]]:
    """Every node of a page form with what it is connected with."""
    page = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in page["nodes"]}
    for key, node in nodes.items():
        incoming = [(nodes[source]["type"], node["inputs"][slot]["name"])
                    for _, source, _, target, slot, _ in page["links"] if target == key]
        outgoing = [(nodes[target]["type"], node["outputs"][slot]["name"])
                    for _, source, slot, target, _, _ in page["links"] if source == key]
        usual_ones = {wire for wire in (*incoming, *outgoing) if wire[1] not in ("text", "seed")}
        yield node["type"], Wiring(by_node(incoming), by_node(outgoing), len(usual_ones))


def by_name(path: Path) -> str:
    return path.stem


def usual(kind: str) -> Wiring:
    """The richest among the workflows, the first by name of several; else from the table above."""
    paths = sorted((ROOT / "workflows").glob("*.json"), key=by_name)
    found = [wiring for path in paths for node, wiring in in_workflow(path) if node == kind]
    if kind in ELSEWHERE or not found:
        incoming, outgoing = ELSEWHERE[kind]
        return Wiring(by_node(incoming), by_node(outgoing))
    return max(found, key=lambda wiring: wiring.wires)


def row(top: float, left: str, right: str, fill: str) -> str:
    """A box of the full width with the name of a node on its left and of an input or output on its right."""
    return (f'<rect x="{MARGIN}" y="{top}" width="{WIDE - 2 * MARGIN}" height="{ROW - 6}" rx="6" fill="{fill}"/>'
            f'<text x="{MARGIN + 10}" y="{top + 19}" fill="#eee">{escape(left)}</text>'
            f'<text x="{WIDE - MARGIN - 10}" y="{top + 19}" text-anchor="end" fill="#9cf">{escape(right)}</text>')


def arrow(top: float) -> str:
    middle = WIDE / 2
    return f'<path d="M{middle:g} {top}v12m-5 -5l5 5l5 -5" fill="none" stroke="#8ab" stroke-width="1.5"/>'


def drawing(kind: str, wiring: Wiring, titles: dict[str, str]) -> str:
    """SVG, narrow as the page's help panel: what comes in, an arrow, the node, an arrow, what it goes to."""
    own = [(titles[kind], "", "#23668f")]
    groups = [[(titles.get(node, node), name, "#3a3a3a") for node, name in side.items()]
              for side in (wiring.incoming, wiring.outgoing)]
    parts: list[str] = []
    top = MARGIN
    for group in filter(None, (groups[0], own, groups[1])):
        if parts:
            parts.append(arrow(top - 3))
            top += ARROW
        for texts in group:
            parts.append(row(top, *texts))
            top += ROW
    high = top + MARGIN - 6
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE}" height="{high}" viewBox="0 0 {WIDE} {high}" '
            f'font-family="sans-serif" font-size="13">\n<rect width="{WIDE}" height="{high}" rx="8" fill="#222"/>\n'
            f'{body}\n</svg>\n')


def titles_in(language: str) -> dict[str, str]:
    own = {kind: texts["display_name"] for kind, texts in read(language, "nodeDefs").items()}
    return {**STOCK[language], **own}


def drawings() -> dict[Path, str]:
    """Every file and what is in it."""
    found = {}
    for language in LANGUAGES:
        titles = titles_in(language)
        for kind in read(language, "nodeDefs"):
            found[DOCS / kind / f"{language}.svg"] = drawing(kind, usual(kind), titles)
    return found


def main() -> None:
    for path, text in drawings().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
