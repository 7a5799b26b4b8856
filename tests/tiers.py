"""Run the tests in tiers (core, host, browser), one summary line each; `python quickstart.py test` calls this."""
from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
WORKER_MEMORY = 6 * 2 ** 30         # of one process of the core tier, its subprocesses included


@dataclass(frozen=True)
class Result:
    """What one run of one tier gave. `reason` is set when it did not run or broke down."""

    tier: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    reason: str = ""

    @property
    def verdict(self) -> str:
        if self.failed:
            return "FAILED"
        return "PASSED" if self.passed else "NOT RUN"

    def __str__(self) -> str:
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped in {self.seconds:.0f} s"
        told = counts if self.passed + self.failed else ""
        return f"{self.tier:<16} {self.verdict:<8} {' - '.join(part for part in (told, self.reason) if part)}"


def run_pytest(tier: str, python: str, marks: str, environment: dict[str, str] | None = None, workers: int = 1
               ) -> Result:
    """All tests with these marks, files shared out over `workers` processes; pytest's output is shown as it comes."""
    print(f"\n==== {tier}", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pixart-tests-") as folder:
        report = Path(folder) / "report.xml"
        command = [python, "-m", "pytest", str(TESTS), "-q", "-m", marks, f"--junitxml={report}",
                   "-p", "no:cacheprovider"]
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
        if workers > 1:
            command += ["-n", str(workers), "--dist", "loadfile"]
            variables.setdefault("OMP_NUM_THREADS", "1")        # threads of several processes wait for each other
        code = subprocess.run(command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL).returncode
        seconds = time.monotonic() - started
        if code == 5:
            return Result(tier, reason="no test carries its mark", seconds=seconds)
        if code not in (0, 1) or not report.is_file():
            return Result(tier, failed=1, seconds=seconds, reason=f"pytest broke off with exit code {code}")
        return counted(tier, report, seconds)


def fitting_workers() -> int:
    """As many processes as there are cores, and memory for: what the largest tests hold at a time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):           # Windows has no sysconf
        return 1
    return max(1, min(cores, memory // WORKER_MEMORY))


def counted(tier: str, report: Path, seconds: float) -> Result:
    """Read pytest's counts; errors in set-up count as failures."""
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    total, failures, errors, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    reason = "" if total > skipped else "every test was skipped"
    return Result(tier, max(total - failed - skipped, 0), failed, skipped, seconds, reason)


def host_results(python: Path, hosts: Sequence, marks: str) -> Iterator[Result]:
    """The host tier once on every ComfyUI. What runs inside a host is run by that host's own Python."""
    if not hosts:
        yield Result("host", reason="no ComfyUI found (--comfyui, $COMFYUI_PATH, ~/comfy/ComfyUI)")
    for host in hosts:
        tier = f"host {host.version}"
        if host.missing:
            yield Result(tier, reason=host.remedy)
            continue
        yield run_pytest(tier, str(python), marks, variables_of(host))


def variables_of(host: object) -> dict[str, str]:
    """Environment that names one host to the tests."""
    return {"COMFYUI_PATH": str(host.path), "COMFYUI_PYTHON": host.python}


def browser_results(python: Path, hosts: Sequence, browser: str | None, marks: str) -> Iterator[Result]:
    """The page in a real browser: of the newest and of the oldest usable ComfyUI."""
    usable = [host for host in hosts if not host.missing]
    if not usable or not browser:
        lacking = "usable ComfyUI" if not usable else "Chromium or Chrome ($CHROMIUM names one)"
        yield Result("browser", reason=f"no {lacking} found")
        return
    for host in newest_and_oldest(usable):
        yield run_pytest(f"browser {host.version}", str(python), marks, {**variables_of(host), "CHROMIUM": browser})


def newest_and_oldest(hosts: Sequence) -> list:
    """Both ends of the versions, the newest first; a single host is both."""
    def release(host: object) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", host.version.split("+")[0])]

    ordered = sorted(hosts, key=release, reverse=True)
    return [ordered[0], ordered[-1]][:len(ordered)]


def run_tiers(python: Path, hosts: Sequence, browser: str | None, only: list[str] | None, slow: bool) -> int:
    """Run the tiers asked for (all by default), print the summary, return the exit code.

    `hosts` are ComfyUI installations with path, python, version, missing and remedy.
    """
    rest = "" if slow else " and not slow"
    results: list[Result] = []
    if not only or "core" in only:
        core = "not host and not browser" + rest
        results.append(run_pytest("core", str(python), f"{core} and not large", workers=fitting_workers()))
        if slow:
            results.append(run_pytest("core, large", str(python), f"{core} and large"))
    if not only or "host" in only:
        results.extend(host_results(python, hosts, "host and not browser" + rest))
    if not only or "browser" in only:
        results.extend(browser_results(python, hosts, browser, "browser" + rest))
    print("\n==== summary")
    print("\n".join(map(str, results)))
    passed, failed, skipped = (sum(getattr(result, key) for result in results)
                               for key in ("passed", "failed", "skipped"))
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed or not passed else 0
