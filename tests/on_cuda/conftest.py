"""A pretended CUDA device for a test, and a fresh one in every test: nothing of it may outlive the test."""
from collections.abc import Iterator

import pytest
import torch
from on_cuda.pretend import Cuda
from on_cuda.pretended import pretend_cuda

from pixart.text import t5


@pytest.fixture(autouse=True)
def fresh_processes() -> Iterator[None]:
    """accelerate remembers the device of a process, which must not be the pretended one afterwards."""
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def text_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU too, whichever it is: what is compared with it is encoded in bfloat16."""
    monkeypatch.setattr(t5, "fitting_dtype", lambda device, width: torch.bfloat16)


@pytest.fixture
def gpu() -> Iterator[Cuda]:
    with pretend_cuda() as device:
        yield device
