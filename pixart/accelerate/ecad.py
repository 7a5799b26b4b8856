"""ECAD's schedule files (arXiv 2506.15682, github.com/AniAggarwal/ecad): JSON, read from the user's disk, and written.

In them true means: compute this branch and keep what it says.
"""
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..atomic import replacing
from ..model.policy import Policy
from .branches import ReuseBranches
from .schedule import BranchSchedule
from .t_gate import TGate

ECAD_BRANCHES = {"attn1": "attn", "attn2": "cross_attn", "ff": "mlp"}  # theirs to ours, in the order of BRANCHES
GATED = "compute_attn_tgate"
PIPELINES = ("tgate", "pixart_sigma", "pixart_alpha")


@dataclass(frozen=True)
class PublishedSchedule:
    """A file's schedule, the T-GATE step that some have, the pixels it was measured at, and its counted work."""

    schedule: BranchSchedule
    gate: int | None = None             # first step without guidance
    macs: int | None = None             # of one picture with guidance, attention products not counted

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
        content = json.loads(path.read_text(encoding="utf-8"))
        return published(content)
    except NotECAD as error:
        raise NotECAD(f"{error}: {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotECAD(f"not a schedule file of ECAD ({type(error).__name__}: {error}); give a JSON file with "
                      f"cache_schedule in it: {path}") from error


def published(content: Mapping[str, Any]) -> PublishedSchedule:
    """From the content of a file."""
    part, config, metrics = content["cache_schedule"], content.get("config") or {}, content.get("metrics") or {}
    steps = {int(number): blocks for number, blocks in part["schedule"].items()}
    depth = int(part["num_blocks"])
    first: Mapping[str, Any] = next(iter(steps.get(0, {}).values()), {})
    if any(name.startswith(("full_", "single_")) for name in first):
        raise NotECAD("this schedule is for FLUX, not for PixArt; use one from a folder with pixart in its name")
    if sorted(steps) != list(range(int(part["num_inference_steps"]))):
        raise NotECAD(f"the schedule says {part['num_inference_steps']} steps and has {len(steps)}")
    bits = tuple(block_bits(steps[number], depth, number) for number in range(len(steps)))
    schedule = BranchSchedule(str(part.get("name", "ECAD")), bits)
    return PublishedSchedule(schedule, gate_of(steps, config), metrics.get("total_macs"))


def block_bits(blocks: Mapping[str, Mapping[str, Any]], depth: int, step: int) -> tuple[tuple[bool, ...], ...]:
    by_number = {int(number): branches for number, branches in blocks.items()}
    if sorted(by_number) != list(range(depth)):
        raise NotECAD(f"step {step} of the schedule has {len(by_number)} blocks, it says {depth}")
    rows = [tuple(by_number[number][name] for name in ECAD_BRANCHES) for number in range(depth)]
    if not all(isinstance(bit, bool) for row in rows for bit in row):
        raise NotECAD(f"step {step} of the schedule holds something else than true and false")
    return tuple(rows)


def gate_of(steps: Mapping[int, Mapping[str, Mapping[str, Any]]], config: Mapping[str, Any]) -> int | None:
    """T-GATE's step, from the pipeline and the extras of blocks; other extras change what is computed: refused."""
    pipeline = config.get("pipeline") or {}
    if pipeline.get("name", "tgate") not in PIPELINES:
        raise NotECAD(f"the schedule is for the pipeline {pipeline['name']!r}; known are {', '.join(PIPELINES)}")
    gates = {(pipeline.get("kwargs") or {}).get("gate_step")}
    for blocks in steps.values():
        for branches in blocks.values():
            gates.update(gates_of(branches))
    named = sorted(int(gate) for gate in gates if gate is not None)
    if len(named) > 1:
        raise NotECAD(f"the schedule names {len(named)} gates, {', '.join(map(str, named))}; it must be one")
    return named[0] if named else None


def gates_of(branches: Mapping[str, Any]) -> set[int | None]:
    """What `custom_compute_...` of a block says."""
    found: set[int | None] = set()
    for name, custom in branches.items():
        if name.startswith("custom_compute") and custom:
            if custom.get("name") != GATED:
                raise NotECAD(f"the schedule computes with {custom.get('name')!r}, which is unknown; known is {GATED}")
            found.add((custom.get("kwargs") or {}).get("gate_step"))
    return found


def write_ecad(path: Path, schedule: BranchSchedule, gate: int | None = None, macs: int | None = None,
               **attributes: Any) -> Path:
    """In the shape of the published files, which ECAD's own code reads; attributes: numbers and texts about it."""
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
