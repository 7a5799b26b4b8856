"""Run, watch and cancel on ComfyUI's page: every workflow of PixArt-mini ends in its images."""
import pytest
from browser.conftest import until
from browser.test_page import HISTORY, IMAGE_SECONDS, NAMES, OVER, drop

pytestmark = pytest.mark.browser

LONG = ("mini-train-lora", "mini-reno")          # the host tier runs them over HTTP
MINI = [name for name in NAMES if name.startswith("mini-") and name not in LONG]
LOOK = "id => window.app.canvas.centerOnNode(window.app.graph.getNodeById(id))"
# The page loads a node's image only when the node is in view.
SHOWN = "id => (window.app.graph.getNodeById(id).imgs ?? []).map(image => [image.naturalWidth, image.naturalHeight])"
# Counts previews and keeps how the last one and the newest image of a node look, as 16 x 16 pixels.
LISTEN = """() => {
    window.pixartSmall = image => {
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 16;
        const pen = canvas.getContext("2d");
        pen.drawImage(image, 0, 0, 16, 16);
        return [...pen.getImageData(0, 0, 16, 16).data].filter((_, i) => i % 4 < 3);
    };
    window.pixartPreviews = [];
    if (window.pixartListens) return;
    window.pixartListens = true;
    window.comfyAPI.api.api.addEventListener("b_preview", async ({ detail }) => {
        window.pixartPreviews.push(window.pixartSmall(await createImageBitmap(detail)));
    });
}"""
SET = """([kind, name, value]) => {
    const node = window.app.graph._nodes.find(each => each.type === kind);
    node.widgets.find(each => each.name === name).value = value;
    window.app.canvas.centerOnNode(node);
}"""
IMAGED = "kind => (window.app.graph._nodes.find(each => each.type === kind).imgs ?? []).length"


def run(screen) -> set[str]:
    """Press Run; the prompts that were there before."""
    before = set(screen.page.evaluate(HISTORY))
    screen.page.get_by_test_id("queue-button").first.click()
    return before


def ended(screen, before: set[str]) -> dict:
    """What the server says of the prompt that is new, as soon as it has ended."""
    for _ in range(4 * IMAGE_SECONDS):
        found = [entry for key, entry in screen.page.evaluate(HISTORY).items() if key not in before]
        if found:
            return found[0]
        screen.page.wait_for_timeout(250)
    raise AssertionError(f"no end in {IMAGE_SECONDS} s")


def opened(screen, name: str) -> None:
    screen.page.evaluate("() => window.app.graph.clear()")
    screen.errors.clear()
    drop(screen, name)


@pytest.mark.parametrize("name", MINI)
def test_mini_workflow_dropped_and_run_shows_its_images(screen, name):
    opened(screen, name)
    entry = ended(screen, run(screen))
    assert entry["status"]["status_str"] == "success", entry["status"]
    imaged = {key: output["images"] for key, output in entry["outputs"].items() if output.get("images")}
    assert imaged
    for key, images in imaged.items():
        number = int(key)
        screen.page.evaluate(LOOK, number)
        until(screen.page, f"id => ({SHOWN})(id).length > 0 && ({SHOWN})(id).every(side => side[0] > 0)",
              IMAGE_SECONDS, number)
        shown = screen.page.evaluate(SHOWN, number)
        assert len(shown) == len(images) and all(min(side) >= 96 for side in shown)
    screen.shoot(f"page-image-{name}")
    assert screen.page.evaluate(OVER) == []
    assert screen.errors == []


def test_the_lists_of_compare_are_shown_whole_when_it_has_run(screen):
    """A node's text and preview take their room from its text boxes: the last of three prompts was cut."""
    opened(screen, "mini-compare")
    screen.page.evaluate(SET, ["PixArtCompare", "seed", 4711])        # not run before
    assert ended(screen, run(screen))["status"]["status_str"] == "success"
    screen.page.wait_for_timeout(1500)
    inner, shown = screen.page.evaluate("""() => {
        const node = window.app.graph._nodes.find(each => each.type === "PixArtCompare");
        const box = node.widgets.find(each => each.name === "row_values").element;
        return [box.scrollHeight, box.clientHeight];
    }""")
    assert 0 < inner <= shown


def test_the_preview_comes_while_it_samples_and_in_the_colours_of_the_image(screen):
    opened(screen, "mini-lcm-4-steps")
    screen.page.evaluate(LISTEN)
    screen.page.evaluate(SET, ["PixArtLCMSampler", "seed", 20_261_127])
    assert ended(screen, run(screen))["status"]["status_str"] == "success"
    previews = screen.page.evaluate("() => window.pixartPreviews")
    assert len(previews) == 4 and screen.page.evaluate(IMAGED, "PixArtLCMSampler") == 1
    (save,) = screen.page.evaluate("() => window.app.graph._nodes.filter(n => n.type === 'SaveImage').map(n => n.id)")
    screen.page.evaluate(LOOK, save)
    until(screen.page, f"id => ({SHOWN})(id)[0]?.[0] === 128", 20, save)
    image = screen.page.evaluate("id => window.pixartSmall(window.app.graph.getNodeById(id).imgs[0])", save)
    far = [sum(abs(a - b) for a, b in zip(preview, image)) / len(image) for preview in previews]
    assert far[-1] < 32, far          # of 255; a preview in wrong colours differs by 60 and more


def test_cancel_ends_a_run_within_a_step_and_is_no_failure(screen):
    opened(screen, "mini-teacher-20-steps-cfg")
    screen.page.evaluate(LISTEN)
    screen.page.evaluate(SET, ["KSampler", "steps", 2000])
    before = run(screen)
    until(screen.page, "() => window.pixartPreviews.length > 2", 60)
    screen.shoot("page-preview")
    screen.page.get_by_role("button", name="Cancel current run").first.click()
    entry = ended(screen, before)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"
    screen.page.wait_for_timeout(500)
    screen.shoot("page-cancelled")
    assert screen.page.get_by_role("dialog").count() == 0
    assert screen.page.get_by_test_id("error-overlay-see-errors").count() == 0
    assert screen.errors == []
