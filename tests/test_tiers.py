"""The summary of `python quickstart.py test`: counts as pytest reports them, reasons where a tier did not run."""
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiers

SAMPLE = """
import pytest
def test_good(): pass
def test_bad(): assert False
@pytest.mark.skip(reason="no")
def test_skipped(): pass
@pytest.fixture
def broken(): raise RuntimeError("set-up")
def test_error(broken): pass
"""


def test_counts_are_those_of_a_real_pytest_run(tmp_path):
    (tmp_path / "test_sample.py").write_text(SAMPLE)
    report = tmp_path / "report.xml"
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}",
                    str(tmp_path)], capture_output=True, cwd=tmp_path)
    result = tiers.counted("core", report, 1.0)
    assert (result.passed, result.failed, result.skipped, result.verdict) == (1, 2, 1, "FAILED")


def test_files_are_shared_out_over_processes_and_counted_together(tmp_path, monkeypatch):
    for name in ("one", "two"):
        place = str(tmp_path / f"{name}.pid")
        (tmp_path / f"test_{name}.py").write_text(f"import os, pathlib\ndef test_it(): "
                                                  f"pathlib.Path({place!r}).write_text(str(os.getpid()))\n"
                                                  "def test_that(): assert os.environ['OMP_NUM_THREADS'] == '1'\n")
    monkeypatch.setattr(tiers, "TESTS", tmp_path)
    monkeypatch.setattr(tiers, "ROOT", tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    result = tiers.run_pytest("core", sys.executable, "not host", workers=2)
    assert (result.passed, result.failed) == (4, 0)
    assert (tmp_path / "one.pid").read_text() != (tmp_path / "two.pid").read_text()


@pytest.mark.parametrize(("cores", "gigabytes", "workers"), [(2, 24, 2), (16, 24, 4), (16, 64, 10), (4, 4, 1)])
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="counts cores and memory as on Linux")
def test_there_are_no_more_workers_than_cores_and_memory(monkeypatch, cores, gigabytes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gigabytes * 2 ** 18}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert tiers.fitting_workers() == workers


def test_tiers_without_their_precondition_are_not_run_and_say_why(capsys):
    code = tiers.run_tiers(Path(sys.executable), [], None, ["host", "browser"], slow=False)
    lines = capsys.readouterr().out.splitlines()
    assert code == 1                                # nothing at all was tested
    assert [line.split()[:3] for line in lines[-3:-1]] == [["host", "NOT", "RUN"], ["browser", "NOT", "RUN"]]
    assert "no ComfyUI found" in lines[-3]
    assert lines[-1] == "0 passed, 0 failed, 0 skipped"


CORE = "not host and not browser"


@pytest.mark.parametrize(("slow", "runs"), [
    (True, [("core", f"{CORE} and not large", 3), ("core, large", f"{CORE} and large", 1)]),
    (False, [("core", f"{CORE} and not slow and not large", 3)])], ids=["all", "fast"])
def test_what_needs_most_memory_runs_by_itself(monkeypatch, slow, runs):
    asked = []

    def note(tier, python, marks, environment=None, workers=1):
        asked.append((tier, marks, workers))
        return tiers.Result(tier, passed=1)
    monkeypatch.setattr(tiers, "run_pytest", note)
    monkeypatch.setattr(tiers, "fitting_workers", lambda: 3)
    assert tiers.run_tiers(Path(sys.executable), [], None, ["core"], slow) == 0
    assert asked == runs


def test_host_without_our_requirements_is_not_run_and_names_the_remedy():
    class Lacking:
        version, missing, remedy, python, path = "9.8.7", ("bitsandbytes",), "pip install it", "python", Path()

    (result,) = tiers.host_results(Path(sys.executable), [Lacking()], "host")
    assert (result.verdict, result.reason) == ("NOT RUN", "pip install it")


def test_the_browser_tier_runs_on_the_newest_and_the_oldest_host():
    @dataclass
    class Found:
        version: str

    hosts = [Found("0.9.1"), Found("0.33.0"), Found("0.3.64"), Found("0.10.0+local")]
    assert [host.version for host in tiers.newest_and_oldest(hosts)] == ["0.33.0", "0.3.64"]
    assert [host.version for host in tiers.newest_and_oldest(hosts[:1])] == ["0.9.1"]
