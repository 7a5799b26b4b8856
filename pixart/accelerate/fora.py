"""FORA: every branch of every block is computed in every n-th step and reused in between (arXiv 2407.01425)."""
from .schedule import BranchSchedule, whole_steps


def fora(steps: int, depth: int, every: int) -> BranchSchedule:
    """As published: the authors' sampler counts steps downwards, so the last step is always computed, and the first.

    20 steps, every third: 0, 1, 4, 7, 10, 13, 16, 19. (Published for DiT, which has no cross-attention; here it is
    treated like the others.)
    """
    check_interval(every)
    chosen = [step for step in range(steps) if step == 0 or (steps - 1 - step) % every == 0]
    return whole_steps(f"FORA, every {every}", steps, depth, chosen)


def every_n(steps: int, depth: int, every: int) -> BranchSchedule:
    """Counted from the first step, as ECAD compares with: 20 steps, every third: 0, 3, ..., 18."""
    check_interval(every)
    return whole_steps(f"every {every} from the first", steps, depth, range(0, steps, every))


def check_interval(every: int) -> None:
    if every < 1:
        raise ValueError(f"every {every} steps asked for; at least 1 is possible, which computes all")
