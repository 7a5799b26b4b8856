"""Inner loop feedback: nothing changes where it must not, every block runs as often as it should, files are checked."""
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixart.checkpoint import CheckpointError
from pixart.checkpoint.feedback import load_feedback, save_feedback
from pixart.config import PixArtConfig
from pixart.model.feedback import Feedback, InnerLoop, PlacedInnerLoop, WithFeedback
from pixart.model.policy import Pass, Policy, Run, Step
from pixart.model.transformer import PixArtTransformer

CONFIG = PixArtConfig(depth=4, hidden=32, heads=4, caption_width=16, caption_tokens=8, base_size=4,
                      micro_conditioning=False)


def filled(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)
    return module.eval()


def model() -> PixArtTransformer:
    return filled(PixArtTransformer(CONFIG)).requires_grad_(False)


def feedback(scale: float = 0.3) -> Feedback:
    made = filled(Feedback(CONFIG, 1, 2), seed=7)
    made.scales.data.fill_(scale)
    return made.requires_grad_(False)


def given(rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(rows, 4, 8, 8, generator=generator), torch.full((rows,), 500.0),
            torch.randn(rows, 5, 16, generator=generator))


def step(index: int, rows: int = 2) -> Step:
    return Step(index, 10, 500.0, tuple(range(rows)), "run")


