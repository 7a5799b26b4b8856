"""Caches: policies that reuse work between steps, and the solver that sets them from a budget; loaded on first use."""
from typing import TYPE_CHECKING

from ..lazy import lazy_attribute
from .fora import every_n, fora  # at once: the name of its module would hide the function

if TYPE_CHECKING:
    from .branches import ReuseBranches as ReuseBranches
    from .budget import Solved as Solved
    from .budget import budget_of as budget_of
    from .budget import from_file as from_file
    from .budget import solve as solve
    from .choice import CacheChoice as CacheChoice
    from .choice import choice_of as choice_of
    from .cost import Costs as Costs
    from .delta_dit import DeltaCache as DeltaCache
    from .delta_dit import delta_spans as delta_spans
    from .ecad import read_ecad as read_ecad
    from .ecad import write_ecad as write_ecad
    from .first_block import FirstBlock as FirstBlock
    from .first_block import Limits as Limits
    from .methods import CACHE_METHODS as CACHE_METHODS
    from .middle import StepMask as StepMask
    from .plan import CachePlan as CachePlan
    from .plan import SamplingJob as SamplingJob
    from .schedule import BRANCHES as BRANCHES
    from .schedule import BranchSchedule as BranchSchedule
    from .t_gate import TGate as TGate
    from .t_gate import t_gate_schedule as t_gate_schedule
    from .tally import Tally as Tally
    from .tally import TallyBranches as TallyBranches

# Name -> module, as the imports above tell type checkers.
_LAZY = {
    "ReuseBranches": "branches", "Solved": "budget", "budget_of": "budget", "from_file": "budget", "solve": "budget",
    "CacheChoice": "choice", "choice_of": "choice", "Costs": "cost", "DeltaCache": "delta_dit",
    "delta_spans": "delta_dit", "read_ecad": "ecad", "write_ecad": "ecad", "FirstBlock": "first_block",
    "Limits": "first_block", "CACHE_METHODS": "methods", "StepMask": "middle",
    "CachePlan": "plan", "SamplingJob": "plan", "BRANCHES": "schedule", "BranchSchedule": "schedule",
    "TGate": "t_gate", "t_gate_schedule": "t_gate", "Tally": "tally", "TallyBranches": "tally",
}

__all__ = ["BRANCHES", "CACHE_METHODS", "BranchSchedule", "CacheChoice", "CachePlan", "Costs", "DeltaCache",
           "FirstBlock", "Limits", "ReuseBranches", "SamplingJob", "Solved", "StepMask", "TGate", "Tally",
           "TallyBranches", "budget_of", "choice_of",
           "delta_spans", "every_n", "fora", "from_file", "read_ecad", "solve", "t_gate_schedule", "write_ecad"]


def __getattr__(name: str) -> object:
    globals()[name] = value = lazy_attribute(__name__, _LAZY, name)
    return value
