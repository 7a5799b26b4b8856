"""The summary of `python quickstart.py test`: counts as pytest reports them, reasons where a tier did not run."""
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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


def test_tiers_without_their_precondition_are_not_run_and_say_why(capsys):
    code = tiers.run_tiers(Path(sys.executable), [], None, ["host", "browser"], slow=False)
    lines = capsys.readouterr().out.splitlines()
    assert code == 1                                # nothing at all was tested
    assert [line.split()[:3] for line in lines[-3:-1]] == [["host", "NOT", "RUN"], ["browser", "NOT", "RUN"]]
    assert "no ComfyUI found" in lines[-3]
    assert lines[-1] == "0 passed, 0 failed, 0 skipped"


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
