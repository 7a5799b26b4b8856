"""Policies that reuse work from step to step, and the solver that sets them from a budget."""
from .branches import ReuseBranches
from .budget import Solved, budget_of, from_file, solve
from .choice import CacheChoice, choice_of
from .cost import Costs
from .delta_dit import DeltaCache, delta_spans
from .ecad import read_ecad, write_ecad
from .first_block import FirstBlock, Limits
from .fora import every_n, fora
from .methods import CACHE_METHODS
from .middle import StepMask
from .plan import CachePlan, SamplingJob
from .schedule import BRANCHES, BranchSchedule
from .t_gate import TGate, t_gate_schedule
from .tally import Tally, TallyBranches

__all__ = ["BRANCHES", "CACHE_METHODS", "BranchSchedule", "CacheChoice", "CachePlan", "Costs", "DeltaCache",
           "FirstBlock", "Limits", "ReuseBranches", "SamplingJob", "Solved", "StepMask", "TGate", "Tally",
           "TallyBranches", "budget_of", "choice_of",
           "delta_spans", "every_n", "fora", "from_file", "read_ecad", "solve", "t_gate_schedule", "write_ecad"]
