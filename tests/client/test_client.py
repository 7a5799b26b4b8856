"""Queueing on a server: once, whatever happens to the connection; files, problems, interruption, exit codes."""
import json
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from client.fake_server import FakeServer

from pixart.__main__ import main
from pixart.client import ClientError, Server, read_workflow, run_workflows, seeds_of, with_seed, with_value
from pixart.client.errors import Unreachable
from pixart.client.run import save

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "workflows" / "api"
MINI = API / "mini-lcm-4-steps.json"


@pytest.fixture
def server():
    with FakeServer() as running:
        yield running


def queue(server: FakeServer, out: Path, *options: str, monkeypatch: pytest.MonkeyPatch) -> int:
    command = ["pixart", "queue", str(MINI), "--server", server.address, "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", command)
    return main()


def sampler(graph: dict) -> dict:
    return next(node for node in graph.values() if "seed" in node["inputs"])


def test_every_seed_is_run_once_and_fetched(server, tmp_path, monkeypatch, capsys):
    assert queue(server, tmp_path, "--seed", "3..5", "--set", "prompt=a red fox", monkeypatch=monkeypatch) == 0
    graphs = [server.graphs[key]["prompt"] for key in server.taken]
    assert [sampler(graph)["inputs"]["seed"] for graph in graphs] == [3, 4, 5]
    assert all("a red fox" in json.dumps(graph) for graph in graphs)
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == sorted(tmp_path.iterdir()) and len(printed) == 3
    assert [path.read_bytes() for path in printed] == [server.files[path.name] for path in printed]


@pytest.mark.parametrize("own_ids", [False, True])
def test_a_lost_answer_does_not_queue_twice(server, tmp_path, own_ids):
    server.answers_lost, server.own_ids = 1, own_ids
    server.pause = 0.3          # still there when it is looked for
    (outcome,) = run_workflows(Server(server.address), [read_workflow(MINI)], tmp_path)
    assert len(server.taken) == 1 and outcome.problem is None and len(outcome.files) == 1


