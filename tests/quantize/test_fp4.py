"""FP4: its grids number by number, learned rounding, branches of low rank, rounded activations, bad files."""
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixart.__main__ import parser, run_of
from pixart.checkpoint import CheckpointError, load, open_checkpoint, save_checkpoint
from pixart.config import PixArtConfig
from pixart.generation.request import Request
from pixart.model.attention import sdpa
from pixart.model.transformer import PixArtTransformer
from pixart.quantize import TARGETS, calibrate
from pixart.quantize.activations import INPUTS, round_inputs, rounded
from pixart.quantize.adapted import convert_adapted, open_parts, parts_folder, weights_digest
from pixart.quantize.adaptive import Adaptation, SoftWeight, adapt_block
from pixart.quantize.calibrate import Inputs, record
from pixart.quantize.convert import convert, open_plain
from pixart.quantize.fp4 import FP4, MINI_FLOATS, grouped
from pixart.quantize.low_rank import factors, low_rank_branch
from pixart.quantize.nibbles import split_nibbles
from pixart.text.encoded import Encoded

CONFIG = PixArtConfig(depth=2, hidden=64, heads=4, caption_width=16, caption_tokens=8, base_size=4,
                      micro_conditioning=False)
FP4_TARGET = TARGETS["fp4"]
GRIDS = {"e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6], "e1m2": [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75],
         "e3m0": [0, 2 ** -6, 2 ** -5, 2 ** -4, 2 ** -3, 2 ** -2, 2 ** -1, 1]}
QUICK = Adaptation(iterations=200, learning_rate=1e-2, batch=8, regulariser=2e-5)


def random_model(config: PixArtConfig = CONFIG, seed: int = 0) -> PixArtTransformer:
    torch.manual_seed(seed)
    model = PixArtTransformer(config).eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        fan_in = tensor[0].numel() if tensor.ndim > 1 and "table" not in name else 12
        tensor.copy_(torch.randn_like(tensor) / fan_in ** 0.5)
    return model


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texts(count: int, tokens: int = 5) -> Encoded:
    return Encoded(noise(count, tokens, 16, seed=3), torch.ones(count, tokens, dtype=torch.bool), [None] * count)


def drawing(count: int = 3, passes: int = 12):
    """What `convert_adapted` is given to record with."""
    request = Request(("a",) * count, height=32, width=48, sampler="dpm", steps=4, seed=5)
    return lambda model: record(model, request, texts(count), texts(1, 2), passes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("plain") / "plain.safetensors", random_model())


# -- the types ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", GRIDS)
def test_the_levels_are_those_of_the_paper(name):
    kind, grid = MINI_FLOATS[name], torch.tensor(GRIDS[name])
    levels = kind.value(torch.arange(8))
    torch.testing.assert_close(levels / kind.largest, grid / grid[-1], rtol=0, atol=0)
    assert torch.equal(kind.nearest(levels), torch.arange(8))


@pytest.mark.parametrize("name", GRIDS)
def test_rounding_goes_to_the_nearest_level(name):
    kind = MINI_FLOATS[name]
    levels, values = kind.value(torch.arange(8)), torch.linspace(0, kind.largest, 1001)
    least = (values[:, None] - levels).abs().amin(1)
    assert torch.equal((kind.value(kind.nearest(values)) - values).abs(), least)
    assert torch.equal(kind.rounded(values), kind.value(kind.nearest(values)))


def test_a_tie_goes_to_the_even_multiple_of_the_step():
    e2m1, e3m0 = MINI_FLOATS["e2m1"], MINI_FLOATS["e3m0"]
    assert e2m1.nearest(torch.tensor([0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0])).tolist() == [0, 2, 2, 4, 4, 6, 6]
    assert e3m0.nearest(torch.tensor([1.0, 3.0, 6.0])).tolist() == [0, 2, 3]       # middles, not geometric ones


def test_e1m2_is_seven_even_steps_on_each_side():
    weight = noise(8, 128)
    step = weight.abs().amax(1, keepdim=True).half().float() / 7
    want = (weight / step).clamp(-7, 7).round() * step
    torch.testing.assert_close(FP4_TARGET.quantize(weight, {"float": "e1m2"}).dequantized(), want)


