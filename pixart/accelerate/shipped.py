"""Schedules that come with the package, found by `python -m pixart ecad search`."""
from functools import cache
from pathlib import Path

from .ecad import read_ecad
from .schedule import BranchSchedule

SHIPPED_SCHEDULES = Path(__file__).parent / "schedules"


@cache
def shipped_schedules() -> tuple[BranchSchedule, ...]:
    """All of them."""
    return tuple(read_ecad(path).schedule for path in sorted(SHIPPED_SCHEDULES.glob("*.json")))