class Answers(BaseHTTPRequestHandler):
    """The first request is answered badly, as `badly` says, all others like an idle server."""

    badly = "breaks off"

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        first, self.server.asked = not self.server.asked, True
        self.send_response(302 if first and self.badly == "sends on" else 200)
        self.send_header("Location", "https://elsewhere/prompt")
        self.send_header("Content-Length", "100" if first else "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answers():
    """Address of a server that answers as `Answers` says."""
    http = HTTPServer(("127.0.0.1", 0), Answers)
    http.asked = False
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_an_answer_that_breaks_off_is_asked_for_again(answers):
    """It took every prompt back that was waiting."""
    assert Server(answers).get("/queue") == {}


def test_a_server_that_sends_a_workflow_on_is_one_message(answers, monkeypatch):
    """The workflow arrived as a question without content."""
    monkeypatch.setattr(Answers, "badly", "sends on")
    with pytest.raises(ClientError, match="sends requests on to https://elsewhere; give that address"):
        Server(answers).queue({}, "1", "2")


class Gateway(BaseHTTPRequestHandler):
    """A proxy before an idle server: it says 503 to so many requests of a kind, `away`."""

    def do_GET(self) -> None:
        self.answer({"queue_running": [], "queue_pending": []} if self.path == "/queue" else {})

    def do_POST(self) -> None:
        self.answer({"prompt_id": "its own"})

    def answer(self, body: dict) -> None:
        self.server.asked.append(self.command)
        data = json.dumps(body).encode()
        self.send_response(503 if self.server.asked.count(self.command) <= self.server.away[self.command] else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway():
    http = HTTPServer(("127.0.0.1", 0), Gateway)
    http.asked, http.away, http.address = [], {"GET": 0, "POST": 0}, f"127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_proxy_whose_server_restarts_is_asked_again(gateway):
    gateway.away = {"GET": 1, "POST": 1}
    assert Server(gateway.address).get("/queue") == {"queue_running": [], "queue_pending": []}
    assert Server(gateway.address).queue({}, "mine", "2") == "its own" and gateway.asked.count("POST") == 2


def test_a_proxy_that_takes_no_workflow_is_asked_with_pauses_and_not_for_ever(gateway):
    """Where it answered other questions it was asked without a pause, and without end."""
    gateway.away = {"GET": 0, "POST": 1_000_000}
    threading.Timer(5, lambda: gateway.away.update(POST=0)).start()
    with pytest.raises(Unreachable, match="Service Unavailable"):
        Server(gateway.address, patience=0.6).queue({}, "mine", "2")
    assert gateway.asked.count("POST") <= 3


def test_a_lost_websocket_changes_nothing(server, tmp_path):
    server.cut_at, server.pause, heard = 2, 0.05, []
    outcomes = list(run_workflows(Server(server.address), [read_workflow(MINI)] * 2, tmp_path,
                                  lambda *told: heard.append(told)))
    assert [outcome.problem for outcome in outcomes] == [None, None] and len(server.taken) == 2
    assert heard[0] == ('6 "PixArt LCM Sampler" (PixArtLCMSampler)', 1, 4)


def test_without_a_websocket_the_end_is_found_all_the_same(server, tmp_path, monkeypatch):
    monkeypatch.setattr("pixart.client.listen.find_spec", lambda name: None)
    (outcome,) = run_workflows(Server(server.address), [read_workflow(MINI)], tmp_path)
    assert len(outcome.files) == 1 and not server.sockets


def test_messages_of_other_packs_in_any_form_are_passed_over(server, tmp_path):
    """Any pack may send anything to all clients: this was an AttributeError, and the prompts were taken back."""
    server.strange, heard = [{"type": "pack.play", "data": "ding"}, {"type": "pack.list", "data": [1]}, ["no", "type"],
                             {"type": "pack.id", "data": {"prompt_id": ["no text"]}}, {"data": {}}, 7], []
    (outcome,) = run_workflows(Server(server.address), [read_workflow(MINI)], tmp_path,
                               lambda *told: heard.append(told))
    assert len(outcome.files) == 1 and len(heard) == server.steps


def test_without_the_packages_of_bars_and_websocket_the_image_comes_all_the_same(server, tmp_path):
    code = ("import sys; sys.modules.update(dict.fromkeys(('tqdm', 'aiohttp', 'torch', 'numpy')));"
            "from pixart.__main__ import main; sys.exit(main())")
    done = subprocess.run([sys.executable, "-c", code, "queue", str(MINI), "--server", server.address, "--out",
                           str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and Path(done.stdout.strip()).is_file()


def test_stopping_while_the_server_is_away_says_that_prompts_may_still_run(server, tmp_path, monkeypatch):
    server.steps = 1000

    def gone(self: Server, path: str, body: dict | None = None, seconds: float = 30) -> bytes:
        raise ConnectionRefusedError("connection refused")

    def interrupted(prompt_ids: list[str]) -> None:
        monkeypatch.setattr(Server, "send", gone)
        raise KeyboardInterrupt
    here = Server(server.address)
    monkeypatch.setattr(here, "queued", interrupted)
    outcomes = run_workflows(here, [read_workflow(MINI)], tmp_path)
    with pytest.raises(Unreachable, match="stopped, but http.* gives no answer .*may still run"):
        next(outcomes)


def test_stopping_takes_everything_back(server, tmp_path, interruptible):
    server.steps, server.pause = 1000, 0.05
    outcomes = run_workflows(Server(server.address), [read_workflow(MINI)] * 3, tmp_path)

    def stop() -> None:
        while server.running is None or len(server.taken) < 3:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)       # as a terminal does: it ends a wait
    threading.Thread(target=stop).start()
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)
    assert server.running is None and server.waiting == [] and server.interrupts == 1


def test_a_workflow_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ClientError, match="no workflow file at this place.*nowhere.json"):
        read_workflow(tmp_path / "nowhere.json")


def test_a_refusal_names_node_title_and_input(server, tmp_path, monkeypatch, capsys):
    server.refuses = {"error": {"message": "Prompt outputs failed validation", "details": ""}, "node_errors": {"6": {
        "class_type": "PixArtLCMSampler", "errors": [{"message": "Value 99 bigger than max of 50", "details": "steps",
                                                      "extra_info": {"input_name": "steps"}}]}}}
    assert queue(server, tmp_path, monkeypatch=monkeypatch) == 3
    assert 'node 6 "PixArt LCM Sampler" (PixArtLCMSampler), input steps: Value 99' in capsys.readouterr().err


def test_a_workflow_that_is_taken_in_part_is_taken_back(server, tmp_path, monkeypatch, capsys):
    server.steps, server.pause = 1000, 0.05
    server.drops = {"6": {"class_type": "PixArtLCMSampler", "errors": [{"message": "Wrong", "details": "steps"}]}}
    assert queue(server, tmp_path, monkeypatch=monkeypatch) == 3
    assert "only a part of the workflow" in capsys.readouterr().err
    assert len(server.taken) == 1 and server.running is None and server.waiting == []


def test_a_failed_node_is_named(server, tmp_path, monkeypatch, capsys):
    server.fails = {"node_id": "6", "node_type": "PixArtLCMSampler", "exception_type": "ValueError",
                    "exception_message": "too many steps\n"}
    assert queue(server, tmp_path, "--seed", "1,2", monkeypatch=monkeypatch) == 5
    error = capsys.readouterr().err
    assert 'seed 2: node 6 "PixArt LCM Sampler" (PixArtLCMSampler) failed: ValueError: too many steps\n' in error
    assert "2 of 2 runs gave no image" in error


def test_a_run_that_somebody_interrupts_there_has_its_own_code(server, tmp_path, monkeypatch):
    server.steps, server.pause = 1000, 0.05

    def stop() -> None:
        while server.running is None:
            time.sleep(0.01)
        server.loop.call_soon_threadsafe(server.interrupted.set)
    threading.Thread(target=stop).start()
    assert queue(server, tmp_path, monkeypatch=monkeypatch) == 6


def test_a_forgotten_prompt_is_not_queued_again(server, tmp_path, monkeypatch, capsys):
    server.forgets = True
    assert queue(server, tmp_path, monkeypatch=monkeypatch) == 4
    assert len(server.taken) == 1 and "not queued again" in capsys.readouterr().err


def test_no_server_is_one_message_after_its_patience(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pixart", "queue", str(MINI), "--server", "127.0.0.1:1", "--patience", "0.1",
                                      "--out", str(tmp_path)])
    assert main() == 4
    assert capsys.readouterr().err.startswith("error: no answer from http://127.0.0.1:1 (")


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
def test_patience_without_a_measure_is_refused(tmp_path, monkeypatch, capsys, seconds):
    """With nan the command asked a server that is not there for ever."""
    monkeypatch.setattr(sys, "argv", ["pixart", "queue", str(MINI), f"--patience={seconds}", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert f"argument --patience: '{seconds}' must be" in capsys.readouterr().err
    if seconds != "inf":
        with pytest.raises(ClientError, match="expected 0 or more"):
            Server("127.0.0.1:1", float(seconds))


def test_a_file_where_the_folder_of_images_should_be_is_refused(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert queue(server, tmp_path / "file", monkeypatch=monkeypatch) == 1
    assert "this is a file" in capsys.readouterr().err and not server.taken


def test_files_never_replace_others_nor_leave_the_folder(tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    assert save(tmp_path, "a.png", b"new").name == "a-2.png" and (tmp_path / "a.png").read_bytes() == b"mine"
    assert save(tmp_path, "a.png", b"new").name == "a-2.png"
    assert save(tmp_path, "../../b.png", b"x") == tmp_path / "b.png"
    assert save(tmp_path, "..\\c.png", b"x") == tmp_path / "c.png"
    with pytest.raises(ClientError, match="impossible name"):
        save(tmp_path, "..", b"x")


def test_names_of_inputs(tmp_path):
    graph = read_workflow(API / "mini-control-lcm-4-steps.json")
    for name in ("Prompt.text", "prompt.TEXT".lower(), "11.text"):
        assert with_value(graph, name, "a cat")["11"]["inputs"]["text"] == "a cat"
    assert graph["11"]["inputs"]["text"] != "a cat"
    assert with_value(graph, "filename_prefix", "x")["15"]["inputs"]["filename_prefix"] == "x"
    assert with_value(graph, "13.steps", "2")["13"]["inputs"]["steps"] == 2
    assert with_value(graph, "PixArtControlNetApply.strength", "0.5")["12"]["inputs"]["strength"] == 0.5
    assert with_value(graph, "6.null_caption", "TRUE")["6"]["inputs"]["null_caption"] is True
    assert {with_seed(graph, 9)[key]["inputs"]["seed"] for key in ("7", "13")} == {9}


def test_a_fraction_takes_the_place_of_a_whole_number_where_the_input_is_a_float(server):
    """The page writes 8.0 as 8."""
    graph = {"3": {"class_type": "KSampler", "inputs": {"cfg": 8, "steps": 20}}}
    kinds = {"cfg": "FLOAT", "steps": "INT"}
    given = with_value(graph, "cfg", "4.5", lambda kind, entry: kinds[entry])
    assert given["3"]["inputs"]["cfg"] == 4.5 and with_value(graph, "cfg", "4")["3"]["inputs"]["cfg"] == 4
    for name, asked in (("steps", lambda kind, entry: kinds[entry]), ("cfg", None)):
        with pytest.raises(ClientError, match="a whole number"):
            with_value(graph, name, "4.5", asked)


def test_a_prompt_that_is_said_twice_is_changed_in_both_places():
    """ReNO's rewards and the record of a saved prompt were told the old one."""
    for name, places in (("mini-reno", [("5", "text"), ("6", "prompt")]),
                         ("mini-save-prompt", [("5", "text"), ("6", "text")]), ("mini-lcm-4-steps", [("5", "text")])):
        graph = read_workflow(API / f"{name}.json")
        given = with_value(graph, "prompt", "a cat")
        changed = [(key, entry) for key, node in given.items() for entry, value in node["inputs"].items()
                   if value != graph[key]["inputs"][entry]]
        assert sorted(changed) == places and all(given[key]["inputs"][entry] == "a cat" for key, entry in places)


@pytest.mark.parametrize("name, value, finding", [
    ("prompt", "x", 'ambiguous.*6 "First prompt".*11 "Prompt"'), ("steps", "2", "ambiguous.*7 .*13 "),
    ("PixArtLCMSampler.steps", "2", "ambiguous"), ("13.step", "2", "13 .* has seed, steps"),
    ("nothing", "2", "the nodes are"), ("13.steps", "two", "a whole number"), ("13.cfg", "x", "a number"),
    ("6.null_caption", "maybe", "true or false"), ("13.latent", "x", 'comes from another node.*5 "PixArt Empty'),
])
def test_names_that_fit_badly_are_refused_with_the_choices(name, value, finding):
    with pytest.raises(ClientError) as caught:
        with_value(read_workflow(API / "mini-control-lcm-4-steps.json"), name, value)
    assert re.search(finding, str(caught.value))


@pytest.mark.parametrize("path", sorted(API.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_workflows_are_read(path):
    assert read_workflow(path)


def test_other_files_are_refused_with_advice(tmp_path):
    with pytest.raises(ClientError, match=r"page's format.*api.mini-lcm-4-steps\.json instead"):
        read_workflow(ROOT / "workflows" / "mini-lcm-4-steps.json")
    for text, finding in (('{"nodes": []}', "Export"), ("{", "cannot be read"), ("[]", "no workflow"),
                          ("{}", "no work"), ('{"1": {"class_type": "A"}}', "class_type and inputs")):
        (tmp_path / "w.json").write_text(text)
        with pytest.raises(ClientError, match=finding):
            read_workflow(tmp_path / "w.json")


def test_seeds():
    assert seeds_of("1..3,9, 2") == [1, 2, 3, 9]
    for text in ("", "3..1", "a", "1..", "-1", "1.5", "18446744073709551616", "0..200000", "9" * 5000,
                 "1.." + "9" * 5000):
        with pytest.raises(ClientError, match="are no seeds"):
            seeds_of(text)


def test_the_client_needs_no_torch():
    code = "import sys, pixart.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
