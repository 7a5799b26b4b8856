"""The report of a command, written anew after every result: report.json for programs, report.md for readers."""
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .notes import CHECKS


class Report:
    """Collects the notes of all stages, under the machine and the command they belong to."""

    def __init__(self, folder: Path, machine: Mapping[str, str], title: str = "The product on a GPU") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.machine, self.title = folder, dict(machine), title
        self.notes: list[dict[str, Any]] = []
        self.stages: dict[str, dict[str, Any]] = {}

    @property
    def path(self) -> Path:
        return self.folder / "report.md"

    def add(self, note: Mapping[str, Any]) -> None:
        self.notes.append(dict(note))
        self.write()

    def stage(self, name: str, **facts: object) -> None:
        """Add how a stage ended."""
        self.stages[name] = facts
        self.write()

    def failures(self) -> int:
        """Failed checks, and stages that did not end by themselves."""
        verdicts = [note["cells"].get("verdict") for note in self.rows(CHECKS)]
        broken = [facts for facts in self.stages.values() if facts["end"] != "done"]
        return sum(str(verdict).startswith("FAILED") for verdict in verdicts) + len(broken)

    def rows(self, table: str) -> list[dict[str, Any]]:
        return [note for note in self.notes if note["kind"] == "row" and note["table"] == table]

    def write(self) -> None:
        whole = {"machine": self.machine, "stages": self.stages, "notes": self.notes}
        for path, text in ((self.folder / "report.json", json.dumps(whole, indent=1)), (self.path, self.markdown())):
            beside = path.with_suffix(".part")
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)

    def markdown(self) -> str:
        parts = [f"# {self.title}", *(f"- {name}: {value}" for name, value in self.machine.items()), ""]
        aims = [note for note in self.notes if note["kind"] == "aim"]
        if aims:
            parts += ["## Aims", "", *table([aim_cells(note) for note in aims]), ""]
        for title in self.titles():
            cells = [note["cells"] for note in self.rows(title)]
            parts += [f"## {title}", "", *(verdicts(cells) if title == CHECKS else []), *table(cells), ""]
        for note in self.notes:
            if note["kind"] == "text":
                parts += [f"## {note['title']}", "", "```", note["body"].rstrip(), "```", ""]
        if self.stages:
            parts += ["## Stages", "", *table([{"stage": name, **facts} for name, facts in self.stages.items()]), ""]
        return "\n".join(parts)

    def summary(self) -> str:
        """Aims and failures alone, for a terminal."""
        aims = [" ".join(f"{value:<12}" for value in aim_cells(note).values())
                for note in self.notes if note["kind"] == "aim"]
        failed = [" ".join(filter(None, (f"[{note['stage']}]", *map(shown, note["cells"].values()))))
                  for note in self.rows(CHECKS) if str(note["cells"].get("verdict")).startswith("FAILED")]
        return "\n".join(["aims:", *aims, "failed:", *failed])

    def titles(self) -> list[str]:
        """Titles of all tables in the order of their first rows, the long one of the checks last."""
        found = dict.fromkeys(note["table"] for note in self.notes if note["kind"] == "row")
        return [*(title for title in found if title != CHECKS), *([CHECKS] if CHECKS in found else [])]


def aim_cells(note: Mapping[str, Any]) -> dict[str, Any]:
    sign = "<=" if note["at_most"] else ">="
    return {"aim": note["aim"], "wanted": f"{sign} {shown(note['limit'])} {note['unit']}".strip(),
            "measured": f"{shown(note['figure'])} {note['unit']}".strip(), "met": "yes" if note["met"] else "NO"}


def verdicts(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    words = [str(row.get("verdict")).split(":")[0] for row in cells]
    return [", ".join(f"{words.count(word)} {word}" for word in ("ok", "FAILED", "not run")), ""]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown lines; the columns are those of all rows, in the order in which they come up."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(shown(row.get(name)) for name in columns) + " |" for row in rows]


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("|", "/").replace("\n", " ")
