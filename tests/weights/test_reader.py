"""What every reader of weights shares: finding files, headers, settings, values that cannot be weights."""
import json
import os
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint.samples import TINY, equal, reference
from safetensors.torch import save_file

from pixart.checkpoint import (
    CheckpointError,
    CheckpointNotFound,
    load,
    load_control,
    read_checkpoint,
    read_control,
    save_checkpoint,
    to_diffusers,
)
from pixart.checkpoint.header import CONFIG_KEY
from pixart.control.hed import HED, load_hed
from pixart.weights import Kind, find_files, open_weights
from pixart.weights.fingerprint import weights_fingerprint
from pixart.weights.values import is_finite

KIND = Kind("weights", "text_encoder", ("model",))


def refusal(call, path: Path) -> str:
    """The message, which must come quickly."""
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        call(path)
    assert time.process_time() - started < 5 and path.name in str(caught.value)
    assert str(caught.value).endswith(str(caught.value.path)) and len(caught.value.found) < 300
    return str(caught.value)


# --- safetensors -----------------------------------------------------------------------------------------------------

def safetensors(path: Path, header: object, data: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
HEADERS = {
    "offsets of one number": ({"a": {**ENTRY, "data_offsets": [0]}}, "data_offsets of a"),
    "offsets of text": ({"a": {**ENTRY, "data_offsets": ["0", "16"]}}, "data_offsets of a"),
    "negative shape": ({"a": {**ENTRY, "shape": [-2, -2]}}, "shape of a"),
    "shape of floats": ({"a": {**ENTRY, "shape": [2.0, 2]}}, "shape of a"),
    "shape of another size": ({"a": {**ENTRY, "shape": [2, 3]}}, "has 16 bytes"),
    "unknown type": ({"a": {**ENTRY, "dtype": "F4"}}, "stored as F4"),
    "a list as type": ({"a": {**ENTRY, "dtype": []}}, "stored as []"),
    "no type": ({"a": {"shape": [2, 2], "data_offsets": [0, 16]}}, "stored as None"),
    "no entry": ({"a": None}, "a has no description"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": ENTRY}, "__metadata__"),
    "three gigabytes": ({"a": {**ENTRY, "shape": [3 << 28], "data_offsets": [0, 3 << 30]}}, "truncated safetensors"),
    "more than it says": ({}, "damaged safetensors"), "two over one": ({"a": ENTRY, "b": ENTRY}, "damaged safetensors"),
    "deep": (b'{"a":' * 100_000, "nested too deeply"), "a long name": ({"a" * 9000: ENTRY}, "name of 9000 characters"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_claim_nonsense_are_refused(kind, tmp_path):
    header, message = HEADERS[kind]
    assert message in refusal(lambda path: open_weights(path, KIND), safetensors(tmp_path / "a.safetensors", header))


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 3 << 30) + b"{")
    os.truncate(path, 4 << 30)
    assert "header of 3221225472 bytes" in refusal(lambda path: open_weights(path, KIND), path)


# --- finding files ---------------------------------------------------------------------------------------------------

CHOSEN = ["model-00002-of-00002.safetensors", "config.json", "."]


@pytest.mark.parametrize("chosen, index", [("model.safetensors.index.json", True),
                                           *((chosen, index) for chosen in CHOSEN for index in (True, False))])
def test_one_part_of_a_set_stands_for_all(chosen, index, tmp_path):
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    (tmp_path / "config.json").write_text("{}")
    if index:
        places = {"weight_map": {"a": names[0], "b": names[1]}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(places))
    for name in names:
        save_file({name[8]: torch.zeros(2)}, tmp_path / name)
    assert [file.name for file in find_files(tmp_path / chosen, KIND)] == names
    (tmp_path / names[0]).unlink()
    with pytest.raises(CheckpointNotFound, match="1 of 2 shards are missing, the first is model-00001"):
        find_files(tmp_path / chosen, KIND)


def test_of_several_files_in_a_folder_the_usual_one_in_full_precision_is_taken(tmp_path):
    """As Hugging Face's folders often hold the same weights two or three times."""
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "model.safetensors", "other.safetensors"):
        (tmp_path / name).touch()
    kind = Kind("weights", "", ("model", "pytorch_model"))
    for wanted in ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "other.safetensors"):
        assert [file.name for file in find_files(tmp_path, kind)] == [wanted]
        (tmp_path / wanted).unlink()


