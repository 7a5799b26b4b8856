"""The trial that chooses the data type on a CPU."""
import pytest
import torch

from pixart.model import dtype_probe


@pytest.fixture(autouse=True)
def forget():
    dtype_probe.faster_dtype.cache_clear()
    yield
    dtype_probe.faster_dtype.cache_clear()


def test_it_answers_with_one_of_two_types():
    assert dtype_probe.faster_dtype(96) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("bf16, want", [(0.1, torch.bfloat16), (0.79, torch.bfloat16), (0.81, torch.float32),
                                        (2.0, torch.float32), (50.0, torch.float32)])
def test_bf16_is_taken_where_it_saves_a_fifth(monkeypatch, bf16, want):
    monkeypatch.setattr(dtype_probe, "trial_seconds",
                        lambda width, dtype, repeats=3: 1.0 if dtype == torch.float32 else bf16)
    assert dtype_probe.faster_dtype(96) == want


def test_it_is_measured_once_per_width(monkeypatch):
    calls = []
    monkeypatch.setattr(dtype_probe, "trial_seconds", lambda *arguments, **_: calls.append(arguments) or 1.0)
    dtype_probe.faster_dtype(96)
    asked = len(calls)
    dtype_probe.faster_dtype(96)
    assert len(calls) == asked
    dtype_probe.faster_dtype(192)
    assert len(calls) == 2 * asked
