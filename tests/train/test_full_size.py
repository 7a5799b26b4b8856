"""A step of distillation at full size really fits, and takes what the benchmark computes for it."""
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from train.training_data import environment

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "training_memory.py"


def told(*arguments: str) -> str:
    more = {} if sys.platform == "win32" else {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-W", "ignore", str(BENCHMARK), *arguments], env=environment(**more),
                          capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.large
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell what a program held at most")
def test_a_full_size_step_fits_24_gb_and_takes_what_is_computed():
    """Student, average, teacher, gradients and moments of 611 M parameters each, in float32, at 256 px."""
    text = told("--measure", "--side", "256")
    most, before = map(float, re.search(r"measured: ([\d.]+) GiB resident at most, ([\d.]+) GiB", text).groups())
    computed = float(re.search(r"computed for the same step: ([\d.]+) GiB", text)[1])
    assert most < 22.3                                              # 24 GB
    assert computed == pytest.approx(most - before, rel=0.1)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_memory", BENCHMARK)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_switch_saves_what_it_should(benchmark):
    """On two blocks of full width."""
    def peak(**changes: object) -> float:
        return benchmark.computed(benchmark.Case(**{"depth": 2, "batch": 2, "side": 512, **changes})).peak

    recipe, trained = peak(), 59_000_000
    assert peak(recompute=False) > 1.05 * recipe
    assert peak(frozen="fp32") - recipe == pytest.approx(2 * trained, rel=0.1)          # the teacher's other two bytes
    assert recipe - peak(eight_bit=True) == pytest.approx(6 * trained, rel=0.1)         # 8 bytes a weight become 2
    assert peak(batch=4) > peak(batch=3) > recipe > peak(side=256)
    assert peak(method="lcm-lora") < recipe


def test_what_is_computed_adds_up(benchmark):
    found = benchmark.computed(benchmark.Case(depth=2, batch=1, side=256))
    assert found.moments == 8 * found.trained and found.weights == 10 * found.trained
    assert 0 < found.activations < found.peak - found.weights - found.moments
