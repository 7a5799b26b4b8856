"""A pretended CUDA device for a test, and a fresh one in every test: nothing of it may outlive the test."""
from collections.abc import Iterator

import pytest
from on_cuda.pretend import Cuda
from on_cuda.pretended import pretend_cuda


@pytest.fixture
def gpu() -> Iterator[Cuda]:
    with pretend_cuda() as device:
        yield device
