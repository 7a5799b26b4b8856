"""A step of distillation at full size really fits, and takes what the benchmark computes for it."""
import re
import subprocess
import sys
from pathlib import Path

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
@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_a_full_size_step_fits_24_gb_and_takes_what_is_computed():
    """Student, average, teacher, gradients and moments of 611 M parameters each, in float32, at 256 px."""
    text = told("--measure", "--side", "256")
    most, before = map(float, re.search(r"measured: ([\d.]+) GiB resident at most, ([\d.]+) GiB", text).groups())
    computed = float(re.search(r"computed for the same step: ([\d.]+) GiB", text)[1])
    assert most < 22.3                                              # 24 GB
    assert computed == pytest.approx(most - before, rel=0.1)


def test_switches_save_what_they_should_and_the_table_is_whole():
    """At a depth of 14: the fewest blocks that the published ControlNet fits on."""
    lines = [line for line in told("--depth", "14").splitlines() if line.startswith("| ")][1:]
    found = {line.split(" | ")[0].removeprefix("| "): [float(x) for x in re.findall(r"([\d.]+) GiB", line)]
             for line in lines}
    peaks = {title: values[0] for title, values in found.items()}
    recipe = peaks["full student, batch 12 (published recipe)"]
    assert peaks["with recomputation, batch 1"] < peaks["the same without recomputation, batch 1"] < recipe
    assert peaks["moments of Adam in 8 bits"] < recipe < peaks["teacher in fp32"]
    assert peaks["512 px, batch 12"] < recipe
    for title, (peak, *parts) in found.items():
        assert peak == pytest.approx(sum(parts), abs=0.3), title
