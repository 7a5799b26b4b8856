"""Quantised formats against their definitions, computed number by number, and against the library of the host."""
import itertools

import pytest
import torch
from torch import Tensor

from pixart.quantize import FORMATS, TARGETS, rotation
from pixart.quantize.asym_w4a8 import AsymW4A8
from pixart.quantize.mxfp8 import MXFP8
from pixart.quantize.nibbles import join_nibbles, split_nibbles
from pixart.quantize.nvfp4 import NVFP4, from_codes, to_codes
from pixart.quantize.rotation import _hadamard, rotate
from pixart.quantize.tiles import from_tiles, tiled_shape, to_tiles

# Largest relative error (root mean square) on normal numbers, from the width of a step: 2^-4 / sqrt(3) of a value for
# three bits of fraction, and so on; the formats of 4 bits as measured, rounded up.
LIMITS = {"float8_e4m3fn": 0.04, "float8_e5m2": 0.075, "int8_tensorwise": 0.01, "int8_convrot": 0.01, "mxfp8": 0.04,
          "nvfp4": 0.11, "convrot_w4a4": 0.15, "asym_w4a8_int8": 0.08, "fp4": 0.13}


def weight(rows: int = 160, columns: int = 192, seed: int = 0) -> Tensor:
    """Normal numbers, with a row and a column of larger ones."""
    made = 0.05 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    made[3] *= 4
    return made


@pytest.mark.parametrize("target", TARGETS)
def test_dequantising_gives_the_weight_up_to_rounding(target):
    original = weight()
    quantized = TARGETS[target].quantize(original)
    assert quantized.shape == original.shape
    back = quantized.dequantized()
    assert back.dtype == torch.float32
    assert 0 < (back - original).norm() / original.norm() < LIMITS[target]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_quantised_is_what_files_must_hold(target):
    quantized = TARGETS[target].quantize(weight())
    assert quantized.format.problem(quantized.tensors, quantized.options) == ""
    assert quantized.format is FORMATS[quantized.format.name] or target == "int8_convrot"


@pytest.mark.parametrize("target", TARGETS)
def test_zeros_stay_zeros(target):
    assert TARGETS[target].quantize(torch.zeros(32, 64)).dequantized().abs().max() < 1e-6


@pytest.mark.parametrize("target", [name for name in TARGETS if name not in ("asym_w4a8_int8", "nvfp4")])
def test_quantising_what_was_quantised_changes_nothing(target):
    once = TARGETS[target].quantize(weight()).dequantized()
    torch.testing.assert_close(TARGETS[target].quantize(once).dequantized(), once, rtol=1e-5, atol=1e-7)


def test_codes_of_four_bits_are_sign_exponent_and_fraction():
    def value(code: int) -> float:
        sign, exponent, fraction = -1.0 if code & 8 else 1.0, (code >> 1) & 3, code & 1
        return sign * (fraction / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + fraction / 2))

    codes = torch.arange(16, dtype=torch.uint8)
    assert from_codes(codes).tolist() == [value(code) for code in range(16)]
    assert torch.equal(to_codes(from_codes(codes)), codes)


def test_values_between_two_codes_go_to_the_nearer_and_ties_to_the_even_one():
    values = torch.linspace(0, 6, 97)           # steps of a sixteenth: every tie is among them
    grid = from_codes(torch.arange(8, dtype=torch.uint8))
    for value, code in zip(values, to_codes(values).tolist(), strict=True):
        distances = (grid - value).abs()
        nearest = (distances == distances.min()).nonzero().flatten().tolist()
        assert code == next(each for each in nearest if len(nearest) == 1 or each % 2 == 0)


def test_nibbles_are_joined_in_both_orders():
    codes = torch.randint(16, (3, 8), dtype=torch.uint8)
    for high_first in (False, True):
        joined = join_nibbles(codes, high_first)
        even, odd = (joined >> 4, joined & 15) if high_first else (joined & 15, joined >> 4)
        assert torch.equal(even, codes[:, 0::2]) and torch.equal(odd, codes[:, 1::2])
        assert torch.equal(split_nibbles(joined, high_first), codes)


@pytest.mark.parametrize("rows, columns", [(128, 4), (160, 12), (300, 5)])
def test_every_scale_lies_where_the_matrix_units_read_it(rows, columns):
    scales = torch.randint(256, (rows, columns), dtype=torch.uint8)
    tiled = to_tiles(scales)
    assert tiled.shape == tiled_shape(rows, columns)
    flat, across = tiled.flatten(), tiled.shape[1] // 4
    for r, c in itertools.product(range(0, rows, 7), range(columns)):
        place = (r // 128 * across + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4
        assert flat[place] == scales[r, c]
    assert torch.equal(from_tiles(tiled, rows, columns), scales)


@pytest.mark.parametrize("group", [16, 64, 256])
def test_a_rotation_is_orthogonal_and_its_own_inverse(group):
    matrix = _hadamard(group)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(group))
    assert torch.equal(matrix, matrix.T) and (matrix.sum(0) == 1).all()
    given = torch.randn(5, 512)
    torch.testing.assert_close(rotate(rotate(given, group), group), given, rtol=1e-5, atol=1e-5)
    inputs = torch.randn(3, 512)
    torch.testing.assert_close(rotate(inputs, group) @ rotate(given, group).T, inputs @ given.T, rtol=1e-4, atol=1e-4)


def test_the_matrix_of_a_rotation_is_copied_to_a_device_once(monkeypatch):
    """A copy for every layer that runs, and every time it does, would make a GPU wait as often."""
    monkeypatch.setattr(rotation, "_COPIES", {})
    with torch.inference_mode():
        first = rotation._hadamard_on(torch.device("meta"), 16)
    assert rotation._hadamard_on(torch.device("meta"), 16) is first and not first.is_inference()
    assert rotation._hadamard_on(torch.device("meta"), 64).shape == (64, 64)
    assert torch.equal(rotation._hadamard_on(torch.device("cpu"), 16), _hadamard(16))