class Counted(Policy):
    """Asked last: which blocks ran, and with which control."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    def block(self, index: int, p: Pass, go: Run) -> Tensor:
        self.ran.append(index)
        return go(p)


def test_with_scales_of_zero_nothing_changes_to_the_bit():
    network = model()
    assert torch.equal(network(*given(), policies=[InnerLoop(feedback(0.0))]), network(*given()))


def test_feedback_in_no_step_is_plain_sampling_to_the_bit():
    network, policy = model(), InnerLoop(feedback(), 0.5, 0.5)
    for index in range(10):
        assert torch.equal(network(*given(), policies=[policy], step=step(index)), network(*given()))


def test_the_middle_blocks_run_twice():
    counted = Counted()
    model()(*given(), policies=[InnerLoop(feedback()), counted])
    assert counted.ran == [0, 1, 2, 1, 2, 3]


def test_what_is_computed_is_what_the_method_says():
    """Written out by hand, control included, which is added both times."""
    network, back = model(), feedback()
    latent, t, context = given()
    control = [None, *(0.1 * torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(i)) for i in range(3))]
    inputs = network.embed(latent, t, context, None, None)
    shared = (inputs.text, inputs.modulation, inputs.grid)
    x1 = network.blocks[0](inputs.tokens, *shared)
    middle = network.blocks[1](x1 + control[1], *shared)
    end = network.blocks[2](middle + control[2], *shared)
    sent = back.block(end, *shared)
    x = network.blocks[1](x1 + back.scales[0] * sent + control[1], *shared)
    x = network.blocks[2](x + back.scales[1] * sent + control[2], *shared)
    x = network.blocks[3](x + control[3], *shared)
    want = network.unpatchify(network.final_layer(x, inputs.time), inputs.grid)[:, :4]
    torch.testing.assert_close(network(latent, t, context, control=control, policies=[InnerLoop(back)]), want)


def test_only_chosen_steps_have_feedback():
    network, policy = model(), InnerLoop(feedback(), 0.2, 0.8, every=2)
    plain = network(*given())
    changed = [not torch.equal(network(*given(), policies=[policy], step=step(i)), plain) for i in range(10)]
    assert [i for i, each in enumerate(changed) if each] == [2, 4, 6]


def test_rows_do_not_see_each_other():
    network, policy = model(), InnerLoop(feedback())
    both = network(*given(), policies=[policy])
    alone = torch.cat([network(*(each[i:i + 1] for each in given()), policies=[policy]) for i in range(2)])
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-5)


def test_where_a_block_was_left_out_there_is_no_loop():
    class LeavesOut(Policy):
        def block(self, index: int, p: Pass, go: Run) -> Tensor:
            return p.controlled(index).x if index == 1 else go(p)
    network = model()
    want = network(*given(), policies=[LeavesOut()])
    assert torch.equal(network(*given(), policies=[LeavesOut(), InnerLoop(feedback())]), want)


def test_it_follows_the_model_to_another_type():
    network, policy = model(), PlacedInnerLoop(feedback())
    want = network(*given(), policies=[policy])
    half = network.bfloat16()
    latent, t, context = given()
    got = half(latent.bfloat16(), t, context, policies=[policy])
    assert got.dtype == torch.bfloat16 and (got.float() - want).norm() < 0.05 * want.norm()
    assert {made.block.scale_shift_table.weight.dtype for made in policy.placed.values()} == {torch.float32}


def test_gradients_reach_feedback_and_scales_alone():
    network = WithFeedback(model(), feedback().requires_grad_(True))
    network(*given()).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.feedback.parameters())
    assert all(p.grad is None for p in network.base.parameters())


def test_feedback_of_another_model_is_refused():
    with pytest.raises(ValueError, match="for 4 blocks of width 32, the model has 28 of 1152"):
        feedback().check(PixArtConfig())
    with pytest.raises(ValueError, match="for 4 blocks of width 32, the model has 4 of 32"):
        feedback().check(replace(CONFIG, heads=8))
    for first, last in ((2, 4), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"blocks {first} to {last} are to run twice; .* has blocks 0 to 3"):
            Feedback(CONFIG, first, last)


@pytest.mark.parametrize("start, end, every", [(0.6, 0.5, 1), (-0.1, 1, 1), (0, 1.1, 1), (0, 1, 0), (math.nan, 1, 1)])
def test_impossible_steps_are_refused(start, end, every):
    for policy in (InnerLoop, PlacedInnerLoop):
        with pytest.raises(ValueError, match=f"feedback from {start} to {end}, every {every} steps"):
            policy(feedback(), start, end, every)


# -- files -------------------------------------------------------------------------------------------------------------

def test_a_file_gives_back_what_was_saved(tmp_path):
    path = save_feedback(tmp_path / "ilf.safetensors", feedback())
    back = load_feedback(path)
    assert (back.first, back.last, back.steps, back.config) == (1, 2, 10, CONFIG)
    want = model()(*given(), policies=[InnerLoop(feedback())])
    assert torch.equal(model()(*given(), policies=[InnerLoop(back)]), want)


def test_in_8_bits_it_computes_in_bf16(tmp_path):
    path = save_feedback(tmp_path / "ilf.safetensors", feedback(), torch.float8_e4m3fn)
    back = load_feedback(path)
    assert back.scales.dtype == back.block.attn.qkv.weight.dtype == torch.bfloat16
    want = model()(*given(), policies=[InnerLoop(feedback())])
    got = model()(*given(), policies=[PlacedInnerLoop(back)])
    assert (got - want).abs().max() < 0.1 * want.abs().max()


def damaged(tmp_path: Path, change) -> Path:
    path = save_feedback(tmp_path / "ilf.safetensors", feedback())
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, tmp_path / "damaged.safetensors", metadata)
    return tmp_path / "damaged.safetensors"


def told(**changes: object):
    def change(tensors: dict, metadata: dict) -> None:
        metadata["pixart_feedback"] = json.dumps({**json.loads(metadata["pixart_feedback"]), **changes})
    return change


DAMAGES = {
    "newer version": (told(version=2), "version 2, newer than 1"),
    "blocks it cannot have": (told(last=9), "blocks 1 to 9 are to run twice"),
    "text for a number": (told(first="x"), "first is 'x'"),
    "another number of scales": (told(first=0), r"scales with \(2, 32\) instead of \(3, 32\)"),
    "no scales": (lambda t, m: t.pop("scales"), "1 tensors are missing, the first is scales"),
    "not finite": (lambda t, m: t["scales"].fill_(torch.nan), "not finite"),
    "no feedback": (lambda t, m: m.pop("pixart_feedback"), "a file without feedback in it"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage, tmp_path):
    change, message = DAMAGES[damage]
    with pytest.raises(CheckpointError, match=f"{message}.*damaged.safetensors"):
        load_feedback(damaged(tmp_path, change))


def test_depth_alone_makes_another_model():
    with pytest.raises(ValueError, match="the model has 5 of 32"):
        feedback().check(replace(CONFIG, depth=5))
