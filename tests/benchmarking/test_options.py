"""Wrong options of the benchmarks are refused before anything runs."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["gpu", "speed", "pt_dit_mini", "flexdit_mini", "mup_transfer", "lcm_seeds"])
def test_numbers_are_finite(script):
    option = {"gpu": "--minutes", "speed": "--budgets", "mup_transfer": "--rates", "lcm_seeds": "--rates"}.get(script,
                                                                                                              "--rate")
    words = ["benchmarks", script] if script in ("gpu", "speed") else [f"benchmarks.{script}"]
    done = subprocess.run([sys.executable, "-m", *words, f"{option}=nan"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"argument {option}: 'nan' must be a finite number" in done.stderr, done.stderr


def test_a_script_without_options_computes_nothing_for_its_help():
    done = subprocess.run([sys.executable, "benchmarks/reno_memory.py", "--help"], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0 and "Memory of noise optimisation" in done.stdout and "GiB |" not in done.stdout