def test_a_rotation_spreads_one_large_value():
    made = 0.01 * torch.randn(8, 256)
    made[:, 0] = 1.0
    plain, rotated = (TARGETS[name].quantize(made).dequantized() for name in ("int8_tensorwise", "int8_convrot"))
    assert (rotated - made).norm() < 0.5 * (plain - made).norm()


def test_scales_of_mxfp8_are_the_smallest_powers_of_two_that_hold_the_block():
    given = weight()
    tensors = MXFP8().quantize(given, {})
    exponents = from_tiles(tensors["weight_scale"], 160, 6).float() - 127
    largest = given.unflatten(1, (-1, 32)).abs().amax(2)
    assert (largest <= 448 * 2.0 ** exponents).all() and (largest > 448 * 2.0 ** (exponents - 1)).all()


def test_nvfp4_is_dequantised_by_its_definition():
    tensors = NVFP4().quantize(weight(), {})
    scales = from_tiles(tensors["weight_scale"], 160, 12).float()
    back = NVFP4().dequantize(tensors, {})
    for row, column in ((0, 0), (3, 17), (159, 190)):
        byte = int(tensors["weight"][row, column // 2])
        code = torch.tensor([byte & 15 if column % 2 else byte >> 4], dtype=torch.uint8)
        want = from_codes(code) * scales[row, column // 16] * tensors["weight_scale_2"]
        torch.testing.assert_close(back[row, column], want[0])


def test_codes_of_w4a8_are_the_best_ones_for_what_the_host_makes_of_them():
    """No other code of the table is nearer to the rotated weight once the host has rounded it to 8 bits."""
    form, given = AsymW4A8(), weight(8, 64)
    options = form.options_for((8, 64))
    tensors = form.quantize(given, options)
    rotated, rows = rotate(given, 64), tensors["weight_s_channel"]
    relative = tensors["weight_s_rel"].float().repeat_interleave(16, dim=1)
    each = (tensors["weight_codebook"] * relative[..., None]).round().clamp(-127, 127) * rows[:, None, None]
    best = (each - rotated[..., None]).abs().amin(2)
    again = rotate(form.dequantize(tensors, options), 64)
    torch.testing.assert_close((again - rotated).abs(), best, rtol=1e-3, atol=1e-6)


def test_without_a_table_codes_are_whole_numbers():
    tensors = {"weight": torch.tensor([[-128, 127] * 4], dtype=torch.int8),          # bytes 0x80 and 0x7f
               "weight_s_rel": torch.ones(1, 1, dtype=torch.float8_e4m3fn), "weight_s_channel": torch.ones(1)}
    back = AsymW4A8().dequantize(tensors, {"group_size": 16, "convrot_groupsize": 16})
    assert rotate(back, 16).round().tolist() == [[-8.0, 0.0, 7.0, -1.0] * 4]


@pytest.mark.parametrize("target, columns", [("nvfp4", 40), ("mxfp8", 48), ("convrot_w4a4", 48), ("int8_convrot", 40)])
def test_a_width_that_does_not_fit_is_refused_by_its_number(target, columns):
    with pytest.raises(ValueError, match=f"columns is {columns}"):
        TARGETS[target].quantize(torch.ones(32, columns))


LAYOUTS = {"int8_convrot": ("TensorWiseINT8Layout", {"per_channel": True, "convrot": True, "convrot_groupsize": 64}),
           "int8_tensorwise": ("TensorWiseINT8Layout", {"per_channel": True}),
           "float8_e4m3fn": ("TensorCoreFP8Layout", {}), "nvfp4": ("TensorCoreNVFP4Layout", {}),
           "mxfp8": ("TensorCoreMXFP8Layout", {}),
           "convrot_w4a4": ("TensorCoreConvRotW4A4Layout", {"convrot_groupsize": 64}),
           "asym_w4a8_int8": ("AsymW4A8Int8Layout", {"convrot_groupsize": 64})}


@pytest.mark.parametrize("target", LAYOUTS)
def test_the_hosts_library_quantises_the_same_and_dequantises_ours(target):
    """comfy_kitchen is the host's own code of these formats."""
    tensor = pytest.importorskip("comfy_kitchen.tensor", reason="comfy-kitchen is not installed; it is an oracle only")
    layout, settings = getattr(tensor, LAYOUTS[target][0]), LAYOUTS[target][1]
    original = weight()
    theirs, params = layout.quantize(original, **settings)
    quantized = TARGETS[target].quantize(original)
    ours = quantized.tensors["weight"]
    dequantized = layout.dequantize(theirs, params)
    if target == "asym_w4a8_int8":         # each fits a table of its own
        assert (quantized.dequantized() - original).norm() <= 1.02 * (dequantized - original).norm()
        params = layout.Params(scale=quantized.tensors["weight_s_rel"], s_channel=quantized.tensors["weight_s_channel"],
                               codebook=quantized.tensors["weight_codebook"], orig_dtype=torch.float32,
                               orig_shape=tuple(original.shape), convrot_groupsize=64)
        torch.testing.assert_close(quantized.dequantized(), layout.dequantize(ours, params), rtol=1e-4, atol=1e-6)
    else:
        same = (theirs.view(torch.uint8) == ours.view(torch.uint8)).float().mean()
        assert same > 0.999
        torch.testing.assert_close(quantized.dequantized(), dequantized, rtol=0.15, atol=1e-4)
