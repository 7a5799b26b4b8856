"""The same prompt and seed give the same image, to the bit, at every start and whatever else the machine does."""
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from host import harness
from host.test_starts import drawn

STARTS = 8
BUSY = "while True: sum(range(100_000))"


@dataclass(frozen=True)
class AsInstalled(harness.Host):
    """The host with as many threads as its own libraries choose, as users start it."""

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in super().environment.items() if name != "OMP_NUM_THREADS"}


@contextmanager
def loaded(processes: int) -> Iterator[None]:
    """As many other processes that compute without end."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.send_signal(signal.SIGKILL)
            process.wait()


def fresh(host: harness.Host, folder: Path) -> np.ndarray:
    """The image of a host that is started for it."""
    harness.link_pack(folder / "custom_nodes")
    with harness.Server(AsInstalled(host.path, host.python), folder) as server:
        return drawn(server)


@pytest.mark.slow
def test_eight_fresh_starts_on_a_loaded_and_an_idle_machine_give_one_image(host, tmp_path):
    images = []
    for number in range(STARTS):
        with loaded((os.cpu_count() or 1) if number % 2 else 0):
            images.append(fresh(host, tmp_path / str(number)))
    assert images[0].std() > 0.1
    differing = [number for number, image in enumerate(images) if not np.array_equal(image, images[0])]
    assert not differing, f"starts with another image than the first: {differing}"