@pytest.mark.parametrize("name", GRIDS)
def test_every_code_survives_quantising(name):
    kind = MINI_FLOATS[name]
    levels = kind.value(torch.arange(8)) / kind.largest
    weight = torch.cat([levels, -levels]).repeat(4, 2)
    quantized = FP4_TARGET.quantize(weight, {"float": name})
    assert torch.equal(quantized.dequantized(), weight)
    assert set(split_nibbles(quantized.tensors["weight"])[0].tolist()) >= set(range(16)) - {8}


def test_each_group_of_columns_has_its_own_scale():
    weight = noise(2, 256)
    weight[:, 128:] *= 1000
    first = FP4_TARGET.quantize(weight).dequantized()[:, :128]
    assert torch.equal(first, FP4_TARGET.quantize(weight[:, :128]).dequantized())


def test_a_layer_takes_the_type_of_its_place():
    sigma = PixArtConfig(latent_space="sdxl")
    chosen = [FP4_TARGET.settings(layer, config)["float"] for config in (CONFIG, sigma)
              for layer in ("blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.0.attn.qkv")]
    assert chosen == ["e3m0", "e2m1", "e2m1", "e3m0", "e1m2", "e1m2"]


def test_a_branch_of_low_rank_lessens_the_error_and_is_the_same_each_time():
    weight = noise(64, 128) + 3 * noise(64, 2, seed=1) @ noise(2, 128, seed=2)
    quantized, again, alone = (FP4_TARGET.quantize(weight, {"rank": rank} if rank else {}) for rank in (4, 4, 0))
    assert (quantized.dequantized() - weight).norm() < 0.6 * (alone.dequantized() - weight).norm()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in quantized.tensors.items())


def test_of_the_rounds_of_a_branch_the_best_is_kept():
    weight, seen = noise(16, 16), []

    def rounded(rest: Tensor) -> Tensor:
        seen.append(rest)
        return rest + len(seen)             # worse each time
    found = low_rank_branch(weight, 2, rounded)
    assert len(seen) == 4 and all(torch.equal(ours, first) for ours, first in zip(found, factors(weight, 2)))


# -- learned rounding --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", GRIDS)
def test_soft_weights_start_as_the_weights(name):
    weight = noise(16, 128)
    options = FP4_TARGET.options((16, 128), {"float": name})
    kept = weight.unflatten(1, (-1, 128)).abs() <= grouped(weight, options).scale.float()[..., None]
    kept = kept.flatten(1)
    torch.testing.assert_close(SoftWeight(weight, options)()[kept], weight[kept], rtol=1e-5, atol=1e-6)


def test_a_group_of_zeros_is_learned_as_zeros():
    soft = SoftWeight(torch.zeros(2, 128), FP4_TARGET.options((2, 128)))
    assert soft.variable.isfinite().all() and soft().abs().max() < 1e-9 and not soft.hard().dequantized().any()


def test_a_weight_that_learns_nothing_is_rounded_to_the_nearest():
    weight = noise(16, 128)
    options = FP4_TARGET.options((16, 128))
    codes = SoftWeight(weight, options).hard().tensors["weight"]
    assert torch.equal(codes, FP4_TARGET.quantize(weight).tensors["weight"])


@pytest.mark.parametrize("name", GRIDS)
def test_no_weight_is_learned_beyond_the_largest_of_its_group(name):
    """A code above the last would be the sign."""
    weight = noise(16, 128)
    options = FP4_TARGET.options((16, 128), {"float": name})
    soft, largest = SoftWeight(weight, options), grouped(weight, options).scale.float()
    soft.variable.data.fill_(1e3)               # all go up
    for made in (soft().detach(), soft.hard().dequantized()):
        assert (made.abs() <= largest).all() and torch.equal(made.signbit(), weight.signbit())


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"batch": 0}, {"learning_rate": 0.0},
                                   {"learning_rate": float("nan")}])
def test_an_adaptation_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="all three must be above 0"):
        Adaptation(**wrong)


def test_a_loss_that_is_not_finite_is_an_error():
    block, given = random_model().blocks[0], inputs(2)
    options = {"mlp.fc1": FP4_TARGET.options((256, 64))}
    with pytest.raises(FloatingPointError, match="use a smaller learning rate"):
        adapt_block(block, options, given, torch.full_like(given.tokens, torch.inf), Adaptation(iterations=1, batch=2))