def test_a_shard_of_a_transformer_opens_the_whole(tmp_path):
    weights = {name: tensor for name, tensor in reference().items() if name != "pos_embed"}
    for number in (1, 2):
        part = {name: weights[name] for name in sorted(weights)[number - 1::2]}
        save_file(part, tmp_path / f"mine-0000{number}-of-00002.safetensors")
    found = read_checkpoint(tmp_path / "mine-00002-of-00002.safetensors", TINY)
    assert equal(found.state_dict, weights)


@pytest.mark.parametrize("name", ["a.sft", "a.SAFETENSORS", "a.Pth", "a.weights"])
def test_the_suffix_does_not_matter(name, tmp_path):
    weights = reference()
    torch.save(weights, tmp_path / name) if "th" in name else save_file(weights, tmp_path / name)
    assert read_checkpoint(tmp_path / name).config == TINY


@pytest.mark.parametrize("content", [
    {"weight_map": {"a": 1}}, {"weight_map": {"a": None}}, {"weight_map": {"a": []}}, {"weight_map": [1]}, {},
    {"weight_map": {"a": "../b"}}, {"weight_map": {"a": "C:\\b"}}, {"weight_map": {"a": ""}}, [1], 7])
def test_indices_of_nonsense_are_refused(content, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(content))
    assert refusal(lambda path: find_files(path, KIND), path)


def test_a_name_that_promises_a_million_shards_is_refused(tmp_path):
    path = tmp_path / "model-00001-of-99999.safetensors"
    path.write_bytes(b"")
    assert "a set of 99999" in refusal(lambda path: find_files(path, KIND), path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    assert "neither a file nor a folder" in refusal(read_checkpoint, tmp_path / "a.pth")


def test_a_fingerprint_tells_weights_by_size_and_ends_wherever_they_lie(tmp_path):
    content, found = bytes(range(256)) * 1024, []
    for number, changed in enumerate((content, content, content[:-1], b"x" + content[1:], content[:-1] + b"x")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "m.safetensors").write_bytes(changed)
        (tmp_path / str(number) / "notes.txt").write_text(str(number))
        found.append(weights_fingerprint(tmp_path / str(number) / "m.safetensors"))
        assert weights_fingerprint(tmp_path / str(number)) == found[-1].replace("m.safetensors", str(number))
    assert found[0] == found[1] and len(set(found)) == 4 and weights_fingerprint(None) is None
    for length in (200_000, 200_001):           # the same ends
        (tmp_path / "m.bin").write_bytes(bytes(length))
        found.append(weights_fingerprint(tmp_path / "m.bin"))
    assert found[-1] != found[-2]


# --- what is said in words -------------------------------------------------------------------------------------------

FIELDS = {"heads": [0, -4, 4.0, "4", None, True], "caption_tokens": [10 ** 9, 0], "depth": [10 ** 6, 10 ** 400],
          "position_scale": [float("nan"), 0, -1, [2], float("inf")], "latent_space": ["xl", 1, []],
          "kv_compression": [7, {"mode": "conv", "factor": 2.5, "layers": [0]}, {"mode": "conv"}, {"mode": []},
                             {"mode": "conv", "factor": 2, "layers": "all"}],
          "micro_conditioning": [1, "yes"]}


@pytest.mark.parametrize("field, value", [(field, value) for field, values in FIELDS.items() for value in values])
def test_a_configuration_of_nonsense_is_refused_by_field(field, value, tmp_path):
    config = {"depth": 2, "hidden": 72, "heads": 1, "caption_width": 16, "caption_tokens": 120, field: value}
    save_file({name: tensor for name, tensor in reference().items() if name != "pos_embed"},
              tmp_path / "a.safetensors", {CONFIG_KEY: json.dumps(config)})
    message = refusal(read_checkpoint, tmp_path / "a.safetensors")
    assert CONFIG_KEY in message and (field in message or field == "kv_compression" and "factor" in message)


@pytest.mark.parametrize("entry", [{"interpolation_scale": [1]}, {"sample_size": -1}, {"sample_size": 10 ** 400},
                                   {"num_attention_heads": 1.5}, {"_class_name": 7}])
def test_a_config_json_of_nonsense_is_refused_by_field(entry, tmp_path):
    save_file({name: tensor.contiguous() for name, tensor in to_diffusers(reference()).items()},
              tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(entry))
    message = refusal(read_checkpoint, tmp_path)
    assert next(iter(entry)) in message and message.endswith("config.json")


# --- values that cannot be weights -----------------------------------------------------------------------------------

def with_value(tensors: dict, name: str, value: float) -> dict:
    changed = tensors[name].clone()
    changed.view(-1)[-1] = value
    return {**tensors, name: changed}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["blocks.1.mlp.fc2.weight", "blocks.0.scale_shift_table", "y_embedder.y_embedding"])
