"""ControlNets and T5 encoders, quantised: they open as before, nearly as they were; what cannot be is refused."""
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixart.__main__ import parser, run_of
from pixart.checkpoint import load_control, save_checkpoint, save_control
from pixart.config import PixArtConfig
from pixart.mini import SHIPPED
from pixart.model.controlnet import PixArtControlNet
from pixart.model.transformer import PixArtTransformer
from pixart.quantize.companions import CONTROL_MATRICES, T5_MATRICES, convert_control, convert_t5, part_in
from pixart.text.t5 import T5Encoder

CONFIG = PixArtConfig(depth=3, hidden=192, heads=4, caption_width=16, caption_tokens=20)
LIMIT = {"float8_e4m3fn": 0.05, "int8_tensorwise": 0.02, "int8_convrot": 0.02, "nvfp4": 0.2, "mxfp8": 0.06}


def drawn(network):
    torch.manual_seed(0)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) / (tensor[0].numel() if tensor.ndim > 1 else 12) ** 0.5)
    return network.eval()


@pytest.fixture(scope="module")
def control(tmp_path_factory) -> Path:
    return save_control(tmp_path_factory.mktemp("control") / "control.safetensors", drawn(PixArtControlNet(CONFIG, 2)))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors", drawn(PixArtTransformer(CONFIG)))


def quantize(*words: object) -> None:
    run_of("quantize")(parser("quantize").parse_args(["quantize", *map(str, words)]))


@pytest.mark.parametrize("target", LIMIT)
def test_a_quantised_controlnet_opens_as_one_that_was_rounded(control, tmp_path, target):
    out = tmp_path / "quantised.safetensors"
    errors = convert_control(control, target, out)
    before, after = load_control(control, torch.float32), load_control(out, torch.float32)
    quantized = [name for name, _ in before.named_parameters() if CONTROL_MATRICES.fullmatch(name)]
    assert len(errors) == len(quantized) == 14 and after.config == before.config
    for name, weight in before.named_parameters():
        other = after.get_parameter(name)
        limit = LIMIT[target] if name in quantized else 1e-3
        assert (other - weight).norm() <= limit * weight.norm()
        assert name not in quantized or not torch.equal(other, weight)
    assert out.stat().st_size < 0.5 * control.stat().st_size


def test_the_command_tells_by_itself_what_it_quantises(control, model, tmp_path, capsys):
    assert [part_in(control), part_in(model), part_in(SHIPPED.t5)] == ["controlnet", "transformer", "t5"]
    quantize(control, "--to", "int8_tensorwise", "--out", tmp_path / "c.safetensors", "--report", tmp_path / "c.json")
    assert "14" in capsys.readouterr().out and len(json.loads((tmp_path / "c.json").read_text())) == 14
    load_control(tmp_path / "c.safetensors")


def test_a_bundle_asks_which_part_and_quantises_the_one_that_is_named(control, model, tmp_path):
    bundle = tmp_path / "bundle.safetensors"
    with safe_open(model, "pt") as file:
        save_file({**load_file(model), **load_file(control)}, bundle, dict(file.metadata()))
    with pytest.raises(ValueError, match="a transformer and its ControlNet in one file.*--part"):
        quantize(bundle, "--to", "int8_tensorwise", "--out", tmp_path / "x.safetensors")
    quantize(bundle, "--to", "int8_tensorwise", "--part", "controlnet", "--out", tmp_path / "c.safetensors")
    assert len(load_control(tmp_path / "c.safetensors").controlnet) == 2
    quantize(bundle, "--to", "int8_tensorwise", "--part", "transformer", "--out", tmp_path / "t.safetensors")
    assert part_in(tmp_path / "t.safetensors") == "transformer"


@pytest.mark.parametrize("words, told", [
    (("--to", "fp4"), "fp4 is for transformers"), (("--to", "bf16"), "opens as it is"),
    (("--to", "int8_tensorwise", "--variant", "sigma-512"), "--variant has no effect"),
    (("--to", "int8_tensorwise", "--weights-only"), "--weights-only has no effect")])
def test_what_only_transformers_can_be_converted_to_is_refused(control, tmp_path, words, told):
    with pytest.raises(ValueError, match=told):
        quantize(control, *words, "--out", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("make", [convert_control, convert_t5])
def test_weights_only_is_refused_where_it_means_nothing(control, tmp_path, make):
    source = control if make is convert_control else SHIPPED.t5
    with pytest.raises(ValueError, match="weights_only has no effect with int8_tensorwise: the host rounds"):
        make(source, "int8_tensorwise", tmp_path / "x.safetensors", weights_only=True)


def test_quantising_twice_is_refused(control, tmp_path):
    convert_control(control, "int8_tensorwise", tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="quantised already"):
        convert_control(tmp_path / "c.safetensors", "nvfp4", tmp_path / "again.safetensors")
    t5 = quantized_t5(tmp_path, "int8_tensorwise")
    with pytest.raises(ValueError, match="quantised already"):
        convert_t5(t5, "nvfp4", tmp_path / "again.safetensors")


def quantized_t5(folder: Path, target: str) -> Path:
    """PixArt-mini's text encoder, quantised, in a folder with its tokenizer."""
    made = folder / target
    shutil.copytree(SHIPPED.t5, made)
    (made / "model.safetensors").unlink()
    convert_t5(SHIPPED.t5, target, made / "model.safetensors")
    return made


@pytest.mark.parametrize("target, limit", [("int8_tensorwise", 0.02), ("float8_e4m3fn", 0.08), ("nvfp4", 0.3)])
def test_a_quantised_t5_gives_nearly_the_same_features(tmp_path, target, limit):
    made = quantized_t5(tmp_path, target)
    captions = ["a large red star on the left", "a small blue circle"]
    wanted = T5Encoder(SHIPPED.t5, bits=16).encode(captions, 64).context
    found = T5Encoder(made, bits=16).encode(captions, 64).context
    assert 0 < (found - wanted).norm() < limit * wanted.norm()
    tensors = load_file(made / "model.safetensors")
    assert sum(name.endswith(".comfy_quant") for name in tensors) == sum(
        bool(T5_MATRICES.fullmatch(name)) for name in load_file(SHIPPED.t5 / "model.safetensors"))


def test_a_quantised_t5_as_int8_is_quantised_again_without_loss(tmp_path):
    made = quantized_t5(tmp_path, "int8_tensorwise")
    captions = ["a large red star on the left"]
    wanted = T5Encoder(SHIPPED.t5, bits="int8").encode(captions, 64).context
    assert (T5Encoder(made, bits="int8").encode(captions, 64).context - wanted).norm() < 1e-2 * wanted.norm()
