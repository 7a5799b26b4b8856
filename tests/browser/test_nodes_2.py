"""The page's newer renderer (Nodes 2.0): the canvas of PixArt Sketch and what nodes show on themselves work too."""
from collections.abc import Iterator

import pytest
from browser.test_page import UNKNOWN, drop
from browser.test_run import SET, ended, run
from browser.test_sketch import PIXELS, SHOWN, TEXT, press, settle, stroke

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

SWITCH = "async on => { await window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on); }"
NODE = "[data-node-id]"
PLACES = "() => window.app.graph._nodes.map(node => [...node.pos])"
# Titles of nodes whose elements lie over each other, and by how many pixels of the graph.
OVER = """() => {
    const scale = window.app.canvas.ds.scale, found = [];
    const boxes = [...document.querySelectorAll("[data-node-id]")]
        .map(each => [each.dataset.nodeId, each.getBoundingClientRect()]);
    for (const [a, p] of boxes) for (const [b, q] of boxes) {
        const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
        const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
        if (Number(a) < Number(b) && wide > 1 && high > 1) found.push([a, b, wide / scale, high / scale]);
    }
    return found;
}"""
ONE_NODE = """() => {
    window.app.graph.clear();
    window.app.graph.add(window.LiteGraph.createNode("VAEDecode"));
}"""


@pytest.fixture(scope="module")
def modern(screen, release) -> Iterator[object]:
    """The page with Nodes 2.0; afterwards without."""
    if release < (0, 4):
        pytest.skip("the page of so old a ComfyUI knows the switch, but draws no widgets then")
    screen.page.evaluate(SWITCH, True)
    screen.page.evaluate(ONE_NODE)
    screen.page.locator(NODE).first.wait_for(timeout=60_000)
    screen.errors.clear()
    yield screen
    screen.page.evaluate("() => window.app.graph.clear()")
    screen.page.evaluate(SWITCH, False)
    screen.page.wait_for_timeout(500)


def opened(screen, name: str) -> None:
    screen.page.evaluate("() => window.app.graph.clear()")
    drop(screen, name)
    screen.page.locator(NODE).first.wait_for()
    screen.page.wait_for_timeout(1000)


def test_the_canvas_is_drawn_on_and_nodes_stay_in_their_places(modern):
    opened(modern, "mini-sketch")
    press(modern, "Live")
    text, (wide, high, ink) = modern.page.evaluate(TEXT), modern.page.evaluate(PIXELS)
    places = modern.page.evaluate(PLACES)
    stroke(modern, [(0.1, 0.05), (0.9, 0.05)])
    modern.shoot("page-nodes-2-sketch")
    assert (wide, high) == (128, 128) and modern.page.evaluate(PIXELS)[2] > ink + 100
    press(modern, "Undo")
    assert modern.page.evaluate(TEXT) == text and modern.page.evaluate(PIXELS)[2] == ink
    assert modern.page.evaluate(PLACES) == places
    assert modern.errors == []


def test_the_image_follows_the_pen(modern):
    opened(modern, "mini-sketch")
    before = modern.page.evaluate(SHOWN)
    stroke(modern, [(0.3, 0.9), (0.7, 0.9)])
    settle(modern)
    assert modern.page.evaluate(SHOWN) not in (None, before)
    assert modern.errors == []


def test_a_workflow_runs_and_its_nodes_say_what_they_found(modern):
    opened(modern, "mini-lcm-4-steps")
    assert modern.page.evaluate(UNKNOWN) == [] and modern.page.evaluate(OVER) == []
    modern.page.evaluate(SET, ["PixArtTextEncode", "text", "a small green ring at the top"])      # not run before
    modern.page.evaluate(SET, ["PixArtLoader", "weight_dtype", "fp32"])
    assert ended(modern, run(modern))["status"]["status_str"] == "success"
    modern.page.get_by_text("of 256 tokens").first.wait_for(timeout=10_000)
    found = modern.page.get_by_text("reference layout").first
    found.wait_for(timeout=10_000)
    assert "reference layout\nlcm: 4 steps" in found.inner_text()        # not in one line
    modern.page.wait_for_timeout(500)
    modern.shoot("page-nodes-2")
    assert modern.page.evaluate(OVER) == []
    assert modern.errors == []


@pytest.mark.parametrize("name", ["alpha-512-sketch", "delta-1024-control-hed-lcm"])
def test_nodes_that_lack_their_files_lie_over_no_other(modern, name):
    """Each has a bar then that says so; that of PixArt HED was hidden, and a node with many inputs is taller here."""
    opened(modern, name)
    modern.page.locator(NODE).get_by_text("Error", exact=True).first.wait_for(timeout=60_000)
    modern.page.wait_for_timeout(500)
    modern.shoot(f"page-nodes-2-{name}")
    assert modern.page.evaluate(OVER) == []


def test_file_names_in_a_note_are_readable(modern):
    """By the contrast of the W3C's guidelines: 1.5 on the brown that the page gives notes."""
    opened(modern, "mini-lcm-4-steps")
    ratio = modern.page.evaluate("""() => {
        const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
        const over = ([r, g, b, a = 1], below) => [r, g, b].map((value, i) => a * value + (1 - a) * below[i]);
        const light = rgb => rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const name = document.querySelector("[data-node-id] td code"), boxes = [];
        for (let at = name; at; at = at.parentElement) boxes.unshift(numbers(getComputedStyle(at).backgroundColor));
        const ground = boxes.reduce((below, box) => over(box, below), [0, 0, 0]);
        const pair = [light(over(numbers(getComputedStyle(name).color), ground)), light(ground)].sort((a, b) => b - a);
        return (pair[0] + 0.05) / (pair[1] + 0.05);
    }""")
    assert ratio > 2