def inputs(rows: int = 24) -> Inputs:
    return Inputs(noise(rows, 6, 64), noise(rows, 5, 64, seed=1), torch.ones(rows, 5, dtype=torch.bool),
                  0.1 * noise(rows, 6, 64, seed=2), (2, 3))


def test_learned_rounding_is_nearer_to_the_block_than_the_nearest_levels():
    block, given = random_model().blocks[0], inputs()
    want = given.through(block)
    layers = [name for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)]
    options = {name: FP4_TARGET.options(tuple(block.get_submodule(name).weight.shape)) for name in layers}
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    learned = adapt_block(block, options, given, want, QUICK)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())

    def off(quantized) -> float:
        for name in layers:
            block.get_submodule(name).weight.copy_(quantized(name))
        return float((given.through(block) - want).norm())
    nearest = off(lambda name: FP4_TARGET.quantize(before[f"{name}.weight"], options[name]).dequantized())
    assert off(lambda name: learned[name].dequantized()) < 0.8 * nearest
    for name in layers:         # and every weight went to one of its two neighbours
        soft = SoftWeight(before[f"{name}.weight"], options[name])
        up = split_nibbles(learned[name].tensors["weight"]).long() % 8 - soft.codes.flatten(1)
        assert set(up.unique().tolist()) <= {0, 1}


def test_the_regulariser_starts_late_and_its_power_falls():
    adaptation = Adaptation(iterations=100)
    assert adaptation.power(19) == 0 and adaptation.power(20) == 20
    assert adaptation.power(60) == 11 and 2 < adaptation.power(99) < 2.3


def test_recorded_rows_are_what_the_first_block_reads_while_sampling():
    model, request = random_model(), Request(("a", "b"), height=32, width=32, sampler="dpm", steps=3, seed=5)
    seen = []
    hook = model.blocks[0].register_forward_pre_hook(lambda block, given: seen.append(given))
    found = record(model, request, texts(2), texts(1, 2), 12)       # every row there is
    hook.remove()
    assert found.mask.sum(1).tolist().count(2) == 6        # the negative prompt, padded to 5 tokens
    assert len(found) == 12 and found.grid == (2, 2) and not found.tokens.is_inference()
    torch.testing.assert_close(found.tokens, torch.cat([given[0] for given in seen]))
    torch.testing.assert_close(found.modulation, torch.cat([given[2] for given in seen]))
    with pytest.raises(ValueError, match="13 passes asked for.*give 12"):
        record(model, request, texts(2), texts(1, 2), 13)


def test_what_is_recorded_does_not_depend_on_how_many_images_are_sampled_together(monkeypatch):
    request, found = Request(("a",) * 3, height=32, width=32, sampler="dpm", steps=2, seed=5), []
    for at_once in (16, 2):
        monkeypatch.setattr(calibrate, "AT_ONCE", at_once)
        rows = record(random_model(), request, texts(3), texts(1, 2), 7)
        found.append(rows.rows(rows.tokens.flatten(1).sum(1).argsort()))
    assert len(found[0]) == len(found[1]) == 7
    for name in ("tokens", "text", "mask", "modulation"):
        torch.testing.assert_close(getattr(found[0], name), getattr(found[1], name), rtol=1e-4, atol=1e-4)


def test_parts_of_another_run_and_other_files_are_not_gone_on_with(plain, tmp_path):
    open_parts(tmp_path / "run.parts", {"seed": 1})
    open_parts(tmp_path / "run.parts", {"seed": 1})
    with pytest.raises(ValueError, match="other settings.*run.parts"):
        open_parts(tmp_path / "run.parts", {"seed": 2})
    (tmp_path / "photos.parts").mkdir()
    (tmp_path / "photos.parts" / "cat.png").touch()
    with pytest.raises(ValueError, match="holds something else.*photos.parts"):
        open_parts(tmp_path / "photos.parts", {"seed": 1})
    other = save_checkpoint(tmp_path / "plain.safetensors", random_model(seed=1))
    assert weights_digest(open_plain(plain, "auto")) == weights_digest(open_plain(plain, "auto"))
    assert weights_digest(open_plain(plain, "auto")) != weights_digest(open_plain(other, "auto"))


