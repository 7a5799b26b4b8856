"""`pixart queue` against a real server: images of several seeds, a refusal, an interruption."""
import signal
import sys
import threading
import time

import pytest
from host import harness

from pixart.__main__ import main
from pixart.client import Server, read_workflow, run_workflows, with_seed, with_value

MINI = harness.ROOT / "workflows" / "api" / "mini-lcm-4-steps.json"


def test_a_workflow_is_queued_refused_and_taken_back(server, tmp_path, monkeypatch, capsys, interruptible):
    command = ["pixart", "queue", str(MINI), "--server", f"127.0.0.1:{server.port}", "--out", str(tmp_path),
               "--set", "prompt=a large red circle on a white background", "--seed", "5,6"]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    files = sorted(tmp_path.glob("*.png"))
    assert len(files) == 2 and len({path.read_bytes() for path in files}) == 2
    assert capsys.readouterr().out.split() == list(map(str, files))

    monkeypatch.setattr(sys, "argv", [*command, "--set", "steps=99"])
    assert main() == 3
    assert '(PixArtLCMSampler), input steps: Value 99 bigger than max' in capsys.readouterr().err

    heard: list[tuple] = []
    there = Server(f"127.0.0.1:{server.port}")
    outcomes = run_workflows(there, [with_seed(with_value(read_workflow(MINI), "batch_size", "64"), seed)
                                     for seed in (7, 8)],
                              tmp_path, lambda *told: heard.append(told))

    def stop() -> None:
        until = time.monotonic() + harness.PROMPT_SECONDS
        while not heard and time.monotonic() < until:
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)       # as a terminal does: it ends a wait
    threading.Thread(target=stop).start()
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)
    assert any('"PixArt LCM Sampler"' in stage for stage, _, _ in heard)
    listed = there.get("/queue")
    assert listed["queue_running"] == listed["queue_pending"] == []
