"""Killed at any moment, preparing goes on: every image once, as if nothing had happened."""
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from forking import start
from prepare.images_at_hand import collection, mini_job, stored

from pixart.prepare.run import prepare

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


def work(source: Path, out: Path) -> None:
    torch.set_num_threads(1)
    prepare(mini_job(source, out, shard=2, edges="soft"))


def kill_at_random(folder: Path, kills: int) -> None:
    """Kill -9 that often, adding an image after every end; then what is there equals what one quiet run makes."""
    source, chance, killed, images = folder / "in", random.Random(0), 0, 8
    collection(source, images)
    start(time.sleep, 0).join()         # now the server is there
    began = time.perf_counter()
    start(work, source, folder / "timed").join()
    seconds = time.perf_counter() - began
    while killed < kills:
        process = start(work, source, folder / "killed")
        process.join(chance.uniform(0, seconds))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:                   # it came to its end: give it something new to do
            images += 2
            collection(source, images)
    for name in ("killed", "quiet"):
        process = start(work, source, folder / name)
        process.join()
        assert process.exitcode == 0
    assert_same(stored(folder / "killed"), stored(folder / "quiet"), images)
    assert not (folder / "killed" / ".captions").exists()
    assert (folder / "killed" / "skipped.jsonl").read_text() == ""


def assert_same(found: dict, wanted: dict, count: int) -> None:
    """Rows are kept as long as the longest caption of their shard, so padding may differ; values may not."""
    assert found.keys() == wanted.keys() and len(found) == count
    for key, row in wanted.items():
        tokens = int(row["mask"].sum())
        assert int(found[key]["mask"].sum()) == tokens
        assert torch.equal(found[key]["features"][:tokens], row["features"][:tokens])
        for name in ("latents", "hints"):           # the size of a batch decides the order of some sums
            assert torch.allclose(found[key][name].float(), row[name].float(), atol=2e-3), name
        assert torch.equal(found[key]["size"], row["size"]) and torch.equal(found[key]["sides"], row["sides"])


def test_killed_anywhere_it_goes_on(tmp_path):
    kill_at_random(tmp_path, 3)


@pytest.mark.slow
def test_killed_twenty_times_it_goes_on(tmp_path):
    kill_at_random(tmp_path, 20)
