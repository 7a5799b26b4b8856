"""A workflow saved with ComfyUI_ExtraModels, opened on a page that has only this pack."""
import pytest
from browser.conftest import until

pytestmark = pytest.mark.browser

AS_API = "async () => (await window.app.graphToPrompt()).output"


def node(number: int, kind: str, inputs: list[tuple[str, str, int | None]], outputs: list[tuple[str, str, list[int]]],
         *values: object) -> dict:
    return {"id": number, "type": kind, "pos": [320 * number, 0], "size": [300, 120], "flags": {}, "order": number,
            "mode": 0, "inputs": [{"name": name, "type": of, "link": link} for name, of, link in inputs],
            "outputs": [{"name": name, "type": of, "links": links} for name, of, links in outputs],
            "properties": {"Node name for S&R": kind}, "widgets_values": list(values)}


OLD = {
    "last_node_id": 6, "last_link_id": 6, "groups": [], "config": {}, "extra": {}, "version": 0.4,
    "nodes": [
        node(1, "PixArtCheckpointLoader", [], [("model", "MODEL", [1])], "pixart-mini/lcm.safetensors", "PixArt_XL_2"),
        node(2, "T5v11Loader", [], [("T5", "T5", [2])], "pixart-mini/t5", "xxl", "folder", "cpu", "default"),
        node(3, "T5TextEncode", [("T5", "T5", 2)], [("CONDITIONING", "CONDITIONING", [3])], "a large red circle"),
        node(4, "PixArtResolutionCond", [("cond", "CONDITIONING", 3)], [("cond", "CONDITIONING", [4])], 768, 512),
        node(5, "PixArtResolutionSelect", [], [("width", "INT", []), ("height", "INT", [])], "PixArt_XL_2", "0.50"),
        node(6, "PixArtLCMSampler", [("model", "MODEL", 1), ("positive", "CONDITIONING", 4),
                                     ("latent", "LATENT", None)], [("LATENT", "LATENT", [])],
             1, "fixed", 4, "official", 1.0, 1.0),
    ],
    "links": [[1, 1, 0, 6, 0, "MODEL"], [2, 2, 0, 3, 0, "T5"], [3, 3, 0, 4, 0, "CONDITIONING"],
              [4, 4, 0, 6, 1, "CONDITIONING"]],
}
# Of each node: what became of it, and its inputs that the old node gave.
NEW = {
    "1": ("PixArtLoader", {"file": "pixart-mini/lcm.safetensors", "variant": "auto"}),
    "2": ("PixArtT5Loader", {"file": "pixart-mini/t5", "bits": "8", "device": "auto"}),
    "3": ("PixArtTextEncode", {"clip": ["2", 0], "text": "a large red circle", "family": "sigma"}),
    "4": ("PixArtFormerSizeCondition", {"cond": ["3", 0], "width": 768, "height": 512}),
    "5": ("PixArtFormerSize", {"model": "PixArt_XL_2", "ratio": "0.50"}),
    "6": ("PixArtLCMSampler", {"model": ["1", 0], "positive": ["4", 0]}),
}


def test_the_page_offers_this_packs_nodes_and_keeps_links_and_values(screen):
    screen.page.evaluate("async graph => { await window.app.loadGraphData(graph) }", OLD)
    from playwright.sync_api import TimeoutError as TooLate
    details = screen.page.get_by_test_id("error-overlay-see-errors")
    try:
        details.wait_for(timeout=10_000)
    except TooLate:
        pytest.skip("this page offers no nodes in the place of missing ones")
    details.click()
    screen.page.get_by_test_id("error-group-swap-nodes").wait_for(timeout=10_000)
    screen.shoot("page-former")
    screen.page.get_by_role("button", name="Replace All").first.click()
    until(screen.page, "() => window.app.graph._nodes.every(node => node.type.startsWith('PixArt') && "
                       "node.type in window.LiteGraph.registered_node_types)", 10)
    made = screen.page.evaluate(AS_API)
    assert {key: each["class_type"] for key, each in made.items()} == {key: kind for key, (kind, _) in NEW.items()}
    for key, (kind, given) in NEW.items():
        assert given.items() <= made[key]["inputs"].items(), kind
