"""One ComfyUI server over HTTP: what it is asked, what it answers, and patience while it is away."""
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any

from .errors import ClientError, Refused, Unreachable
from .graph import Graph, node_label

AWAY = (502, 503, 504)          # what a proxy says in place of a server that restarts
TAG = "pixart_job"              # in extra_data: finds a prompt on hosts that choose its id themselves


class NoLostBody(urllib.request.HTTPRedirectHandler):
    """urllib follows the redirect of a POST with a GET without its body, to which the server gives another answer."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> urllib.request.Request | None:
        if req.data is not None:
            place = urllib.parse.urlsplit(newurl)
            raise ClientError(f"the server sends requests on to {place.scheme}://{place.netloc}; give that address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Server:
    """address: `host:port` or a URL. patience: seconds for which a server that gives no answer is asked again, inf for
    ever.

    Raises ClientError for anything else.
    """

    def __init__(self, address: str = "127.0.0.1:8188", patience: float = 60.0) -> None:
        url = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
        try:
            usable = url.scheme in ("http", "https") and url.hostname and (url.port or True)
        except ValueError:
            usable = False
        if not usable:
            raise ClientError(f"{address!r} is no server; write host:port or http://host:port")
        if not patience >= 0:
            raise ClientError(f"the patience with a server is {patience} seconds; expected 0 or more")
        self.url = urllib.parse.urlunsplit((url.scheme, url.netloc, url.path.rstrip("/"), "", ""))
        self.patience = patience
        near = url.hostname in ("localhost", "127.0.0.1", "::1")        # never through a proxy
        self._opener = urllib.request.build_opener(NoLostBody, *([urllib.request.ProxyHandler({})] if near else []))

    def queue(self, graph: Graph, prompt_id: str, client_id: str) -> str:
        """Queue once, however often the connection is lost in between; the id under which it runs.

        Raises Refused, or Unreachable.
        """
        body = {"prompt": graph, "prompt_id": prompt_id, "client_id": client_id, "extra_data": {TAG: prompt_id}}
        until = time.monotonic() + self.patience
        while True:
            try:
                answer = json.loads(self.send("/prompt", body, seconds=120))
            except urllib.error.HTTPError as error:
                if error.code not in AWAY:
                    raise Refused(refusal(graph, error)) from error
                self._pause(until, error)
            except ClientError:
                raise
            except (OSError, ValueError) as error:
                self._pause(until, error)
            else:
                return require_whole(graph, answer)
            known = self.find(prompt_id)        # it may have been taken before the connection went
            if known is not None:
                return known

    def find(self, prompt_id: str) -> str | None:
        """The server's own id of a prompt that was sent with this one, if it has it."""
        if self.queued([prompt_id]) or self.history(prompt_id) is not None:
            return prompt_id
        listed = self.get("/queue")
        entries = [*listed["queue_running"], *listed["queue_pending"]]
        return next((entry[1] for entry in entries if len(entry) > 3 and entry[3].get(TAG) == prompt_id), None)

    def queued(self, prompt_ids: Sequence[str]) -> list[str]:
        """Those of the ids that wait or run."""
        there = {entry[1] for entries in self.get("/queue").values() for entry in entries}
        return [prompt_id for prompt_id in prompt_ids if prompt_id in there]

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """What became of a prompt, None until it ended."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def input_kind(self, class_type: str, entry: str) -> str:
        """Type of an input, such as INT or FLOAT; "" where the server does not know it."""
        about = self.get(f"/object_info/{urllib.parse.quote(class_type, safe='')}").get(class_type, {})
        declared = [group[entry] for group in about.get("input", {}).values() if entry in group]
        return str(declared[0][0]) if declared else ""

    def cancel(self, prompt_ids: Sequence[str], tries: int = 20) -> None:
        """Take them out of the queue, and interrupt the one that runs."""
        self.send("/queue", {"delete": list(prompt_ids)})
        for _ in range(tries):
            left = self.queued(prompt_ids)
            for prompt_id in left:
                self.send("/interrupt", {"prompt_id": prompt_id})
            if not left:
                return
            self.send("/queue", {"delete": left})
            time.sleep(0.25)

    def download(self, file: dict[str, str]) -> bytes:
        """A file that a node made, by its entry in the outputs of a history."""
        query = urllib.parse.urlencode({key: file.get(key, "") for key in ("filename", "subfolder", "type")})
        try:
            return self._patiently(f"/view?{query}", 600)
        except urllib.error.HTTPError as error:
            raise ClientError(f"the server no longer has {file['filename']} (status {error.code}); it was deleted or "
                              "moved there") from error

    def get(self, path: str) -> Any:
        """The JSON answer. Raises Unreachable."""
        try:
            return json.loads(self._patiently(path, 30))
        except Unreachable:
            raise
        except (urllib.error.HTTPError, ValueError) as error:
            raise Unreachable(f"{self.url} is no ComfyUI: {path} gave {error}") from error

    def send(self, path: str, body: dict | None = None, seconds: float = 30) -> bytes:
        """GET, or POST of a JSON body, once. Raises urllib's errors, ConnectionError for an answer that breaks off."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=seconds) as answer:
                return answer.read()
        except HTTPException as error:          # not all of them are OSErrors
            raise ConnectionError(f"the answer broke off or is none: {error}") from error

    def _patiently(self, path: str, seconds: float) -> bytes:
        until = time.monotonic() + self.patience
        while True:
            try:
                return self.send(path, seconds=seconds)
            except urllib.error.HTTPError as error:
                if error.code not in AWAY:
                    raise
                self._pause(until, error)
            except (OSError, ValueError) as error:      # ValueError: an answer that is no JSON
                self._pause(until, error)

    def _pause(self, until: float, error: Exception) -> None:
        if time.monotonic() >= until:
            reason = getattr(error, "reason", None) or error
            raise Unreachable(f"no answer from {self.url} ({reason}); is ComfyUI running there?") from error
        time.sleep(0.5)


def require_whole(graph: Graph, answer: dict[str, Any]) -> str:
    """The id of a prompt that the server took; Refused where it left a part of it out."""
    if answer.get("node_errors"):
        raise Refused("the server runs only a part of the workflow:\n" + "\n".join(node_errors(graph, answer)))
    return str(answer["prompt_id"])


def refusal(graph: Graph, error: urllib.error.HTTPError) -> str:
    """Why a workflow was not taken: each node with its title, each input with what is wrong."""
    body = error.read()
    try:
        answer = json.loads(body)
    except ValueError:
        return f"the server refused the workflow with status {error.code}: {body[:200].decode(errors='replace')}"
    lines = node_errors(graph, answer)
    reason = answer.get("error") or {}
    if not lines and isinstance(reason, dict):
        lines = [": ".join(filter(None, (reason.get("message"), str(reason.get("details") or ""))))]
    return "\n".join(["the server refused the workflow:", *(lines or [str(reason)])])


def node_errors(graph: Graph, answer: dict[str, Any]) -> list[str]:
    """Lines such as `node 7 "PixArt LCM Sampler" (PixArtLCMSampler), input steps: Value 99 bigger than max of 50`."""
    lines = []
    for key, entry in (answer.get("node_errors") or {}).items():
        for problem in entry["errors"]:
            field = (problem.get("extra_info") or {}).get("input_name")
            what = problem.get("details") or problem.get("message")
            lines.append(f"node {node_label(graph, key)}{f', input {field}' if field else ''}: "
                         f"{problem.get('message')}: {what}")
    return lines
