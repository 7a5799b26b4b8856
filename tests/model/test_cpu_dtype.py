"""The data type on a CPU: by its features and the width, and the same however often it is asked."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pixart.model import cpu_dtype

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_dtype, "processor_has_amx", lambda: True)
    for name in cpu_dtype.LIMITS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("width", "want"), [(48, torch.float32), (127, torch.float32), (128, torch.bfloat16),
                                             (192, torch.bfloat16), (1152, torch.bfloat16)])
def test_bf16_is_taken_where_matrix_units_pay(amx: None, width: int, want: torch.dtype) -> None:
    assert cpu_dtype.faster_dtype(width) == want


@pytest.mark.parametrize("width", [48, 192, 1152])
def test_without_matrix_units_it_is_float32(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(cpu_dtype, "processor_has_amx", lambda: False)
    assert cpu_dtype.faster_dtype(width) == torch.float32


@pytest.mark.parametrize(("limit", "want"), [
    ("AVX2", torch.float32), ("avx512_core_bf16", torch.float32), ("AVX512_CORE_AMX", torch.bfloat16),
    ("AVX10_1_512_AMX", torch.bfloat16), ("ALL", torch.bfloat16), ("", torch.bfloat16)])
def test_what_the_user_keeps_onednn_from_is_not_counted_on(amx: None, monkeypatch: pytest.MonkeyPatch, limit: str,
                                                           want: torch.dtype) -> None:
    for name in cpu_dtype.LIMITS:
        monkeypatch.setenv(name, limit)
        assert cpu_dtype.faster_dtype(1152) == want
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("text", "want"), [("flags\t\t: fpu amx_bf16 avx2\n", True), ("flags\t\t: fpu avx2\n", False),
                                            ("Features\t: fp asimd\n", False), (None, False)])
def test_older_torch_asks_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None,
                                     want: bool) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(cpu_dtype, "CPUINFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert cpu_dtype.processor_has_amx.__wrapped__() == want


def test_fresh_processes_agree_on_a_busy_machine() -> None:
    """A trial in its place gave another answer in 2 of 7 starts, and so another image for the same seed."""
    code = "from pixart.model.cpu_dtype import faster_dtype as f; print(*[f(width) for width in (96, 192, 1152)])"
    runs = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for _ in range(4)]
    assert len({run.communicate(timeout=300)[0] for run in runs}) == 1
