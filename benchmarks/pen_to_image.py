"""From the pen lifted to the image on the page: the workflow mini-sketch in a real browser, on this machine.

    python benchmarks/pen_to_image.py --comfyui ~/comfy/ComfyUI --strokes 10 --steps 4 2
"""
import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser.conftest import FLAGS, Screen, open_as_new_user  # noqa: E402
from browser.test_page import drop  # noqa: E402
from browser.test_sketch import CANVAS, press, settle, stroke  # noqa: E402

from quickstart import browser_program, inspect_host, running  # noqa: E402

# Of each stroke: when the pen was lifted, and when each image after that was on the page, in milliseconds.
WATCH = """() => {
    window.pixartUp = null;
    window.pixartImages = [];
    window.pixartCount = 0;
    document.querySelector(".pixart-sketch canvas")
        .addEventListener("pointerdown", () => { window.pixartCount = 0; }, true);
    document.querySelector(".pixart-sketch canvas")
        .addEventListener("pointerup", () => {
            window.pixartUp = performance.now();
            window.pixartImages = [];
        }, true);
    const shown = () => window.app.graph._nodes.find(node => node.type === "PreviewImage").imgs?.[0];
    let seen = shown()?.src;
    const look = () => {
        const image = shown();
        if (image?.complete && image.naturalWidth && image.src !== seen) {
            seen = image.src;
            window.pixartCount += 1;
            window.pixartImages.push(performance.now());
        }
        setTimeout(look, 5);
    };
    look();
}"""
STEPS = """steps => {
    const sampler = window.app.graph._nodes.find(node => node.type === "PixArtLCMSampler");
    sampler.widgets.find(widget => widget.name === "steps").value = steps;
}"""
COUNT = "() => window.pixartCount"
TIMES = "() => window.pixartImages.map(each => (each - window.pixartUp) / 1000)"


def processor_seconds(address: str) -> float:
    """Processor time of the server so far, all threads together, which other programs do not affect."""
    port = address.rpartition(":")[2]
    (server,) = [each for each in psutil.process_iter(["cmdline"])
                 if port in (each.info["cmdline"] or []) and "--listen" in each.info["cmdline"]]
    times = server.cpu_times()
    return times.user + times.system


def measured(screen: Screen, strokes: int) -> tuple[list[float], list[float], list[float]]:
    """Of each stroke, seconds until the next image, until that of the whole stroke, and computed for an image."""
    first, last, computed = [], [], []
    for number in range(strokes):
        press(screen, "Clear")
        settle(screen)
        top = 0.25 + 0.5 * number / strokes
        before = processor_seconds(screen.address)
        stroke(screen, [(top, 0.18), (0.85, 0.78), (0.15, 0.78), (top, 0.18)])
        settle(screen)
        times = screen.page.evaluate(TIMES)
        first.append(times[0])
        last.append(times[-1])
        computed.append((processor_seconds(screen.address) - before) / screen.page.evaluate(COUNT))
    return first, last, computed


def line(name: str, seconds: list[float]) -> str:
    return f"{name}: median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s of {len(seconds)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--strokes", type=int, default=10)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 2])
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright
    host = inspect_host(given.comfyui.expanduser())
    with (tempfile.TemporaryDirectory(prefix="pixart-page-") as base, running(host, Path(base).resolve()) as address,
          sync_playwright() as playwright):
        chromium = playwright.chromium.launch(executable_path=browser_program(), args=FLAGS)
        page = chromium.new_context(viewport={"width": 1760, "height": 900}, reduced_motion="reduce").new_page()
        open_as_new_user(page, address)
        screen = Screen(page, address)
        drop(screen, "mini-sketch")
        page.locator(CANVAS).wait_for()
        page.wait_for_timeout(1000)
        page.evaluate(WATCH)
        measured(screen, 1)                       # loads the models
        for steps in given.steps:
            page.evaluate(STEPS, steps)
            first, last, computed = measured(screen, given.strokes)
            print(f"ComfyUI {host.version}, {steps} steps, load {os.getloadavg()[0]:.1f}")
            print(line("  pen lifted -> next image", first))
            print(line("  pen lifted -> image of the whole stroke", last))
            print(line("  processor time of the server, an image", computed), flush=True)
        chromium.close()


if __name__ == "__main__":
    main()