def test_a_stopped_run_goes_on_and_ends_as_an_uninterrupted_one(plain, tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    convert_adapted(open_plain(plain, "auto"), whole, drawing(), {}, QUICK)

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("block 2"):
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        convert_adapted(open_plain(plain, "auto"), parts, drawing(), {}, QUICK, told=stop)
    assert not parts.exists() and (parts_folder(parts) / "block-000.safetensors").exists()
    with pytest.raises(ValueError, match="a run with other settings was stopped here"):
        convert_adapted(open_plain(plain, "auto"), parts, drawing(), {}, Adaptation(iterations=2))

    def refuse(model: PixArtTransformer) -> Inputs:
        raise AssertionError("calibration data were there already")
    convert_adapted(open_plain(plain, "auto"), parts, refuse, {}, QUICK)
    resumed, uninterrupted = load_file(parts), load_file(whole)
    assert resumed.keys() == uninterrupted.keys() and not parts_folder(parts).exists()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in uninterrupted.items())
    assert open_checkpoint(whole).quantized_as == ("pixart_fp4",)


def test_the_next_block_learns_from_what_the_rounded_ones_give(plain, tmp_path, monkeypatch):
    import pixart.quantize.adapted as adapted
    given = []

    def watch(block, options, inputs, target, *rest):
        given.append((inputs.tokens, target))
        return adapt_block(block, options, inputs, target, *rest)
    monkeypatch.setattr(adapted, "adapt_block", watch)
    convert_adapted(open_plain(plain, "auto"), tmp_path / "out.safetensors", drawing(), {}, QUICK)
    (first, exact), (second, _) = given
    rounded_model, model = load(tmp_path / "out.safetensors", dtype=torch.float32), load(plain)
    recorded = drawing()(model)
    torch.testing.assert_close(first, recorded.tokens)
    torch.testing.assert_close(exact, recorded.through(model.blocks[0]))
    rounded_off = (second - exact).norm()
    assert rounded_off > 1e-3 * exact.norm()
    # The file keeps biases in 16 bits, hence not to the bit.
    assert (second - recorded.through(rounded_model.blocks[0])).norm() < 0.02 * rounded_off


# -- activations -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bits", INPUTS)
def test_a_token_is_rounded_by_itself(bits):
    x, order = noise(2, 7, 32), torch.randperm(7)
    once = rounded(x, INPUTS[bits])
    assert torch.equal(rounded(once, INPUTS[bits]), once)
    assert torch.equal(rounded(x[:, order], INPUTS[bits]), once[:, order])
    x[:, 3] *= 1e4
    others = [i for i in range(7) if i != 3]
    assert torch.equal(rounded(x, INPUTS[bits])[:, others], once[:, others])
    assert 0 < (once - x)[:, others].norm() / once.norm() < 2 ** -INPUTS[bits].fraction
    assert torch.equal(rounded(torch.zeros(1, 2, 32), INPUTS[bits]), torch.zeros(1, 2, 32))


def test_attention_reads_each_head_rounded_by_itself():
    """What was rounded already stays as it is, and nothing else does."""
    seen = []

    def attend(q, k, v, heads, mask, options):
        seen.extend(t.unflatten(-1, (heads, -1)) for t in (q, k, v))
        return sdpa(q, k, v, heads, mask, options)
    model = PixArtTransformer(CONFIG, attend=attend).eval().requires_grad_(False)
    model.load_state_dict(random_model().state_dict())
    model.blocks[0].attn.qkv.weight[:16] *= 1000            # queries of the first head
    round_inputs(model, 6)(noise(1, 4, 8, 8), torch.tensor([500.0]), noise(1, 5, 16))
    assert len(seen) == 2 * 2 * 3                           # queries, keys, values; of both attentions; in two blocks
    for given in seen:
        torch.testing.assert_close(rounded(given, INPUTS[6]), given, rtol=1e-6, atol=0)
        assert given[..., 1, :].unique().numel() > 8        # beside large numbers of another head


def test_rounded_inputs_change_the_model_a_little_and_8_bits_less_than_6():
    given = (noise(1, 4, 8, 8), torch.tensor([500.0]), noise(1, 5, 16))
    want = random_model()(*given)
    off = {bits: float((round_inputs(random_model(), bits)(*given) - want).norm() / want.norm()) for bits in INPUTS}
    assert 0 < off[8] < 0.7 * off[6] < 0.1
    with pytest.raises(ValueError, match="6 or 8 bits, not 4"):
        round_inputs(random_model(), 4)


