"""Names of the methods and what they do, for menus that must not load them."""

CACHE_TITLES = {
    "fora": "FORA: all branches in every n-th step, the last one included",
    "every-n": "the same, counted from the first step",
    "delta-dit": "Delta-DiT: rear blocks reused early, front blocks late",
    "t-gate": "T-GATE: cross-attention and guidance end at a gate",
    "first-block": "recomputed once the first block has changed enough, else carried on",
    "steps": "whole steps left out, spread evenly",
    "ecad": "a schedule found by search, where one is shipped for this depth and step count",
}
