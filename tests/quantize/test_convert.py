"""Quantised files: made, opened as if they were plain, kept quantised, refused where they are wrong."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixart.__main__ import parser, run_of
from pixart.checkpoint import CheckpointError, load, open_checkpoint, save_checkpoint, to_diffusers
from pixart.checkpoint.lora import Lora, LoraPart, merge_lora
from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer
from pixart.quantize import TARGETS
from pixart.quantize.convert import MATRICES, convert
from pixart.quantize.layer import QuantizedLinear
from pixart.quantize.report import average_bits, error_table, rms, write_errors

CONFIG = PixArtConfig(depth=2, hidden=192, heads=4, caption_width=16, caption_tokens=20)
LIMIT = {"float8_e4m3fn": 0.08, "float8_e5m2": 0.15, "int8_tensorwise": 0.03, "int8_convrot": 0.03, "mxfp8": 0.08,
         "nvfp4": 0.25, "convrot_w4a4": 0.35, "asym_w4a8_int8": 0.2, "fp4": 0.3}
GIVEN = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([999.0, 20.0]),
         torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2)))


def random_model(config: PixArtConfig = CONFIG) -> PixArtTransformer:
    torch.manual_seed(0)
    model = PixArtTransformer(config).eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        fan_in = tensor[0].numel() if tensor.ndim > 1 and "table" not in name else 12
        tensor.copy_(torch.randn_like(tensor) / fan_in ** 0.5)
    return model


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("plain") / "plain.safetensors", random_model())


@pytest.fixture
def quantized(plain, tmp_path):
    def make(target: str, **options: object) -> Path:
        out = tmp_path / f"{target}.safetensors"
        convert(plain, target, out, **options)
        return out
    return make


def changed(path: Path, change) -> Path:
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    change(tensors, metadata)
    out = path.with_stem(f"{path.stem}-changed")
    save_file(tensors, out, metadata)
    return out


def computed(path: Path) -> Tensor:
    """What the model answers, dequantised."""
    with torch.no_grad():
        return load(path, dtype=torch.float32)(*GIVEN)


def off(got: Tensor, want: Tensor) -> float:
    return float((got - want).detach().norm() / want.detach().norm())


@pytest.mark.parametrize("target", TARGETS)
def test_a_quantised_file_opens_like_any_other(target, plain, quantized):
    path = quantized(target)
    opened = open_checkpoint(path)
    assert opened.config == CONFIG
    assert opened.quantized_as == (TARGETS[target].format.name,)
    want = load(plain)(*GIVEN)
    assert 0 < off(load(path, dtype=torch.float32)(*GIVEN), want) < LIMIT[target]


@pytest.mark.parametrize("target", TARGETS)
def test_kept_quantised_it_computes_the_same_in_less_memory(target, quantized):
    path = quantized(target)
    whole, kept = load(path, dtype=torch.float32), load(path, dtype=torch.float32, quantized=True)
    assert off(kept(*GIVEN), whole(*GIVEN)) < 1e-6
    layers = [layer for layer in kept.modules() if isinstance(layer, QuantizedLinear)]
    assert len(layers) == 14
    assert all(sum(buffer.nbytes for buffer in layer.buffers()) < 0.4 * 4 * layer.in_features * layer.out_features
               for layer in layers)


def marks(path: Path) -> list[dict]:
    tensors = load_file(path)
    return [json.loads(bytes(tensors[name].tolist())) for name in tensors if name.endswith(".comfy_quant")]


@pytest.mark.parametrize("weights_only", [False, True])
def test_weights_only_is_told_to_the_host_in_every_mark(weights_only, quantized):
    told = marks(quantized("float8_e4m3fn", weights_only=weights_only))
    assert told == [{"format": "float8_e4m3fn"} | ({"full_precision_matrix_mult": True} if weights_only else {})] * 14


def test_what_is_not_a_matrix_of_a_block_stays_in_16_bits(plain, quantized):
    tensors, originals = load_file(quantized("nvfp4")), load_file(plain)
    rest = {name for name in originals if not MATRICES.fullmatch(name)}
    for name in rest:
        exact = "table" in name
        assert tensors[name].dtype == (torch.float32 if exact else torch.float16), name
        assert torch.equal(tensors[name], originals[name].to(tensors[name].dtype)), name
    assert {name for name in tensors if name.endswith(".comfy_quant")} == {
        name.replace(".weight", ".comfy_quant") for name in originals.keys() - rest}


def test_a_quantised_file_is_opened_in_the_type_of_what_is_not_quantised(quantized, caplog):
    found = {parameter.dtype for name, parameter in load(quantized("nvfp4")).named_parameters() if "table" not in name}
    assert found == {torch.float16} and "mixes" not in caplog.text


def test_files_in_16_bits_keep_their_type(plain, tmp_path):
    half = save_checkpoint(tmp_path / "half.safetensors", load(plain, dtype=torch.bfloat16))
    convert(half, "int8_tensorwise", tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors")["t_block.1.weight"].dtype == torch.bfloat16


def test_dequantising_gives_a_plain_file_of_the_same_numbers(quantized, tmp_path):
    path = quantized("mxfp8")
    convert(path, "fp32", tmp_path / "back.safetensors")
    assert open_checkpoint(tmp_path / "back.safetensors").quantized_as == ()
    assert torch.equal(load(tmp_path / "back.safetensors")(*GIVEN), load(path, dtype=torch.float32)(*GIVEN))


def test_the_report_has_every_layer_and_their_errors_are_true(plain, tmp_path):
    errors = convert(plain, "int8_tensorwise", tmp_path / "out.safetensors")
    assert len(errors) == 14 and average_bits(errors) == pytest.approx(8.14, abs=0.01)
    got = load(tmp_path / "out.safetensors", dtype=torch.float32).state_dict()
    want = load(plain).state_dict()
    for error in errors:
        name = f"{error.layer}.weight"
        assert error.relative == pytest.approx(off(got[name], want[name]), rel=1e-4)
        worst = (got[name] - want[name]).abs().max() / want[name].abs().max()
        assert error.worst == pytest.approx(float(worst), rel=1e-4) and error.layer.endswith(f".{error.kind}")
        assert 10 ** (-error.decibels / 20) == pytest.approx(error.relative)
    assert "2 x attn.qkv" in error_table(errors) and f"{rms(errors):.4f}" in error_table(errors)
    write_errors(errors, tmp_path / "report.json")
    assert [row["layer"] for row in json.loads((tmp_path / "report.json").read_text())] == [e.layer for e in errors]
    write_errors(errors, tmp_path / "report.md")
    assert (tmp_path / "report.md").read_text().count("blocks.") == 14


def test_the_command_writes_file_and_report(plain, tmp_path, capsys):
    out, report = tmp_path / "out.safetensors", tmp_path / "report.json"
    words = ["quantize", str(plain), "--to", "convrot_w4a4", "--out", str(out), "--report", str(report)]
    run_of("quantize")(parser("quantize").parse_args(words))
    assert open_checkpoint(out).quantized_as == ("convrot_w4a4",) and report.is_file()
    assert "all 14" in capsys.readouterr().out


@pytest.mark.parametrize("words, message", [
    (["--to", "fp16", "--report", "r.json"], "--report has no effect"),
    (["--to", "int8_convrot", "--weights-only"], "rounds the inputs"),
    (["--to", "fp16", "--weights-only"], "nothing is quantised"),
    (["--to", "nvfp4", "--out", "x.pth"], "written as .safetensors"),
    (["--to", "nvfp4", "--out", "SOURCE"], "is what is read")])
def test_options_that_cannot_be_meant_are_refused(words, message, plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [str(plain) if word == "SOURCE" else word for word in words]
    given = ["quantize", str(plain), "--out", "out.safetensors", *words]
    with pytest.raises(ValueError, match=message):
        run_of("quantize")(parser("quantize").parse_args(given))
    assert load(plain) is not None and not (tmp_path / "out.safetensors").exists()


def test_a_run_that_stops_leaves_nothing(plain, tmp_path):
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(plain, "nvfp4", tmp_path / "out.safetensors", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_quantising_twice_is_refused(quantized, tmp_path):
    path = quantized("int8_tensorwise")
    with pytest.raises(ValueError, match="quantised as int8_tensorwise already"):
        convert(path, "nvfp4", tmp_path / "twice.safetensors")


def test_a_width_that_does_not_fit_names_the_layer(tmp_path):
    narrow = save_checkpoint(tmp_path / "narrow.safetensors", random_model(replace(CONFIG, hidden=48)))
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.proj.*columns is 48.*File:"):
        convert(narrow, "convrot_w4a4", tmp_path / "out.safetensors")


def drop(name: str):
    return lambda tensors, metadata: tensors.pop(name)


def set_mark(told: object):
    def change(tensors: dict, metadata: dict) -> None:
        tensors["blocks.0.attn.qkv.comfy_quant"] = torch.frombuffer(bytearray(json.dumps(told).encode()),
                                                                    dtype=torch.uint8)
    return change


LAYER = "blocks.0.attn.qkv"
DAMAGES = {
    "missing scale": (drop(f"{LAYER}.weight_scale"), "weight_scale is missing"),
    "missing weight": (drop(f"{LAYER}.weight"), "weight is missing"),
    "short scale": (lambda t, m: t.update({f"{LAYER}.weight_scale": torch.ones(7, 1)}), r"shape \(7, 1\)"),
    "scale of another type": (lambda t, m: t.update({f"{LAYER}.weight_scale": torch.ones(576, 1).double()}), "float64"),
    "weight of another type": (lambda t, m: t.update({f"{LAYER}.weight": torch.ones(576, 192)}), "float32"),
    "infinite scale": (lambda t, m: t[f"{LAYER}.weight_scale"].fill_(torch.inf), "not finite"),
    "format of the future": (set_mark({"format": "awq_w4a16"}), "awq_w4a16.*one of float8_e4m3fn"),
    "no format": (set_mark({}), "quantised as None"),
    "mark that is a list": (set_mark([1]), "comfy_quant"),
    "wrong group": (set_mark({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 48}),
                    "convrot_groupsize is 48"),
    "group of letters": (set_mark({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": "x"}),
                         "no number"),
    "no power of four": (set_mark({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 32}),
                         "convrot_groupsize is 32, not a power of 4"),
    "mark of numbers": (lambda t, m: t.update({f"{LAYER}.comfy_quant": torch.zeros(3)}), "the bytes of a text"),
    "header without layers": (lambda t, m: m.update(_quantization_metadata='{"layers": 3}'), "names no layers"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_layer_and_file(damage, quantized):
    change, message = DAMAGES[damage]
    path = changed(quantized("int8_tensorwise"), change)
    with pytest.raises(CheckpointError, match=f"{message}.*{path.name}"):
        load(path)


def test_marks_in_the_header_are_read_like_those_in_tensors(quantized):
    def move(tensors: dict, metadata: dict) -> None:
        marks = {name: tensors.pop(name) for name in list(tensors) if name.endswith(".comfy_quant")}
        layers = {name.removesuffix(".comfy_quant"): json.loads(bytes(mark.tolist())) for name, mark in marks.items()}
        metadata["_quantization_metadata"] = json.dumps({"layers": layers})

    path = quantized("float8_e4m3fn")
    assert torch.equal(computed(changed(path, move)), computed(path))


def test_settings_that_a_writer_keeps_one_level_lower_are_read(quantized):
    def lower(tensors: dict, metadata: dict) -> None:
        for name in [name for name in tensors if name.endswith(".comfy_quant")]:
            told = json.loads(bytes(tensors[name].tolist()))
            told = {"format": told.pop("format"), "params": told}
            tensors[name] = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)

    path = quantized("int8_convrot")
    assert torch.equal(computed(changed(path, lower)), computed(path))


def test_a_quantised_part_of_a_fused_layer_is_dequantised_and_cannot_be_kept(plain, tmp_path):
    """In the layout of diffusers queries are a layer of their own."""
    tensors = {name: tensor.contiguous() for name, tensor in to_diffusers(load_file(plain)).items()}
    layer = "transformer_blocks.0.attn1.to_q"
    want = TARGETS["float8_e4m3fn"].quantize(tensors.pop(f"{layer}.weight"))
    save_file(tensors | {f"{layer}.{own}": each for own, each in want.entries().items()}, tmp_path / "part.safetensors")
    opened = open_checkpoint(tmp_path / "part.safetensors", CONFIG)
    assert torch.equal(opened.load(torch.float32).blocks[0].attn.qkv.weight[:192], want.dequantized())
    with pytest.raises(CheckpointError, match=r"to_q is quantised, and only a part of blocks\.0\.attn\.qkv.*--to fp16"):
        opened.load(quantized=True)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_scaled_fp8_files_of_the_time_before_are_read(kind, quantized):
    def rename(tensors: dict, metadata: dict) -> None:
        for name in list(tensors):
            if name.endswith(".comfy_quant"):
                del tensors[name]
            elif name.endswith(".weight_scale"):
                tensors[name.replace("weight_scale", "scale_weight")] = tensors.pop(name)
        tensors["scaled_fp8"] = torch.zeros(2, dtype=kind)

    path = quantized(f"float8_{'e4m3fn' if kind == torch.float8_e4m3fn else 'e5m2'}")
    old = changed(path, rename)
    assert torch.equal(computed(old), computed(path))
    told = {"full_precision_matrix_mult": True}         # what two numbers in the mark mean
    assert [each.options for each in open_checkpoint(old).quantized().values()] == [told] * 14


@pytest.mark.parametrize("target", ["float8_e4m3fn", "nvfp4", "mxfp8", "asym_w4a8_int8"])
def test_quantised_layers_keep_their_numbers_in_another_data_type(target, quantized):
    """model.to(bfloat16) is for what computes; a scale of 8 bits in 16 would be read as two others."""
    model = load(quantized(target), dtype=torch.float32, quantized=True)
    layer = model.blocks[0].attn.qkv
    want = layer.dequantized()
    for change in (torch.bfloat16, torch.float64, torch.float32):
        assert torch.equal(model.to(change).blocks[0].attn.qkv.dequantized(), want)
        assert layer(torch.ones(2, 192, dtype=change)).dtype == change
    assert layer.bias.dtype == torch.float32
    assert layer.to("meta").weight.device.type == "meta"


def test_a_lora_on_a_quantised_layer_is_refused_with_what_to_do(quantized):
    part = LoraPart("blocks.0.attn.proj", 0, 1, torch.ones(1, 192), torch.ones(192, 1), 1.0)
    model = load(quantized("nvfp4"), dtype=torch.float32, quantized=True)
    with pytest.raises(ValueError, match="blocks.0.attn.proj, which is kept quantised; load .*quantized=False"):
        merge_lora(model, Lora((part,)))
    merge_lora(load(quantized("nvfp4"), dtype=torch.float32), Lora((part,)))


@pytest.mark.parametrize("beside", ["text_encoders.t5xxl", "zz"])
def test_a_scaled_text_encoder_in_the_same_file_changes_nothing(quantized, beside):
    """Each model has its own mark, of another type here, and whichever is first in the file."""
    def join(tensors: dict, metadata: dict) -> None:
        for name in list(tensors):
            tensor = tensors.pop(name)
            if not name.endswith(".comfy_quant"):
                tensors["model.diffusion_model." + name.replace("weight_scale", "scale_weight")] = tensor
        tensors["model.diffusion_model.scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        tensors[f"{beside}.scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e5m2)
        tensors[f"{beside}.q.weight"] = torch.zeros(4, 4, dtype=torch.float8_e5m2)
        tensors[f"{beside}.q.scale_weight"] = torch.ones(())

    path = quantized("float8_e4m3fn")
    assert torch.equal(computed(changed(path, join)), computed(path))


def test_a_plain_model_beside_a_quantised_text_encoder_is_plain(plain, quantized, tmp_path):
    """As ComfyUI saves all in one file: the model keeps its data type, and can be quantised. The encoder's format may
    be one that only the host knows."""
    tensors = {f"model.diffusion_model.{name}": tensor.half() for name, tensor in load_file(plain).items()}
    beside = {name.replace("blocks.0", "text_encoders.t5xxl"): tensor
              for name, tensor in load_file(quantized("float8_e4m3fn")).items() if name.startswith("blocks.0.mlp.fc1")}
    assert len(beside) == 4
    beside["text_encoders.t5xxl.mlp.fc1.comfy_quant"] = torch.frombuffer(bytearray(b'{"format": "awq_w4a16"}'),
                                                                         dtype=torch.uint8)
    save_file(tensors | beside, tmp_path / "all.safetensors")
    opened = open_checkpoint(tmp_path / "all.safetensors", CONFIG)
    assert opened.quantized_as == () and opened.quantized() == {} and opened.runs_in_host
    assert "fp16" in opened.read().description
    convert(tmp_path / "all.safetensors", "nvfp4", tmp_path / "out.safetensors", CONFIG)
    assert open_checkpoint(tmp_path / "out.safetensors").quantized_as == ("nvfp4",)


def test_a_prefix_changes_nothing(quantized):
    def prefix(tensors: dict, metadata: dict) -> None:
        for name in list(tensors):
            tensors[f"model.diffusion_model.{name}"] = tensors.pop(name)

    path = quantized("nvfp4")
    again = changed(path, prefix)
    assert torch.equal(computed(again), computed(path))
    assert set(open_checkpoint(again).quantized()) == set(open_checkpoint(path).quantized())


def test_smoothing_of_inputs_becomes_part_of_the_weight(quantized):
    smooth = torch.linspace(0.5, 2, 192)

    def add(tensors: dict, metadata: dict) -> None:
        tensors[f"{LAYER}.pre_quant_scale"] = smooth

    path = quantized("nvfp4")
    got, want = (load(each, dtype=torch.float32).blocks[0].attn.qkv.weight for each in (changed(path, add), path))
    assert torch.equal(got, want * smooth)


def test_a_plain_file_is_read_as_before(plain):
    assert open_checkpoint(plain).quantized_as == () and open_checkpoint(plain).quantized() == {}
    kept = load(plain, quantized=True)
    assert torch.equal(kept(*GIVEN), load(plain)(*GIVEN))
