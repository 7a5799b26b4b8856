"""What a user does on ComfyUI's page: drop a workflow, press Run, see the image."""
import json
from pathlib import Path

import pytest
from browser.conftest import close_dialogs, until

pytestmark = pytest.mark.browser

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
IMAGE_SECONDS = 90

DROP = """([name, text]) => {
    const carried = new DataTransfer();
    carried.items.add(new File([text], name, { type: "application/json" }));
    const target = document.querySelector("#graph-canvas") ?? document.body;
    for (const kind of ["dragenter", "dragover", "drop"])
        target.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: carried }));
}"""
TYPES = "() => window.app.graph._nodes.map(node => node.type)"
UNKNOWN = """() => window.app.graph._nodes.map(node => node.type)
    .filter(type => !["MarkdownNote", "Note"].includes(type) && !(type in LiteGraph.registered_node_types))"""
AS_API = "async () => (await window.app.graphToPrompt()).output"
# A click on Download opens the address in a new tab; here it is written down instead.
NOTE_LINKS = """() => {
    window.pixartLinks = [];
    HTMLAnchorElement.prototype.click = function () { window.pixartLinks.push(this.href); };
}"""
HISTORY = "async () => await (await fetch('/history')).json()"
BLUEPRINTS = WORKFLOWS.parent / "subgraphs"
ON_MINI = {"resolution": "128", "file": "pixart-mini/lcm.safetensors", "file_1": "pixart-mini/t5", "bits": "16",
           "vae_name": "pixart-mini/vae.safetensors", "text": "a large red circle"}
BLUEPRINTS_ON_MINI = {
    "PixArt Text to Image (delta, 4 steps)": ON_MINI,
    "PixArt Image to Image (delta, 4 steps)": ON_MINI,
    "PixArt Text to Image (alpha, CFG)": {**ON_MINI, "file": "pixart-mini/teacher.safetensors", "steps": 4},
}
# Its values, an image to begin with where it takes one, and a node that saves what comes out.
SET_AND_SAVE = """values => {
    const [node] = window.app.graph._nodes;
    for (const [name, value] of Object.entries(values))
        node.widgets.find(widget => widget.name === name).value = value;
    const save = window.LiteGraph.createNode("SaveImage");
    save.pos = [500, 0];
    window.app.graph.add(save);
    node.connect(0, save, 0);
    if (node.inputs[0].name !== "image") return;
    const load = window.LiteGraph.createNode("LoadImage");
    load.pos = [-400, 0];
    window.app.graph.add(load);
    load.widgets[0].value = "example.png";
    load.connect(0, node, 0);
}"""
# Titles of nodes that lie over each other, and by how much.
OVER = """() => {
    const nodes = window.app.graph._nodes, found = [];
    for (const a of nodes) for (const b of nodes) {
        if (a.id >= b.id) continue;
        const [x, y, w, h] = a.getBounding(), [X, Y, W, H] = b.getBounding();
        const wide = Math.min(x + w, X + W) - Math.max(x, X), high = Math.min(y + h, Y + H) - Math.max(y, Y);
        if (wide > 1 && high > 1) found.push([a.title, b.title, wide, high]);
    }
    return found;
}"""


def drop(screen, name: str, folder: Path = WORKFLOWS) -> None:
    """Drop a workflow file on the canvas and wait until the page shows its nodes."""
    text = (folder / f"{name}.json").read_text(encoding="utf-8")
    wanted = sorted(node["type"] for node in json.loads(text)["nodes"])
    screen.page.evaluate(DROP, [f"{name}.json", text])
    until(screen.page, f"wanted => JSON.stringify(({TYPES})().sort()) === wanted", 15,
          json.dumps(wanted, separators=(",", ":")))


def plain(graph: dict) -> dict:
    """An API graph without titles and with whole floats as integers (JavaScript knows one kind of number)."""
    def value(v):
        return int(v) if isinstance(v, float) and v.is_integer() else v
    return {key: (node["class_type"], {name: value(v) for name, v in node["inputs"].items()})
            for key, node in graph.items()}


