"""Names of the methods and what they do, for menus that must not load them."""

CACHE_TITLES = {
    "fora": "FORA: computes all branches in every n-th step, and in the last",
    "every-n": "the same, counted from the first step",
    "delta-dit": "Delta-DiT: reuses rear blocks in early steps, front blocks in late ones",
    "t-gate": "T-GATE: stops cross-attention and guidance at a given step",
    "first-block": "recomputes a step if the first block has changed enough, else extrapolates",
    "steps": "skips whole steps, evenly spread",
    "ecad": "a schedule found by search, if one is included for this depth and step count",
}
