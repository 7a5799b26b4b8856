"""Access to the golden tensors: outputs of the official implementation on random weights.

The cases committed under tests/golden always run. The complete set, where it lies beside the checkout or at
$PIXART_GOLDEN, adds the rest.
"""
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

COMMITTED = Path(__file__).resolve().parent / "golden"
COMPLETE = Path(os.environ.get("PIXART_GOLDEN", COMMITTED.parents[2] / "shared" / "golden"))


class Golden(NamedTuple):
    meta: dict                       # the header: config, tolerance, ... decoded from JSON
    weights: dict[str, torch.Tensor]
    inputs: dict[str, dict[str, torch.Tensor]]       # subcase -> name -> tensor
    outputs: dict[str, dict[str, torch.Tensor]]


def names(pattern: str) -> list[str]:
    """Names of all cases at hand that match a glob pattern, without the suffix."""
    return sorted({path.stem for folder in (COMMITTED, COMPLETE) for path in folder.glob(pattern + ".safetensors")})


def load(name: str) -> Golden:
    path = COMPLETE / f"{name}.safetensors"
    if not path.exists():
        path = COMMITTED / f"{name}.safetensors"
    golden = Golden({}, {}, {}, {})
    with safe_open(path, "pt") as file:
        for key, text in file.metadata().items():
            golden.meta[key] = json.loads(text) if text[:1] in "{[" else text
        for key in file.keys():      # noqa: SIM118 - a safetensors file is no dictionary
            kind, _, rest = key.partition(".")
            if kind == "weights":
                golden.weights[rest] = file.get_tensor(key)
            else:
                subcase, _, leaf = rest.rpartition(".")
                side = golden.inputs if kind == "in" else golden.outputs
                side.setdefault(subcase, {})[leaf] = file.get_tensor(key)
    return golden


def assert_matches(got: torch.Tensor, want: torch.Tensor, tolerance: dict) -> None:
    """The rule of the golden set: max|got - want| <= atol + rtol * max|want|."""
    worst = (got.double() - want.double()).abs().max().item()
    bound = tolerance["atol"] + tolerance["rtol"] * want.double().abs().max().item()
    assert worst <= bound, f"off by {worst:.3g}, allowed {bound:.3g}"
