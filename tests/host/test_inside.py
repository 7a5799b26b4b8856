"""Runs the facts of tests/host/inside in each host's own Python, once per host, and reports each one."""
import ast
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from host.inside.run import ALSO_DYNAMIC

INSIDE = Path(__file__).resolve().parent / "inside"
IMPORT_SECONDS = 0.2


def fact_names(files: Iterable[Path], left_out: str = "") -> list[str]:
    """left_out: name of a file's list of facts that are not to be run."""
    return [f"{file.stem}.{name}" for file in files for name in names_in(file, left_out)]


def names_in(file: Path, left_out: str) -> list[str]:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    out = next((ast.literal_eval(item.value) for item in body if isinstance(item, ast.Assign)
                and ast.unparse(item.targets[0]) == left_out), ())
    names = [item.name for item in body if isinstance(item, ast.FunctionDef) and item.name.startswith("test_")]
    assert set(out) <= set(names), f"{file.name} leaves out what it does not have: {set(out) - set(names)}"
    return [name for name in names if name not in out]


FACTS = fact_names(sorted(INSIDE.glob("facts_*.py")))
DYNAMIC_FACTS = fact_names(sorted((INSIDE / "dynamic").glob("facts_*.py"))) + fact_names(
    [INSIDE / f"{name}.py" for name in ALSO_DYNAMIC], "NOT_DYNAMIC")


def run(host, base, out: Path, *folder: str) -> dict:
    done = subprocess.run([host.python, str(INSIDE / "run.py"), str(host.path), str(base), str(out), *folder],
                          cwd=host.path, env=host.environment, stdin=subprocess.DEVNULL, text=True, timeout=900,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert out.is_file(), f"ended with {done.returncode} before the end:\n{done.stdout[-4000:]}"
    return json.loads(out.read_text())


@pytest.fixture(scope="session")
def facts(host, base, tmp_path_factory) -> dict:
    return run(host, base, tmp_path_factory.mktemp("facts") / "facts.json")


@pytest.fixture(scope="session")
def dynamic_facts(host, base, tmp_path_factory) -> dict:
    """Of the host with its dynamic VRAM, which every host of today has on a CUDA machine."""
    if not (host.path / "comfy" / "memory_management.py").is_file():
        pytest.skip(f"ComfyUI {host.version} has no dynamic VRAM")
    return run(host, base, tmp_path_factory.mktemp("facts") / "dynamic.json", "dynamic")


def judge(name: str, host, facts: dict) -> None:
    if lacking := facts[name].get("lacking"):
        pytest.skip(f"the Python of ComfyUI {host.version} lacks {lacking}: {host.python} -m pip install {lacking}")
    if facts[name]["error"]:
        pytest.fail(facts[name]["error"], pytrace=False)


@pytest.mark.parametrize("name", FACTS)
def test_inside(name: str, host, facts: dict) -> None:
    judge(name, host, facts)


@pytest.mark.parametrize("name", DYNAMIC_FACTS)
def test_inside_with_dynamic_vram(name: str, host, dynamic_facts: dict) -> None:
    judge(name, host, dynamic_facts)


def test_the_pack_starts_in_a_fifth_of_a_second(facts: dict) -> None:
    assert facts["import"]["seconds"] < IMPORT_SECONDS
    assert facts["import"]["heavy"] == []
