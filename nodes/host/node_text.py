"""A line of text on the node that runs, which the page of every host from 0.3.64 on shows without JavaScript."""
import sys
import time


def show_text(text: str) -> None:
    """Put it on the node at work in place of what stood there; nothing where a node runs without a server."""
    module = sys.modules.get("server")          # imported by the host itself when there is one
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if server is not None and server.last_node_id is not None:
        server.send_progress_text(text, server.last_node_id, server.client_id)


class RunningText:
    """Shows texts that follow each other fast: one every so many seconds, and those that must be seen."""

    def __init__(self, seconds: float = 0.5) -> None:
        self.seconds, self._last = seconds, float("-inf")

    def __call__(self, text: str, always: bool = False) -> None:
        now = time.monotonic()
        if always or now - self._last >= self.seconds:
            self._last = now
            show_text(text)
