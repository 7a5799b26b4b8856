"""ECAD's schedule files (arXiv 2506.15682, github.com/AniAggarwal/ecad): JSON, read from the user's disk, and written.

In them true means: compute this branch and keep its output.
"""
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.atomic import replacing
from ..model.policy import Policy
from ..weights import CheckpointError
from ..weights.settings import Check, checked_entries, line, optional, read_json, shown, table, text, whole
from .branches import ReuseBranches
from .schedule import BranchSchedule
from .t_gate import TGate

ECAD_BRANCHES = {"attn1": "attn", "attn2": "cross_attn", "ff": "mlp"}  # theirs to ours, in the order of BRANCHES
GATED = "compute_attn_tgate"
PIPELINES = ("tgate", "pixart_sigma", "pixart_alpha")
MOST_STEPS, LONGEST_NAME = 1000, 200      # steps or blocks; characters
ECAD_FIELDS: dict[str, Check] = {"config": optional(table), "metrics": optional(table)}
ECAD_SCHEDULE: dict[str, Check] = {"num_blocks": whole(1, MOST_STEPS), "num_inference_steps": whole(1, MOST_STEPS),
                                   "schedule": table}
ECAD_CALL: dict[str, Check] = {"name": text, "kwargs": optional(table)}


@dataclass(frozen=True)
class PublishedSchedule:
    """A file's schedule, with the T-GATE step and the counted work that some files state."""

    schedule: BranchSchedule
    gate: int | None = None             # first step without guidance
    macs: int | None = None             # of one image with guidance, attention products not counted

    def policy(self) -> Policy:
        """Guidance is dropped and cross-attention averaged where the file has a gate."""
        return ReuseBranches(self.schedule) if self.gate is None else TGate(self.schedule, self.gate,
                                                                            averaged=("cross_attn",))


class NotECAD(ValueError):
    """The file is no schedule for PixArt."""


def read_ecad(path: Path | str) -> PublishedSchedule:
    """Reads any shape of the published files: with or without `config` and `metrics`, with T-GATE's extras.

    FileNotFoundError where there is none; NotECAD, a ValueError, where it is no schedule for PixArt.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no schedule file at this place: {path}")
    try:
        return published(read_json(path), path)
    except NotECAD as error:
        raise NotECAD(f"{error}: {path}") from None
    except CheckpointError as error:
        raise NotECAD(f"not a schedule file of ECAD: {error}") from error


def published(content: Mapping[str, Any], path: Path) -> PublishedSchedule:
    """From the content of a file; path: for messages."""
    entries = (needed_entries(content, {"cache_schedule": table}, path, "the file")
               | checked_entries(content, ECAD_FIELDS, path, "the file"))
    part = needed_entries(entries["cache_schedule"], ECAD_SCHEDULE, path, "cache_schedule")
    steps = {number: numbered(blocks, f"step {number}") for number, blocks in
             numbered(part["schedule"], "the schedule").items()}
    first: Mapping[str, Any] = next(iter(steps.get(0, {}).values()), {})
    if any(name.startswith(("full_", "single_")) for name in first):
        raise NotECAD("this schedule is for FLUX, not for PixArt; use one from a folder with pixart in its name")
    if sorted(steps) != list(range(part["num_inference_steps"])):
        raise NotECAD(f"the schedule says {part['num_inference_steps']} steps and has {len(steps)}")
    bits = tuple(block_bits(steps[number], part["num_blocks"], number) for number in range(len(steps)))
    named = checked_entries(entries["cache_schedule"], {"name": optional(line(LONGEST_NAME))}, path,
                            "cache_schedule").get("name")
    schedule, metrics = BranchSchedule(named or "ECAD", bits), entries.get("metrics") or {}
    work = checked_entries(metrics, {"total_macs": optional(whole(0, 1 << 62))}, path, "metrics").get("total_macs")
    return PublishedSchedule(schedule, gate_of(steps, entries.get("config") or {}, path), work)


def needed_entries(entries: Mapping[str, Any], checks: Mapping[str, Check], path: Path, where: str) -> dict[str, Any]:
    """As `checked_entries`, for entries that must all be there."""
    known = checked_entries(entries, checks, path, where)
    lacking = [name for name in checks if name not in known]
    if lacking:
        raise CheckpointError(path, f"{where} lacks {lacking[0]}", "a JSON file with cache_schedule in it")
    return known


def numbered(entries: Mapping[str, Any], what: str) -> dict[int, Mapping[str, Any]]:
    """Tables by number, from tables by number as text such as "003"."""
    found: dict[int, Mapping[str, Any]] = {}
    for name, entry in entries.items():
        if not re.fullmatch(r"[0-9]{1,6}", name) or not isinstance(entry, Mapping):
            raise NotECAD(f"{what} has an entry {shown(name)} of {shown(entry)}; expected a number and a table")
        if int(name) in found:
            raise NotECAD(f"{what} has number {int(name)} twice")
        found[int(name)] = entry
    return found


def block_bits(blocks: Mapping[int, Mapping[str, Any]], depth: int, step: int) -> tuple[tuple[bool, ...], ...]:
    if sorted(blocks) != list(range(depth)):
        raise NotECAD(f"step {step} of the schedule has {len(blocks)} blocks, it says {depth}")
    rows: list[tuple[Any, ...]] = [tuple(blocks[number].get(name) for name in ECAD_BRANCHES)
                                   for number in range(depth)]
    if not all(isinstance(bit, bool) for row in rows for bit in row):
        raise NotECAD(f"step {step} of the schedule holds something else than true and false for "
                      f"{', '.join(ECAD_BRANCHES)}")
    return tuple(rows)


def gate_of(steps: Mapping[int, Mapping[int, Mapping[str, Any]]], config: Mapping[str, Any], path: Path) -> int | None:
    """T-GATE's step, from the pipeline and the extras of blocks; others, which change what is computed, are refused."""
    pipeline = checked_entries(config, {"pipeline": optional(table)}, path, "config").get("pipeline") or {}
    pipeline = checked_entries(pipeline, ECAD_CALL, path, "the pipeline")
    if pipeline.get("name", "tgate") not in PIPELINES:
        raise NotECAD(f"the schedule is for the pipeline {shown(pipeline['name'])}; known are {', '.join(PIPELINES)}")
    gates = {gate_in(pipeline, path, "the pipeline")}
    for blocks in steps.values():
        for branches in blocks.values():
            gates.update(gates_of(branches, path))
    named = sorted(gate for gate in gates if gate is not None)
    if len(named) > 1:
        raise NotECAD(f"the schedule names {len(named)} gates, {', '.join(map(str, named))}; it must be one")
    return named[0] if named else None


