"""Two people on one server: each sees the progress, previews, texts and images of their own workflow only."""
import pytest
from browser.conftest import Screen, open_as_new_user, until
from browser.test_page import HISTORY, drop
from browser.test_run import SET, run

pytestmark = pytest.mark.browser

EVENTS = ["execution_start", "progress", "progress_text", "b_preview", "executed", "execution_success"]
RECORD = """kinds => {
    window.pixartHeard = [];
    for (const kind of kinds) window.comfyAPI.api.api.addEventListener(kind, ({ detail }) => window.pixartHeard.push(
        [kind, kind === "progress_text" ? detail.text : String(detail?.node ?? "")]));
}"""
ENDED = "() => window.pixartHeard.some(([kind]) => kind === 'execution_success')"


def heard(screen, kind: str) -> list[str]:
    return [said for of, said in screen.page.evaluate("() => window.pixartHeard") if of == kind]


def wait_for_end(screen) -> None:
    from playwright.sync_api import TimeoutError as TooLate
    try:
        until(screen.page, ENDED, 120)
    except TooLate:
        runs = [entry["status"]["status_str"] for entry in screen.page.evaluate(HISTORY).values()]
        pytest.fail(f"{screen.page.url} heard no end, only {screen.page.evaluate('() => window.pixartHeard')}; "
                    f"the server's runs: {runs}")


@pytest.fixture
def other(screen, address, browser):
    """A second page with a client of its own."""
    context = browser.new_context(viewport={"width": 1760, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    open_as_new_user(page, address)
    yield Screen(page, address)
    context.close()


def test_each_client_hears_of_its_own_run_only(screen, other):
    for each, name in ((screen, "mini-lcm-4-steps"), (other, "mini-reno")):
        each.page.evaluate("() => window.app.graph.clear()")
        drop(each, name)
        each.page.evaluate(RECORD, EVENTS)
    screen.page.evaluate(SET, ["PixArtLCMSampler", "seed", 4711])
    screen.page.evaluate(SET, ["PixArtTextEncode", "text", "a small grey ring on a black background"])
    other.page.evaluate(SET, ["PixArtReNO", "seed", 4711])
    other.page.evaluate(SET, ["PixArtReNO", "iterations", 3])
    for each in (screen, other):
        run(each)
    for each in (screen, other):
        wait_for_end(each)
    assert len(heard(screen, "b_preview")) == 4 and len(heard(other, "b_preview")) == 3
    assert any("of 256 tokens" in text for text in heard(screen, "progress_text"))
    assert not any("reward" in text for text in heard(screen, "progress_text"))
    assert any("reward" in text for text in heard(other, "progress_text"))
    assert len(heard(screen, "executed")) == 1 and len(heard(other, "executed")) == 2
    assert len(heard(screen, "execution_start")) == len(heard(other, "execution_start")) == 1