def test_a_number_that_is_not_finite_is_found_by_its_tensor(name, value, tmp_path):
    torch.save(with_value(reference(), name, value), tmp_path / "a.pth")
    for dtype in (None, torch.float16):
        message = refusal(lambda path, dtype=dtype: read_checkpoint(path, dtype=dtype), tmp_path / "a.pth")
        assert f"{name} holds numbers that are not finite" in message


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float16])
def test_not_a_number_is_found_in_small_types(dtype, tmp_path):
    weights = {name: tensor.to(dtype) for name, tensor in reference().items()}
    save_file(with_value(weights, "blocks.1.mlp.fc2.weight", float("nan")), tmp_path / "a.safetensors")
    assert "blocks.1.mlp.fc2.weight" in refusal(lambda path: read_checkpoint(path, TINY), tmp_path / "a.safetensors")


@pytest.mark.parametrize(("value", "dtype"), [(1e5, torch.float16), (1e39, None), (-1e300, torch.float64)])
def test_numbers_that_become_infinite_in_the_models_data_type_are_refused(value, dtype, tmp_path):
    name = "blocks.1.mlp.fc2.weight"
    weights = {key: tensor.double() for key, tensor in reference().items()}
    torch.save(with_value(weights, name, value), tmp_path / "a.pth")
    message = refusal(lambda path: read_checkpoint(path, TINY, dtype=dtype), tmp_path / "a.pth")
    assert f"{name} holds numbers too large for {'float16' if dtype is torch.float16 else 'float32'}" in message
    assert ("Choose a wider data type" if dtype is torch.float16 else "The file is damaged") in message
    torch.save(with_value(weights, name, 6e4), tmp_path / "a.pth")
    assert float(read_checkpoint(tmp_path / "a.pth", TINY, dtype=dtype).state_dict[name].max()) == 6e4


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_number_of_eight_bits_is_told_apart(dtype):
    for bits in range(256):
        number = torch.tensor([bits], dtype=torch.uint8).view(dtype)
        assert is_finite(number) == bool(torch.isfinite(number.float()).all()), bits


