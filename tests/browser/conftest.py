"""A running ComfyUI with this extension, and its page in a headless Chromium."""
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from quickstart import inspect_host, running

# The rule for names: nothing outside this machine is reached. (Playwright's own interception would pass every request
# through Python and switch the browser's cache off; an older page asks for 500 files.)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
REFUSED = re.compile(r"^(Connecting to|Fetch API cannot load) '?https://|^Error fetching file size")
READY = "() => window.app && window.app.graph && Object.keys(window.LiteGraph.registered_node_types).length > 100"
ARTEFACTS = Path(os.environ.get("PIXART_ARTEFACTS", Path(tempfile.gettempdir()) / "pixart-artefacts"))


@dataclass
class Screen:
    """A page of ComfyUI. `errors` collects what the browser's console reported about this server."""

    page: object                 # playwright.sync_api.Page
    address: str
    errors: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        self.page.on("console", self._hear)

    def _hear(self, message) -> None:
        source = (message.location or {}).get("url", "")
        if REFUSED.search(message.text):         # the page wants to know how large a published file is; see `screen`
            return
        if message.type == "error" and (source.startswith(self.address) or "pixart" in message.text.lower()):
            self.errors.append(f"{message.text} ({source})")

    def shoot(self, name: str) -> Path:
        """Keep a screenshot for a person to look at."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        place = ARTEFACTS / f"{name}.png"
        self.page.screenshot(path=str(place), timeout=120_000)
        return place


@pytest.fixture(scope="session")
def host():
    """The ComfyUI whose page is tested."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("no ComfyUI named: set COMFYUI_PATH, or run `python quickstart.py test --tier browser`")
    found = inspect_host(Path(path))
    if found.missing:
        pytest.skip(found.remedy)
    return found


@pytest.fixture(scope="session")
def release(host) -> tuple[int, ...]:
    """Its version."""
    return tuple(map(int, re.findall(r"\d+", host.version)[:3]))


@pytest.fixture(scope="session")
def address(host) -> Iterator[str]:
    """Address of a headless ComfyUI that has only this extension."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)     # a stopped test run stops its server
    previews = ("--preview-method", "auto")      # older pages cannot choose it
    with (tempfile.TemporaryDirectory(prefix="pixart-page-") as base,
          running(host, Path(base).resolve(), *previews) as where):
        shutil.copy(host.path / "input" / "example.png", Path(base) / "input")      # comes with every ComfyUI
        yield where


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    program = os.environ.get("CHROMIUM")
    if not program:
        pytest.skip("no browser named: set CHROMIUM, or run `python quickstart.py test --tier browser`")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


def until(page, condition: str, seconds: float, given: object = None) -> None:
    """Wait until a JavaScript function of `given` is true. It is asked ten times a second, not once in every animation
    frame, Playwright's habit: frames can stall for good on a busy machine, and nothing would ask any more."""
    page.wait_for_function(condition, arg=given, timeout=seconds * 1000, polling=100)


def open_as_new_user(page, address: str) -> None:
    """Load the page, wait until its start-up curtain is gone, and close the templates that a first start shows."""
    from playwright.sync_api import TimeoutError as TooLate
    page.goto(address, timeout=120_000)
    for _ in range(3):
        until(page, READY, 60)
        try:
            page.locator(".p-blockui-mask").wait_for(state="detached", timeout=8000)
            break
        except TooLate:                  # on a busy machine the curtain's animation can stall for good
            page.reload(timeout=120_000)
    try:
        page.get_by_role("dialog").first.wait_for(timeout=4000)
        page.keyboard.press("Escape")
        page.get_by_role("dialog").first.wait_for(state="detached", timeout=4000)
    except TooLate:                      # only a first start has a dialog
        page.keyboard.press("Escape")


def close_dialogs(page) -> None:
    """Those that older pages put over everything, as the list of missing models."""
    page.wait_for_timeout(1000)
    for _ in range(4):
        if not page.get_by_role("dialog").count():
            return
        page.keyboard.press("Escape")
        page.wait_for_timeout(500)


@pytest.fixture(scope="session")
def screen(address: str, browser) -> Iterator[Screen]:
    """The page as a new user sees it after closing the start dialogs. Nothing outside this machine is reached."""
    context = browser.new_context(viewport={"width": 1760, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    open_as_new_user(page, address)
    shown = Screen(page, address)
    shown.watch()
    yield shown
    context.close()