@pytest.mark.parametrize("name", NAMES)
def test_dropped_workflow_has_no_missing_node_and_equals_its_api_file(screen, name):
    screen.errors.clear()
    drop(screen, name)
    if name.startswith("mini-"):
        screen.page.wait_for_timeout(300)
    else:
        close_dialogs(screen.page)               # older pages say at once what is missing
    screen.shoot(f"page-{name}")
    assert screen.page.evaluate(UNKNOWN) == []
    assert screen.page.evaluate(OVER) == []
    made = screen.page.evaluate(AS_API)
    committed = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    assert plain(made) == plain(committed)
    assert screen.errors == []


def test_missing_files_are_offered_from_where_they_are_published(screen, release):
    name = "delta-1024-control-hed-lcm"
    drop(screen, name)
    nodes = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
    published = [entry for node in nodes for entry in node["properties"].get("models", [])]
    assert len(published) == 5
    details, dialog = screen.page.get_by_test_id("error-overlay-see-errors"), screen.page.get_by_role("dialog")
    if release < (0, 4):
        dialog.get_by_text("Missing Models").first.wait_for(timeout=60_000)
        screen.shoot("page-missing-models")
        shown = {each.inner_text(): each.get_attribute("title") for each in dialog.locator("span[title]").all()}
        assert {f"{entry['directory']} / {entry['name']}": entry["url"] for entry in published}.items() <= shown.items()
        close_dialogs(screen.page)
        return
    details.wait_for(timeout=60_000)
    details.click()
    offers = screen.page.get_by_test_id("missing-model-download")
    offers.nth(len(published) - 1).wait_for(timeout=60_000)
    screen.shoot("page-missing-models")
    screen.page.evaluate(NOTE_LINKS)
    for number in range(offers.count()):
        offers.nth(number).click()
    assert sorted(screen.page.evaluate("() => window.pixartLinks")) == sorted(entry["url"] for entry in published)
    screen.page.evaluate("() => delete HTMLAnchorElement.prototype.click")


@pytest.mark.parametrize("name", sorted(BLUEPRINTS_ON_MINI))
def test_dropped_blueprint_is_one_node_that_works(screen, name):
    before = screen.page.evaluate(HISTORY).keys()
    screen.page.evaluate("() => window.app.graph.clear()")
    drop(screen, name, BLUEPRINTS)
    close_dialogs(screen.page)
    screen.errors.clear()
    screen.page.evaluate(SET_AND_SAVE, BLUEPRINTS_ON_MINI[name])
    screen.shoot(f"page-blueprint-{name}")
    screen.page.get_by_test_id("queue-button").first.click()
    for _ in range(2 * IMAGE_SECONDS):
        screen.page.wait_for_timeout(500)
        ended = [entry for key, entry in screen.page.evaluate(HISTORY).items() if key not in before]
        if ended:
            break
    (entry,) = ended
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert sum(len(output.get("images", [])) for output in entry["outputs"].values()) == 1
    assert screen.errors == []


def test_template_browser_finds_every_workflow_with_its_thumbnail(screen):
    listed = screen.page.evaluate("async () => await (await fetch('/api/workflow_templates')).json()")
    assert sorted(listed["pixart-delta"]) == NAMES
    for name in NAMES:
        for ending in ("json", "jpg"):
            status = screen.page.evaluate("async url => (await fetch(url)).status",
                                          f"/api/workflow_templates/pixart-delta/{name}.{ending}")
            assert status == 200, f"{name}.{ending}"


def test_nodes_that_keep_their_work_begin_with_a_seed_that_stays(screen):
    begins = """kind => {
        const node = window.LiteGraph.createNode(kind);
        window.app.graph.add(node);
        return node.widgets.find(widget => widget.name === "control_after_generate").value;
    }"""
    assert [screen.page.evaluate(begins, kind) for kind in ("PixArtCompare", "PixArtReNO")] == ["fixed"] * 2
    assert screen.page.evaluate(begins, "PixArtLCMSampler") == "randomize"
    text = (WORKFLOWS / "mini-compare.json").read_text(encoding="utf-8")
    assert text.count('"fixed"') == 1
    saved = json.loads(text.replace('"fixed"', '"increment"'))      # as somebody may have set it
    screen.page.evaluate("async graph => { await window.app.loadGraphData(graph) }", saved)
    control = "() => window.app.graph._nodes.find(node => node.type === 'PixArtCompare').widgets" \
              ".find(widget => widget.name === 'control_after_generate').value"
    assert screen.page.evaluate(control) == "increment"