def gates_of(branches: Mapping[str, Any], path: Path) -> set[int | None]:
    """The gates in the `custom_compute_...` entries of a block."""
    found: set[int | None] = set()
    for name, custom in branches.items():
        if name.startswith("custom_compute") and custom:
            called = checked_entries({name: custom}, {name: table}, path, "a block")[name]
            if called.get("name") != GATED:
                raise NotECAD(f"the schedule computes with {shown(called.get('name'))}, which is unknown; known is "
                              f"{GATED}")
            found.add(gate_in(checked_entries(called, ECAD_CALL, path, name), path, name))
    return found


def gate_in(called: Mapping[str, Any], path: Path, where: str) -> int | None:
    """The gate, the first step that reuses, among the arguments of a call entry."""
    given = called.get("kwargs") or {}
    return checked_entries(given, {"gate_step": optional(whole(1, MOST_STEPS))}, path, where).get("gate_step")


def write_ecad(path: Path, schedule: BranchSchedule, gate: int | None = None, macs: int | None = None,
               **attributes: Any) -> Path:
    """In the form of the published files, which ECAD's own code reads; attributes: numbers and texts about it."""
    custom = {} if gate is None else {"custom_compute_attn": {"name": GATED, "kwargs": {"gate_step": gate}}}
    table = {f"{step:03}": {str(block): {**dict(zip(ECAD_BRANCHES, branches)), **custom}
                            for block, branches in enumerate(blocks)} for step, blocks in enumerate(schedule.bits)}
    content: dict[str, Any] = {"cache_schedule": {
        "num_blocks": schedule.depth, "num_inference_steps": schedule.steps, "name": schedule.name,
        "attributes": attributes, "schedule": table}}
    if gate is not None:
        content["config"] = {"pipeline": {"name": "tgate", "kwargs": {"gate_step": gate}}}
    if macs is not None:
        content["metrics"] = {"total_macs": macs, "total_macs_T": macs / 1e12}
    with replacing(path) as beside:
        beside.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return path
