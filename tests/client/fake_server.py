"""A server that speaks ComfyUI's protocol without its models: queue, history, files, websocket, failures on demand."""
import asyncio
import threading
import uuid
from contextlib import suppress

from aiohttp import WSMsgType, web


class FakeServer:
    """Runs one prompt after the other, in a thread. Each step of a run waits `pause` seconds."""

    def __init__(self) -> None:
        self.taken: list[str] = []              # ids in the order they were queued
        self.graphs: dict[str, dict] = {}
        self.waiting: list[str] = []
        self.running: str | None = None
        self.history: dict[str, dict] = {}
        self.files: dict[str, bytes] = {}
        self.sockets: list[web.WebSocketResponse] = []
        self.answers_lost = 0                   # so many answers to POST /prompt never arrive
        self.own_ids = False                    # as a host that takes no ids from clients
        self.cut_at: int | None = None          # all websockets are cut off in this step
        self.forgets = False                    # a run leaves nothing in the history
        self.refuses: dict | None = None
        self.drops: dict = {}                   # node errors of a workflow that is taken in part
        self.fails: dict | None = None
        self.strange: list = []                 # messages of other packs, sent in every step
        self.steps, self.pause = 4, 0.01
        self.interrupts = 0
        self._stop = threading.Event()

    def __enter__(self) -> "FakeServer":
        self.loop, ready = asyncio.new_event_loop(), threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self.thread.start()
        assert ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.end.set)
        self.thread.join(20)

    def _serve(self, ready: threading.Event) -> None:
        self.loop.run_until_complete(self._main(ready))
        self.loop.close()

    async def _main(self, ready: threading.Event) -> None:
        self.end, self.interrupted = asyncio.Event(), asyncio.Event()
        app = web.Application()
        app.add_routes([web.post("/prompt", self.post_prompt), web.get("/queue", self.get_queue),
                        web.post("/queue", self.post_queue), web.get("/history/{id}", self.get_history),
                        web.post("/interrupt", self.post_interrupt), web.get("/view", self.view),
                        web.get("/ws", self.websocket)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        worker = asyncio.ensure_future(self._work())
        ready.set()
        await self.end.wait()
        worker.cancel()
        await runner.cleanup()

    async def post_prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.refuses is not None:
            return web.json_response(self.refuses, status=400)
        prompt_id = str(uuid.uuid4()) if self.own_ids else body["prompt_id"]
        self.taken.append(prompt_id)
        self.graphs[prompt_id] = body
        self.waiting.append(prompt_id)
        if self.answers_lost:
            self.answers_lost -= 1
            request.transport.abort()
        return web.json_response({"prompt_id": prompt_id, "number": len(self.taken), "node_errors": self.drops})

    def _entry(self, prompt_id: str) -> list:
        body = self.graphs[prompt_id]
        return [0, prompt_id, body["prompt"], body["extra_data"], []]

    async def get_queue(self, _: web.Request) -> web.Response:
        running = [self._entry(self.running)] if self.running else []
        return web.json_response({"queue_running": running, "queue_pending": list(map(self._entry, self.waiting))})

    async def post_queue(self, request: web.Request) -> web.Response:
        gone = (await request.json())["delete"]
        self.waiting = [prompt_id for prompt_id in self.waiting if prompt_id not in gone]
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        key = request.match_info["id"]
        return web.json_response({key: self.history[key]} if key in self.history else {})

    async def post_interrupt(self, request: web.Request) -> web.Response:
        if (await request.json())["prompt_id"] == self.running:
            self.interrupts += 1
            self.interrupted.set()
        return web.Response()

    async def view(self, request: web.Request) -> web.Response:
        data = self.files.get(request.query["filename"])
        return web.Response(body=data) if data is not None else web.Response(status=404)

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        async for message in socket:
            if message.type == WSMsgType.ERROR:
                break
        return socket

    async def tell(self, kind: str, **data: object) -> None:
        for socket in self.sockets:
            with suppress(ConnectionError):
                await socket.send_json({"type": kind, "data": data})

    async def _work(self) -> None:
        while True:
            if not self.waiting:
                await asyncio.sleep(0.01)
                continue
            self.running = self.waiting.pop(0)
            self.interrupted.clear()
            kind, details = await self._run(self.running)
            prompt_id, self.running = self.running, None
            if not self.forgets:
                good = kind == "execution_success"
                self.history[prompt_id] = {"outputs": self._outputs(prompt_id) if good else {}, "status": {
                    "status_str": "success" if good else "error", "completed": good, "messages": [[kind, details]]}}
            await self.tell(kind, prompt_id=prompt_id, **details)

    async def _run(self, prompt_id: str) -> tuple[str, dict]:
        if self.fails is not None:
            return "execution_error", self.fails
        for step in range(1, self.steps + 1):
            if step == self.cut_at:
                for socket in self.sockets:
                    socket._req.transport.abort()
                self.sockets.clear()
            for message in self.strange:
                for socket in self.sockets:
                    await socket.send_json(message)
            await self.tell("progress", prompt_id=prompt_id, node="6", value=step, max=self.steps)
            with suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self.interrupted.wait(), self.pause)
                return "execution_interrupted", {"node_id": "6"}
        return "execution_success", {}

    def _outputs(self, prompt_id: str) -> dict:
        name = f"image_{len(self.history) + 1:05}_.png"
        self.files[name] = repr(self.graphs[prompt_id]["prompt"]).encode()
        return {"9": {"images": [{"filename": name, "subfolder": "", "type": "output"}]},
                "10": {"images": [{"filename": "shown.png", "subfolder": "", "type": "temp"}], "animated": [False]}}
