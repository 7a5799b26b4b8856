"""python -m pixart mini: what is printed and written, and what is refused before any work."""
import sys

import pytest

from pixart.__main__ import main
from pixart.mini import SHIPPED


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pixart", "mini", *arguments])
    code = main()
    said = capsys.readouterr()
    return code, said.out, said.err


def test_evaluate_then_compare(monkeypatch, capsys, tmp_path):
    for folder, method in (("a", "student:lcm:1"), ("b", "two=student:lcm:2")):
        code, out, _ = run(monkeypatch, capsys, "evaluate", "--count", "6", "--diversity", "0", "--method", method,
                           "--device", "cpu", "--out", str(tmp_path / folder), "--sheet", str(tmp_path / "sheet.png"),
                           "--edge-sheet", str(tmp_path / "edges.png"))
        assert code == 0 and "| real images |" in out and str(tmp_path / folder / "results.json") in out
    assert (tmp_path / "sheet.png").stat().st_size > 1000 and (tmp_path / "edges.png").stat().st_size > 1000
    files = [str(tmp_path / folder / "results.json") for folder in ("a", "b")]
    code, out, _ = run(monkeypatch, capsys, "compare", *files, "--base", "two", "--out", str(tmp_path / "both"))
    assert code == 0 and "| minus two |" in out and (tmp_path / "both" / "results.md").exists()
    code, _, err = run(monkeypatch, capsys, "compare", *files, "--base", "three")
    assert code == 1 and "no row 'three'" in err


def test_a_build_ends_with_the_table(monkeypatch, capsys, tmp_path):
    built = []
    monkeypatch.setattr("pixart.mini.recipe.build_mini", lambda work, files, device, minutes, stages:
                        built.append((work, files, device, minutes, stages)))
    code, out, _ = run(monkeypatch, capsys, "build", "--work", str(tmp_path), "--weights", str(SHIPPED.root),
                       "--device", "cpu", "--measure", "3", "--minutes", "2.5", "--stages", "teacher,student")
    assert code == 0 and built == [(tmp_path, SHIPPED, "cpu", 2.5, ("teacher", "student"))]
    assert "| teacher, 20 steps, guidance 2.5 |" in out and "| LCM, 1 step |" in out


@pytest.mark.parametrize("arguments, said", [
    (["evaluate", "--method", "teacher:euler:4"], "is not a method"),
    (["evaluate", "--control", "--crowded"], "--crowded has no effect with --control"),
    (["evaluate", "--control", "--diversity", "0"], "--diversity has no effect with --control"),
    (["evaluate", "--out", "/nowhere/at/all"], "does not exist"),
    (["diagnose", "--out", "/nowhere/at/all"], "does not exist"),
    (["compare", "none.json"], "no file none.json"),
])
def test_refused_before_any_work(monkeypatch, capsys, arguments, said):
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 1 and said in err
