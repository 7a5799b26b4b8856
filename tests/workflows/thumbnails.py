"""`python tests/workflows/thumbnails.py [NAME ...]` makes the thumbnails of the PixArt-mini workflows anew.

Each workflow runs in a real ComfyUI, and the images that tell what it does are put side by side. Do it when the
weights or the workflow changed. The host is found as the tests find it.
"""
import asyncio
import csv
import io
import logging
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "host")]

from harness import Server, Session, find_hosts, link_pack  # noqa: E402

from pixart.client.graph import Graph, nodes_named, read_workflow, with_seed, with_value  # noqa: E402

PROMPTS = ROOT / "pixart" / "mini" / "weights" / "prompts" / "pixart-mini" / "six.csv"
SHOW = ("PreviewImage", "SaveImage")
SAVED = "Save Image"                                # title of the node that keeps what a workflow is for
# Titles of the nodes that show or make an image, from left to right.
SHOWN: dict[str, tuple[str, ...]] = {
    "mini-compare": (SAVED,),
    "mini-control-inpainting": ("Before", "The map", SAVED),
    "mini-control-lcm-4-steps": ("The map", SAVED),
    "mini-fp8": ("As it is", SAVED),
    "mini-img2img": ("Cut to size", SAVED),
    "mini-long-prompt": (SAVED,),
    "mini-negative-prompt": ("Without negative prompt", SAVED),
    "mini-reno": ("Rewards", SAVED),
    "mini-save-prompt": (SAVED,),
    "mini-saved-prompt": (SAVED,),
    "mini-sketch": ("PixArt Sketch", "Preview Image"),
    "mini-train-lora": ("Style to learn: inverted colours", SAVED),
    "mini-two-controls": ("First map shown", "Second map shown", SAVED),
    "mini-two-pass-upscale": ("First image", SAVED),
}
# These generate all prompts of PROMPTS, with one seed.
SIX = ("mini-lcm-4-steps", "mini-tdm-4-steps", "mini-dmd-1-step", "mini-teacher-20-steps-cfg", "mini-cache")
LIST = "mini-prompt-list"                           # which brings these prompts itself, each in its own size
SIX_SEED, SIDE, ALONE, CELL, WIDEST, QUALITY = 3, 256, 360, 240, 646, 90


def node_titled(graph: Graph, title: str) -> str:
    """Number of the node of a title, of several the one that shows images. Raises KeyError where it is not one."""
    found = nodes_named(graph, title)
    showing = [number for number in found if graph[number]["class_type"] in SHOW]
    for candidates in (found, showing):
        if len(candidates) == 1:
            return candidates[0]
    raise KeyError(f"{len(found)} nodes are called {title!r}, {len(showing)} of them show images; expected one")


def with_previews(graph: Graph, titles: tuple[str, ...]) -> tuple[Graph, list[str]]:
    """The graph with a preview of each node's first output, or of what a preview or save node is given; and those."""
    graph, shown = dict(graph), []
    for title in titles:
        number = node_titled(graph, title)
        node = graph[number]
        images = node["inputs"]["images"] if node["class_type"] in SHOW else [number, 0]
        shown.append(f"shown {title}")
        graph[shown[-1]] = {"class_type": "PreviewImage", "inputs": {"images": images}, "_meta": {"title": title}}
    return graph, shown


async def drawn(session: Session, graph: Graph, titles: tuple[str, ...]) -> list[list[Image.Image]]:
    """The images of each titled node."""
    graph, shown = with_previews(graph, titles)
    outcome = await session.follow(session.queue(graph))
    if outcome.end != "execution_success":
        raise RuntimeError(f"{outcome.end}: {outcome.error}")
    return [[fetched(session.server, each) for each in outcome.images(number)] for number in shown]


def fetched(server: Server, place: dict) -> Image.Image:
    with urllib.request.urlopen(f"{server.address}/view?{urllib.parse.urlencode(place)}") as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


def grid(images: list[Image.Image]) -> Image.Image:
    """Six images in two rows, each whole in its cell."""
    sheet = Image.new("RGB", (3 * CELL, 2 * CELL), "white")
    for place, image in enumerate(images):
        factor = CELL / max(image.size)
        fitted = image.resize((round(image.width * factor), round(image.height * factor)), Image.LANCZOS)
        left, top = place % 3 * CELL, place // 3 * CELL
        sheet.paste(fitted, (left + (CELL - fitted.width) // 2, top + (CELL - fitted.height) // 2))
    return sheet


def row(images: list[Image.Image]) -> Image.Image:
    """One image as it is, or larger; several side by side, as square tiles."""
    if len(images) == 1:
        only = images[0]
        factor = ALONE / only.width if only.width == only.height else min(1.0, WIDEST / only.width)
        return only.resize((round(only.width * factor), round(only.height * factor)), Image.LANCZOS)
    sheet = Image.new("RGB", (SIDE * len(images), SIDE))
    for place, image in enumerate(images):
        sheet.paste(image.resize((SIDE, SIDE), Image.LANCZOS), (place * SIDE, 0))
    return sheet


async def thumbnail(session: Session, name: str) -> Image.Image:
    """What the template browser shows for a workflow."""
    graph = read_workflow(ROOT / "workflows" / "api" / f"{name}.json")
    if name == LIST:
        return grid((await drawn(session, graph, (SAVED,)))[0])
    if name in SIX:
        with PROMPTS.open(encoding="utf-8", newline="") as file:
            prompts = [line["prompt"] for line in csv.DictReader(file)]
        graphs = [with_seed(with_value(graph, "Prompt.text", prompt), SIX_SEED) for prompt in prompts]
        return grid([(await drawn(session, each, (SAVED,)))[0][0] for each in graphs])
    return row([images[0] for images in await drawn(session, graph, SHOWN[name])])


async def redraw(server: Server, names: list[str]) -> None:
    async with Session(server) as session:
        for name in names:
            path = ROOT / "workflows" / f"{name}.jpg"
            (await thumbnail(session, name)).save(path, quality=QUALITY)
            logging.info("%s", path)


def main(names: list[str]) -> None:
    hosts = find_hosts()
    if not hosts:
        raise SystemExit("no ComfyUI found; name one in COMFYUI_PATH")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        link_pack(base / "custom_nodes")
        for part in ("input", "output", "temp", "user"):
            (base / part).mkdir(exist_ok=True)
        if (hosts[0].path / "input" / "example.png").exists():
            (base / "input" / "example.png").write_bytes((hosts[0].path / "input" / "example.png").read_bytes())
        with Server(hosts[0], base) as server:
            asyncio.run(redraw(server, names or sorted([*SHOWN, *SIX, LIST])))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1:])