def test_the_edge_network_and_a_controlnet_are_looked_at_too(tmp_path):
    torch.save(with_value(HED().state_dict(), "block3.convs.1.bias", float("nan")), tmp_path / "hed.pth")
    assert "block3.convs.1.bias" in refusal(load_hed, tmp_path / "hed.pth")
    from pixart.checkpoint.control import control_shapes
    control = {name: torch.zeros(shape) for name, shape in control_shapes(TINY, 1).items()}
    torch.save(with_value(control, "controlnet.0.after_proj.bias", float("inf")), tmp_path / "control.pth")
    assert "controlnet.0.after_proj.bias" in refusal(read_control, tmp_path / "control.pth")
    torch.save(control, tmp_path / "control.pth")
    assert load_control(tmp_path / "control.pth").config.hidden == 72


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.int64, torch.uint8])
def test_numbers_that_are_no_weights_are_refused(dtype, tmp_path):
    weights = {**reference(), "blocks.0.attn.proj.weight": torch.ones(72, 72).to(dtype)}
    torch.save(weights, tmp_path / "a.pth")
    kind = str(dtype).removeprefix("torch.")
    assert f"blocks.0.attn.proj.weight holds {kind} numbers" in refusal(read_checkpoint, tmp_path / "a.pth")


@pytest.mark.parametrize("types, common", [((torch.float16, torch.float64), torch.float64),
                                           ((torch.float16, torch.bfloat16), torch.float32)])
def test_mixed_types_become_one_without_loss(types, common, tmp_path, caplog):
    weights = {name: tensor.to(types[number % 2]) for number, (name, tensor) in enumerate(reference().items())}
    torch.save(weights, tmp_path / "a.pth")
    model = load(tmp_path / "a.pth")
    assert {parameter.dtype for name, parameter in model.named_parameters() if "table" not in name} == {common}
    assert "mixes" in caplog.text
    assert all(torch.equal(tensor, weights[name].to(common)) for name, tensor in read_checkpoint(
        tmp_path / "a.pth").state_dict.items() if "table" not in name)


def test_eight_bit_weights_load_as_something_that_computes(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", reference(), TINY, dtype=torch.float8_e4m3fn)
    assert read_checkpoint(tmp_path / "a.safetensors").dtype == torch.float8_e4m3fn
    assert load(tmp_path / "a.safetensors").dtype == torch.bfloat16


QUANTIZED = {"bitsandbytes": (".absmax", ".quant_map"), "quanto": ("._data", "._scale"),
             "GPTQ": (".qweight", ".qzeros")}


@pytest.mark.parametrize("program", QUANTIZED)
@pytest.mark.parametrize("diffusers", [False, True])
def test_quantised_files_are_named(program, diffusers, tmp_path):
    weights = to_diffusers(reference()) if diffusers else reference()
    first, second = QUANTIZED[program]
    result = {}
    for name, tensor in weights.items():
        quantized = name.endswith(".weight") and tensor.ndim == 2
        keep = program == "bitsandbytes" or not quantized
        result |= {name: torch.zeros(tensor.numel() // 2, 1, dtype=torch.uint8) if quantized else tensor.contiguous()
                   } if keep else {}
        stem = name if program != "GPTQ" else name.removesuffix(".weight")
        result |= {f"{stem}{first}": torch.zeros(4), f"{stem}{second}": torch.zeros(4)} if quantized else {}
    save_file(result, tmp_path / "a.safetensors")
    assert f"quantised by {program}" in refusal(read_checkpoint, tmp_path / "a.safetensors")


def test_a_key_of_block_one_million_costs_nothing(tmp_path):
    torch.save({**reference(), "blocks.1000000.attn.proj.weight": torch.zeros(1)}, tmp_path / "a.pth")
    assert "block 1000000" in refusal(read_checkpoint, tmp_path / "a.pth")
    torch.save({**reference(), f"blocks.{'9' * 5000}.attn.proj.weight": torch.zeros(1)}, tmp_path / "b.pth")
    assert refusal(read_checkpoint, tmp_path / "b.pth")


def test_configuration_as_given_still_has_to_fit(tmp_path):
    torch.save(reference(), tmp_path / "a.pth")
    assert "depth is 2" in refusal(lambda path: read_checkpoint(path, replace(TINY, depth=3)), tmp_path / "a.pth")
