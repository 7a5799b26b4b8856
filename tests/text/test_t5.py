"""The T5 encoder computes what transformers computes, in 16 bits exactly and in 8 and 4 bits nearly."""
import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pixart.quantize.layer import QuantizedLinear
from pixart.text import T5Encoder, encoder_identity, t5
from pixart.text.quantized import quantized_linear

PROMPTS = ["a red cat on the house", "one two three", "", "a photo of the small blue circle under a large green square"]
# Measured: 0.009 in 16, 0.021 in 8, 0.20 in 4 bits on random weights, which are harder to quantise than trained ones.
BOUNDS = {16: 0.013, 8: 0.03, 4: 0.28, "int8": 0.02}


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def computed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """What the encoder computes in: as on processors with matrix units for bfloat16, and as on others."""
    monkeypatch.setattr(t5, "fitting_dtype", lambda device, width: request.param)
    return request.param


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def reference(folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import T5EncoderModel

    return T5EncoderModel.from_pretrained(folder, torch_dtype=dtype).eval()


def features(model: nn.Module, encoder: T5Encoder, prompt: str) -> Tensor:
    ids = torch.tensor([encoder.tokenizer.encode(prompt, 120)[0]])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float()


@pytest.mark.parametrize("computed", [torch.bfloat16], indirect=True, ids=str)
def test_sixteen_bits_equal_transformers_in_bfloat16_exactly(t5_folder: Path, computed: torch.dtype) -> None:
    encoder, model = T5Encoder(t5_folder, bits=16), reference(t5_folder, torch.bfloat16)
    encoded = encoder.encode(PROMPTS, 120)
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(encoded.one(row).context, features(model, encoder, prompt)), prompt


@pytest.mark.parametrize("computed", [torch.float32], indirect=True, ids=str)
def test_in_float32_sixteen_bits_lose_what_rounding_the_weights_loses(t5_folder: Path, computed: torch.dtype) -> None:
    encoder, model = T5Encoder(t5_folder, bits=16), reference(t5_folder, torch.float32)
    for name, parameter in model.named_parameters():
        if "layer_norm" not in name:
            parameter.data = parameter.to(torch.bfloat16).float()
    for prompt in PROMPTS:          # transformers rounds the input of `wo` to the dtype its weights lie in
        assert relative(encoder.encode([prompt], 120).context, features(model, encoder, prompt)) < 2e-3, prompt


def test_a_processor_without_matrix_units_computes_in_float32_from_the_same_weights(
        t5_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: set[torch.dtype] = set()

    def watch(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        dtypes.add(made.dtype)
    monkeypatch.setattr(t5, "fitting_dtype", lambda device, width: torch.float32)
    encoder = T5Encoder(t5_folder, bits=16)
    for module in encoder.model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            assert module.weight.dtype == torch.bfloat16
            module.register_forward_hook(watch)
    encoder.encode(PROMPTS, 120)
    assert dtypes == {torch.float32}
    monkeypatch.undo()
    saved = encoder.state_dict()
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    want = {name: tensor.to(torch.bfloat16) for name, tensor in reference(t5_folder, torch.float32).state_dict().items()
            if not name.endswith("embed_tokens.weight")}
    assert saved.keys() == want.keys() and all(torch.equal(saved[name], want[name]) for name in want)


@pytest.mark.parametrize("bits", [16, 8, 4, "int8"])
def test_error_against_float32_is_bounded(t5_folder: Path, bits: int | str, computed: torch.dtype) -> None:
    encoder, model = T5Encoder(t5_folder, bits), reference(t5_folder, torch.float32)
    encoded = encoder.encode(PROMPTS, 120)
    got = torch.cat([encoded.one(row).context[0] for row in range(len(PROMPTS))])
    expected = torch.cat([features(model, encoder, prompt)[0] for prompt in PROMPTS])
    error = relative(got, expected)
    assert 1e-4 < error < BOUNDS[bits], error


def test_result_has_the_promised_shapes_and_types(t5_folder: Path) -> None:
    encoder = T5Encoder(t5_folder, bits=16)
    encoded = encoder.encode(PROMPTS, 120)
    assert encoded.context.shape == (4, 13, 64) and encoded.context.dtype == torch.float32
    assert encoded.mask.dtype == torch.bool and encoded.mask.sum(1).tolist() == [7, 4, 1, 13]
    assert not encoded.context[~encoded.mask].any()
    assert [report.tokens for report in encoded.reports] == [7, 4, 1, 13]
    assert (encoder.width, encoder.bits, encoder.device.type) == (64, 16, "cpu")
    assert encoder.parameters == sum(p.numel() for p in reference(t5_folder, torch.bfloat16).parameters())


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_prompt_does_not_depend_on_its_neighbours(t5_folder: Path, bits: int, computed: torch.dtype) -> None:
    encoder = T5Encoder(t5_folder, bits)
    together = encoder.encode(PROMPTS, 120)
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(together.one(row).context, encoder.encode([prompt], 120).context)


@pytest.mark.parametrize(("bits", "bound"), [(16, 0.01), (8, 0.02), (4, 0.01)])
def test_prompts_in_one_pass_equal_single_ones_up_to_rounding(t5_folder: Path, bits: int, bound: float) -> None:
    """Measured: 0.003 (bfloat16), 0.006 (8 bits: one set of outlier columns for all rows), 0.003 (4 bits)."""
    encoder = T5Encoder(t5_folder, bits)
    single = encoder.encode(PROMPTS, 120)
    passes: list[int] = []
    encoder.model.register_forward_hook(lambda *_: passes.append(1))
    batched = encoder.encode(PROMPTS, 120, batch=3)
    assert len(passes) == 2
    assert torch.equal(single.mask, batched.mask)
    assert relative(batched.context, single.context) < bound


def test_padding_would_change_the_features_if_it_were_not_masked(t5_folder: Path) -> None:
    encoder = T5Encoder(t5_folder, bits=16)
    ids = torch.tensor([encoder.tokenizer.encode(PROMPTS[1], 120)[0] + [0] * 8])
    with torch.no_grad():
        unmasked = encoder.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float()
    assert relative(unmasked[:, :4], encoder.encode([PROMPTS[1]], 120).context) > 0.05


@pytest.mark.parametrize(("bits", "kind"), [(8, "Linear8bitLt"), (4, "Linear4bit")])
def test_every_linear_layer_but_wo_is_quantised(t5_folder: Path, bits: int, kind: str, computed: torch.dtype) -> None:
    model = T5Encoder(t5_folder, bits).model
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    plain = "Linear" if computed == torch.bfloat16 else "Float32Linear"
    assert {kinds[name] for name in kinds if name.endswith(".wo")} == {plain}
    assert {kinds[name] for name in kinds if not name.endswith(".wo")} == {kind}
    assert len(kinds) == 3 * 7
    floats = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    large = {parameter.dtype for parameter in floats if parameter.ndim > 1}
    assert large == {torch.bfloat16}


def test_layers_have_the_published_settings_of_bitsandbytes() -> None:
    eight, four = (quantized_linear(torch.randn(64, 64), bits, torch.device("cpu")) for bits in (8, 4))
    assert eight.state.threshold == 6.0
    state = four.weight.quant_state
    assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, True)


def test_it_works_in_inference_mode_as_the_host_runs_nodes(t5_folder: Path) -> None:
    plain = T5Encoder(t5_folder, 8).encode(PROMPTS, 120)
    with torch.inference_mode():
        assert torch.equal(T5Encoder(t5_folder, 8).encode(PROMPTS, 120).context, plain.context)


def test_cleaning_is_used_only_when_asked_for(t5_folder: Path) -> None:
    encoder = T5Encoder(t5_folder, bits=16)
    raw, cleaned = (encoder.encode(["A RED Cat #12345"], 120, clean=clean).reports[0] for clean in (False, True))
    assert raw.text == raw.prompt == "A RED Cat #12345"
    assert cleaned.text == "a red cat" and cleaned.prompt == raw.prompt and cleaned.tokens == 4
    assert "cleaning left nothing" in encoder.encode(["猫"], 120, clean=True).reports[0].notes[0]
    mixed = encoder.encode(["a red 猫 on 红色 house"], 120, clean=True).reports[0]
    assert mixed.text == "a red on house" and mixed.notes[0].endswith("English captions: 猫 红色")
    assert not encoder.encode(["a red cat"], 120, clean=True).reports[0].notes


def test_eight_bits_write_no_line_about_casts(t5_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = T5Encoder(t5_folder, bits=8)
    with caplog.at_level(logging.DEBUG):
        encoder.encode(PROMPTS, 120)
        logging.getLogger("bitsandbytes.autograd._functions").warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_progress_is_told_and_may_stop_the_loading(t5_folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    T5Encoder(t5_folder, 16, progress=lambda done, total: steps.append((done, total)))
    assert steps[0] == (1, 30) and steps[-1] == (30, 30)

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        T5Encoder(t5_folder, 16, progress=stop)


def test_identity_is_known_before_loading_and_changes_with_the_file(t5_folder: Path, tmp_path: Path) -> None:
    import shutil

    assert T5Encoder(t5_folder, 16).identity == T5Encoder(t5_folder, 16).identity == encoder_identity(t5_folder)
    shutil.copytree(t5_folder, tmp_path / "copy")
    first = encoder_identity(tmp_path / "copy")
    assert first != encoder_identity(t5_folder)
    for name in ("model.safetensors", "tokenizer.json"):
        os.utime(tmp_path / "copy" / name, ns=(1, 1))           # written anew, as large as before
        first, before = encoder_identity(tmp_path / "copy"), first
        assert first != before


def test_a_closed_encoder_says_so(t5_folder: Path) -> None:
    encoder = T5Encoder(t5_folder, 16)
    encoder.close()
    assert encoder.model is None
    with pytest.raises(ValueError, match="was closed"):
        encoder.encode(["a"], 120)
    with pytest.raises(ValueError, match="was closed; load it again to save it"):
        encoder.state_dict()


@pytest.mark.parametrize("prompts", [None, "a cat", [], [None], ["a", 7]])
def test_prompts_that_are_no_list_of_strings_are_an_error(t5_folder: Path, prompts: object) -> None:
    with pytest.raises(ValueError, match="string"):
        T5Encoder(t5_folder, 16).encode(prompts, 120)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, None])
def test_an_impossible_token_limit_is_an_error(t5_folder: Path, limit: object) -> None:
    with pytest.raises(ValueError, match="max_tokens must be a whole number"):
        T5Encoder(t5_folder, 16).encode(["a"], limit)


def test_impossible_choices_are_errors(t5_folder: Path) -> None:
    with pytest.raises(ValueError, match="16, 8, 4 bits or 'int8', not 3"):
        T5Encoder(t5_folder, bits=3)
    with pytest.raises(ValueError, match="is not a device"):
        T5Encoder(t5_folder, bits=16, device="toaster")


def test_without_bitsandbytes_the_error_says_what_to_do(t5_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="pip install -U bitsandbytes"):
        T5Encoder(t5_folder, bits=8)
    assert len(T5Encoder(t5_folder, bits=16).encode(["a cat"], 120)) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_gpu_gives_what_the_cpu_gives(t5_folder: Path, bits: int) -> None:
    here, there = T5Encoder(t5_folder, bits), T5Encoder(t5_folder, bits, device="cuda")
    got, expected = there.encode(PROMPTS, 120), here.encode(PROMPTS, 120)
    assert got.context.device.type == "cpu" and relative(got.context, expected.context) < 0.03


def test_int8_needs_no_bitsandbytes_and_can_be_moved(t5_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)      # importing it fails
    with pytest.raises(ValueError, match="load T5 in int8 or 16 bits"):
        T5Encoder(t5_folder, bits=8)
    encoder = T5Encoder(t5_folder, bits="int8")
    before = encoder.encode(PROMPTS, 120).context
    assert encoder.model is not None
    encoder.model.to("meta")                                    # nothing is pinned
    assert {tensor.device.type for tensor in encoder.model.buffers()} == {"meta"}
    assert torch.equal(T5Encoder(t5_folder, bits="int8").encode(PROMPTS, 120).context, before)


@pytest.mark.parametrize(("bits", "told"), [(16, "16-bit"), ("int8", "int8")])
def test_a_load_says_its_precision(t5_folder: Path, caplog: pytest.LogCaptureFixture, bits: int | str,
                                   told: str) -> None:
    with caplog.at_level(logging.INFO, "pixart"):
        encoder = T5Encoder(t5_folder, bits)
    assert any(record.getMessage().endswith(f"{told} on cpu") for record in caplog.records)
    assert encoder.encode(["a"], 120).encoder == f"{t5_folder.name} {told}"


def test_int8_takes_a_byte_a_weight(t5_folder: Path) -> None:
    encoder = T5Encoder(t5_folder, bits="int8")
    assert encoder.model is not None
    rounded = [layer for layer in encoder.model.modules() if isinstance(layer, QuantizedLinear)]
    assert len(rounded) == 3 * 7                                # wo included
    assert all(layer.weight.dtype == torch.int8 for layer in rounded)
    with pytest.raises(ValueError, match="T5 in 8 bits cannot be saved"):
        encoder.state_dict()


def test_an_unknown_precision_is_refused_with_the_choices(t5_folder: Path) -> None:
    with pytest.raises(ValueError, match="16, 8, 4 bits or 'int8', not 'fp8'"):
        T5Encoder(t5_folder, bits="fp8")
