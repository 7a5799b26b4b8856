"""What a user reads on ComfyUI's page in English and Chinese: names on nodes, and every help page."""
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser.conftest import open_as_new_user

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
SET_LANGUAGE = "language => window.app.extensionManager.setting.set('Comfy.Locale', language)"
PUT_ALONE = """kind => {
    window.app.graph.clear();
    const node = window.LiteGraph.createNode(kind);
    window.app.graph.add(node);
    window.app.canvas.centerOnNode(node);
    window.app.canvas.selectNode(node);
    const shown = slot => slot.label ?? slot.localized_name ?? slot.name;
    const inputs = Object.fromEntries(node.inputs.map(slot => [slot.name, shown(slot)]));
    return { title: node.title, inputs, outputs: node.outputs.map(shown) };
}"""


@pytest.fixture(params=["en", "zh"])
def language(request, screen) -> Iterator[str]:
    """The page in this language; afterwards in English again."""
    yield change_language(screen, request.param)
    change_language(screen, "en")


def change_language(screen, language: str) -> str:
    screen.page.evaluate(SET_LANGUAGE, language)
    open_as_new_user(screen.page, screen.address)
    screen.errors.clear()
    return language


def open_help(screen, heading) -> None:
    """Newer pages keep the panel open and follow the selection, older ones want their button pressed for each node."""
    for _ in range(25):
        for _ in range(4):
            if heading.count() and heading.first.is_visible():
                return
            screen.page.wait_for_timeout(200)
        screen.page.get_by_test_id("info-button").first.click()
    raise AssertionError(f"the help panel shows no heading {heading}")


def test_every_node_and_its_help_page_speak_the_language(screen, language):
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for kind, text in texts.items():
        shown = screen.page.evaluate(PUT_ALONE, kind)
        assert shown["title"] == text["display_name"]
        assert shown["inputs"] == {name: each["name"] for name, each in text["inputs"].items()}, kind
        assert shown["outputs"] == [each["name"] for each in text["outputs"].values()], kind
        page = (ROOT / "web" / "docs" / kind / f"{language}.md").read_text(encoding="utf-8")
        heading = screen.page.get_by_role("heading", name=page.splitlines()[0].removeprefix("# "), exact=True)
        open_help(screen, heading)
        if kind == "PixArtTextEncode":
            screen.shoot(f"page-help-{language}")
        assert screen.errors == [], kind
