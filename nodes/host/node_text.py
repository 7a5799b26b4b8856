"""A line of text on the node that runs, which the page of every host from 0.3.64 on shows without JavaScript."""
import sys
import time
from typing import Any


def show_text(text: str, node: str | None = None) -> None:
    """Put it on a node, by default the one at work, in place of what stood there; nothing without a server.

    Lines end in two blanks: Nodes 2.0 read the text as Markdown, which joins lines without them.
    """
    server = running_server()
    node = node_at_work() if node is None else node
    if server is not None and node is not None:
        server.send_progress_text(text.replace("\n", "  \n"), node, server.client_id)


def node_at_work() -> str | None:
    """The id of the node that runs, for what is to be said on it later."""
    return getattr(running_server(), "last_node_id", None)


def running_server() -> Any:
    """The host's server, None where a node runs without one."""
    module = sys.modules.get("server")          # imported by the host itself when there is one
    return getattr(getattr(module, "PromptServer", None), "instance", None)


class RunningText:
    """Shows texts that change fast: at most one every `seconds`, and those that must be seen."""

    def __init__(self, seconds: float = 0.5) -> None:
        self.seconds, self._last = seconds, float("-inf")

    def __call__(self, text: str, always: bool = False) -> None:
        now = time.monotonic()
        if always or now - self._last >= self.seconds:
            self._last = now
            show_text(text)
