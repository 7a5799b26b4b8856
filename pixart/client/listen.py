"""What a server says of a client's prompts while they run, over its websocket."""
import asyncio
import json
import queue
import threading
from contextlib import suppress
from importlib.util import find_spec
from types import TracebackType
from typing import Any

AGAIN_SECONDS = 1.0
Message = dict[str, Any]        # {"type": text, "data": {...}}


class Listener:
    """Messages in a queue, read by a thread that connects again whenever it is cut off. Used as a context.

    Only for showing progress: whoever follows a prompt learns its end from the history, whatever is lost here. Without
    the package aiohttp nothing is heard.
    """

    def __init__(self, url: str, client_id: str) -> None:
        self.address = f"ws{url.removeprefix('http')}/ws?clientId={client_id}"
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="pixart-listener", daemon=True)
        self._task: asyncio.Task | None = None
        self._ready = threading.Event()

    def next(self, seconds: float) -> Message | None:
        """The next message; None if none came within `seconds`."""
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            return None

    def __enter__(self) -> "Listener":
        if find_spec("aiohttp") is not None:
            self._thread.start()
            self._ready.wait(10)        # the first messages are those of a prompt that is queued right after this
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._thread.is_alive() and self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(10)
        if not self._thread.is_alive():
            self._loop.close()

    def _run(self) -> None:
        self._task = self._loop.create_task(self._listen())
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)

    def _take(self, message: object) -> None:
        """Keep it if it has the form of the host's own; other packs send to all clients whatever they like."""
        if isinstance(message, dict) and isinstance(message.get("type"), str) and isinstance(message.get("data"), dict):
            self._messages.put(message)

    async def _listen(self) -> None:
        import aiohttp

        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.ws_connect(self.address, heartbeat=30, max_msg_size=0) as socket:
                        self._ready.set()
                        async for message in socket:
                            if message.type == aiohttp.WSMsgType.TEXT:      # images of previews are binary
                                self._take(json.loads(message.data))
                except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
                    self._ready.set()
                await asyncio.sleep(AGAIN_SECONDS)
