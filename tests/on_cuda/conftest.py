"""A pretended CUDA device for a test, and a fresh one in every test: nothing of it may outlive the test."""
from collections.abc import Iterator

import pytest
from on_cuda.pretend import Cuda
from on_cuda.pretended import pretend_cuda


@pytest.fixture(autouse=True)
def fresh_processes() -> Iterator[None]:
    """accelerate remembers the device of a process, which must not be the pretended one afterwards."""
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def gpu() -> Iterator[Cuda]:
    with pretend_cuda() as device:
        yield device
