"""Live of PixArt Sketch where a run cannot be: it fails, the server is away, or another workflow is shown by then."""
from collections.abc import Iterator

import pytest
from browser.conftest import until
from browser.test_page import HISTORY, drop
from browser.test_run import SET, run
from browser.test_sketch import CANVAS, IDLE, SHOWN, settle, stroke

pytestmark = pytest.mark.browser

COUNT_POSTS = """() => {
    window.pixartPosts = 0;
    if (window.pixartCounts) return;
    window.pixartCounts = true;
    const queuePrompt = window.comfyAPI.api.api.queuePrompt;
    window.comfyAPI.api.api.queuePrompt = function (...given) {
        window.pixartPosts += 1;
        return queuePrompt.apply(this, given);
    };
}"""
POSTS = "() => window.pixartPosts"
LINK = """on => {
    const find = kind => window.app.graph._nodes.find(node => node.type === kind);
    const sampler = find("PixArtLCMSampler"), slot = sampler.inputs.findIndex(each => each.name === "latent");
    if (on) find("PixArtEmptyLatent").connect(0, sampler, slot); else sampler.disconnectInput(slot);
}"""
# Resolves when the page has noticed that its connection is gone.
CLOSE_SOCKET = """() => new Promise(gone => {
    window.comfyAPI.api.api.addEventListener("reconnecting", () => gone(), { once: true });
    window.comfyAPI.api.api.socket.close();
})"""
ACROSS = [(x / 20, 0.05) for x in range(2, 19)]


@pytest.fixture
def live(screen) -> Iterator[object]:
    close_errors(screen.page)            # a dialog of an earlier test would lie over the canvas
    screen.page.evaluate("() => window.app.graph.clear()")
    drop(screen, "mini-sketch")
    screen.page.locator(CANVAS).wait_for()
    screen.page.wait_for_timeout(500)
    screen.page.evaluate(COUNT_POSTS)
    screen.errors.clear()
    yield screen
    screen.page.context.set_offline(False)
    settle(screen)


def close_errors(page) -> None:
    for _ in range(20):
        page.keyboard.press("Escape")
        page.wait_for_timeout(500)
        if not page.get_by_role("dialog").count():
            return
    raise AssertionError("the page's dialogs do not close")


def test_a_workflow_that_cannot_run_is_asked_for_once_a_stroke(live):
    live.page.evaluate(LINK, False)
    stroke(live, ACROSS)
    live.page.wait_for_timeout(1500)
    live.shoot("page-live-refused")
    assert live.page.evaluate(POSTS) == 1
    close_errors(live.page)
    live.page.evaluate(LINK, True)
    before = live.page.evaluate(SHOWN)
    stroke(live, ACROSS)
    settle(live)
    assert live.page.evaluate(SHOWN) not in (None, before)


def test_strokes_while_the_server_is_away_are_drawn_when_it_is_back(live):
    before = live.page.evaluate(SHOWN)
    live.page.context.set_offline(True)
    live.page.evaluate(CLOSE_SOCKET)
    stroke(live, ACROSS)
    live.page.wait_for_timeout(1000)
    live.shoot("page-live-away")
    assert live.page.evaluate(POSTS) == 0 and live.page.get_by_role("dialog").count() == 0
    live.page.context.set_offline(False)
    until(live.page, "() => window.pixartPosts > 0", 30)
    settle(live)
    assert live.page.evaluate(SHOWN) not in (None, before)
    live.errors.clear()                  # of the page itself: no connection


def test_a_stroke_that_waits_never_runs_the_workflow_opened_after_it(live):
    drop(live, "mini-teacher-20-steps-cfg")
    live.page.evaluate(SET, ["KSampler", "steps", 2000])
    before = run(live)
    until(live.page, "async () => (await (await fetch('/queue')).json()).queue_running.length > 0", 30)
    drop(live, "mini-sketch")
    live.page.locator(CANVAS).wait_for()
    live.page.wait_for_timeout(500)
    live.page.evaluate(COUNT_POSTS)
    stroke(live, ACROSS)
    drop(live, "mini-lcm-4-steps")
    live.page.evaluate("async () => { await fetch('/interrupt', { method: 'POST' }); }")
    until(live.page, IDLE, 60)
    settle(live)
    assert live.page.evaluate(POSTS) == 0
    assert len(live.page.evaluate(HISTORY).keys() - before) == 1
