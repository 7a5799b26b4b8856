"""Runs the facts of tests/host/inside in each host's own Python, once per host, and reports each one."""
import ast
import json
import subprocess
from pathlib import Path

import pytest

INSIDE = Path(__file__).resolve().parent / "inside"
IMPORT_SECONDS = 0.2


def fact_names() -> list[str]:
    return [f"{file.stem}.{item.name}" for file in sorted(INSIDE.glob("facts_*.py"))
            for item in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(item, ast.FunctionDef) and item.name.startswith("test_")]


@pytest.fixture(scope="session")
def facts(host, base, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("facts") / "facts.json"
    done = subprocess.run([host.python, str(INSIDE / "run.py"), str(host.path), str(base), str(out)], timeout=900,
                          cwd=host.path, env=host.environment, stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert out.is_file(), f"ended with {done.returncode} before the end:\n{done.stdout[-4000:]}"
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", fact_names())
def test_inside(name: str, host, facts: dict) -> None:
    if lacking := facts[name].get("lacking"):
        pytest.skip(f"the Python of ComfyUI {host.version} lacks {lacking}: {host.python} -m pip install {lacking}")
    if facts[name]["error"]:
        pytest.fail(facts[name]["error"], pytrace=False)


def test_the_pack_starts_in_a_fifth_of_a_second(facts: dict) -> None:
    assert facts["import"]["seconds"] < IMPORT_SECONDS
    assert facts["import"]["heavy"] == []