# -- files and the command ---------------------------------------------------------------------------------------------

def test_the_command_quantises_mixed_types_with_a_branch(plain, tmp_path):
    out = tmp_path / "out.safetensors"
    words = ["quantize", str(plain), "--to", "fp4", "--out", str(out), "--floats", "e2m1,e1m2", "--rank", "2"]
    run_of("quantize")(parser("quantize").parse_args(words))
    quantized = open_checkpoint(out).quantized()
    assert quantized["blocks.1.mlp.fc1"].options["float"] == "e2m1"
    assert quantized["blocks.1.mlp.fc2"].options["float"] == "e1m2"
    assert quantized["blocks.0.attn.qkv"].tensors["low_rank_up"].shape == (192, 2)
    given = (noise(1, 4, 8, 8), torch.tensor([500.0]), noise(1, 5, 16))
    off = (load(out, dtype=torch.float32)(*given) - load(plain)(*given)).norm() / load(plain)(*given).norm()
    assert 0 < off < 0.3


@pytest.mark.parametrize("words, message", [
    (["--to", "nvfp4", "--rank", "4"], "--rank has no effect with --to nvfp4"),
    (["--to", "fp4", "--passes", "4"], "--passes has no effect without --prompts"),
    (["--to", "fp4", "--weights-only"], "dequantises it as it loads"),
    (["--to", "fp4", "--floats", "e2m1"], "not two of e3m0, e2m1, e1m2"),
    (["--to", "fp4", "--rank", "65"], "rank is 65, not a number of 1 to 64"),
    (["--to", "fp4", "--prompts", "none.txt"], "no text file with prompts"),
    (["--to", "fp4", "--prompts", "PROMPTS"], "need a T5 encoder")])
def test_options_that_cannot_be_meant_are_refused(words, message, plain, tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n")
    words = [str(tmp_path / "prompts.txt") if word == "PROMPTS" else word for word in words]
    args = parser("quantize").parse_args(["quantize", str(plain), "--out", str(tmp_path / "x.safetensors"), *words])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_of("quantize")(args)
    assert not (tmp_path / "x.safetensors").exists() and not (tmp_path / "x.parts").exists()


def marked(told: dict):
    def change(tensors: dict) -> None:
        tensors["blocks.0.attn.qkv.comfy_quant"] = torch.frombuffer(bytearray(json.dumps(told).encode()),
                                                                    dtype=torch.uint8)
    return change


RIGHT = {"format": "pixart_fp4", "version": 1, "float": "e2m1", "group_size": 64}
DAMAGES = {
    "newer version": (marked({**RIGHT, "version": 2}), "version is 2 and this program reads 1"),
    "unknown type": (marked({**RIGHT, "float": "e4m3"}), "float is e4m3"),
    "wrong group": (marked({**RIGHT, "group_size": 48}), "group_size is 48"),
    "rank without a branch": (marked({**RIGHT, "rank": 2}), "low_rank_up is missing"),
    "damaged group": (lambda t: t["blocks.0.attn.qkv.weight_scale"][5].fill_(torch.nan), "not finite"),
    "lost groups": (lambda t: t.update({"blocks.0.attn.qkv.weight_scale": torch.ones(7, 1).half()}), r"shape \(7, 1\)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_layer_and_file(damage, plain, tmp_path):
    change, message = DAMAGES[damage]
    convert(plain, "fp4", tmp_path / "whole.safetensors")
    with safe_open(tmp_path / "whole.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "whole.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "damaged.safetensors", metadata)
    with pytest.raises(CheckpointError, match=f"{message}.*damaged.safetensors"):
        load(tmp_path / "damaged.safetensors")


def test_a_file_of_another_model_is_refused(plain, tmp_path):
    convert(plain, "fp4", tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match=r"depth is 2 by its weights, but 28 by the given configuration"):
        load(tmp_path / "out.safetensors", variant=PixArtConfig())


def test_no_host_is_asked_to_run_it(plain, tmp_path):
    convert(plain, "fp4", tmp_path / "out.safetensors")
    assert not open_checkpoint(tmp_path / "out.safetensors").runs_in_host
    assert open_checkpoint(plain).runs_in_host and isinstance(FP4_TARGET.format, FP4)
