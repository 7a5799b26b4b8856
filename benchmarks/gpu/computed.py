"""Stage: the expected peak memory of the trainings of the stage `memory`, computed without any allocation."""
from dataclasses import replace
from functools import partial

from ..instruments.cases import Case
from ..instruments.held import GIB
from ..instruments.notes import Notes
from ..instruments.setting import Setting
from ..training_memory import computed
from .memory import RECIPES

TABLE = "Memory of trainings, computed (benchmarks/training_memory.py)"


def cases(setting: Setting) -> dict[str, Case]:
    known = ("lcm",) if setting.tiny else ("lcm", "controlnet")
    return {title: partial(compute, title) for title, case in RECIPES.items() if case.method in known}


def compute(title: str, setting: Setting, notes: Notes) -> None:
    case = RECIPES[title]
    found = computed(replace(case, depth=2, side=128, batch=2) if setting.tiny else case)
    notes.row(TABLE, training=title, **{"peak GiB": found.peak / GIB, "weights GiB": found.weights / GIB,
                                        "moments GiB": found.moments / GIB, "activations GiB": found.activations / GIB})
