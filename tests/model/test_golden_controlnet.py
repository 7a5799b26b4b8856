"""The ControlNet reproduces the official one: residuals, every block after them, and the output."""
import golden_cases
import pytest
import torch
from model.test_golden_transformer import build, tile

from pixart.model.controlnet import Controlled, PixArtControlNet

CASES = golden_cases.names("04_*")


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_controlnet_equals_official(name):
    golden = golden_cases.load(name)
    base, tolerance = build(golden), golden.meta["tolerance"]
    control = PixArtControlNet(base.config, golden.meta["config"]["copy_blocks_num"]).eval()
    control.load_state_dict({k: v for k, v in golden.weights.items() if k.startswith("controlnet.")}, strict=True)
    for subcase, given in golden.inputs.items():
        if "x" not in given:
            continue
        batch = given["x"].shape[0]
        mask, size, aspect = (tile(given.get(key), batch) for key in ("mask", "img_hw", "aspect_ratio"))
        inputs = (given["x"], given["t"].float(), given["y"][:, 0], mask.bool(), size,
                  None if aspect is None else aspect[:, 0])
        hint = given.get("c")
        got = Controlled(base, control)(*inputs, hint=hint, learned_variance=True)
        golden_cases.assert_matches(got, golden.outputs[subcase]["output"], tolerance)
        if hint is None:
            continue
        residuals = control(base, hint, *inputs)
        assert residuals[0] is None
        for i, residual in enumerate(residuals[1:]):
            golden_cases.assert_matches(residual, golden.outputs[f"{subcase}.control{i}"]["residual"], tolerance)


def test_there_are_golden_cases():
    assert CASES
