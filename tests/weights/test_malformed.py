"""Files that are wrong in one place: one message each, soon, that names what was found and the file."""
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.adapters_at_hand import written
from safetensors.torch import save_file
from torch import Tensor
from weights import mutations
from weights.refusals import DEEP, HUGE, NAN, Tensors, edited, filled, put, refused, same

from pixart.checkpoint import load, load_control
from pixart.checkpoint.feedback import load_feedback, save_feedback
from pixart.checkpoint.lora import merge_lora, read_lora
from pixart.control.hed import HED, load_hed
from pixart.model.feedback import Feedback
from pixart.prepare.shards import Shard, load_null, write_shard
from pixart.quantize.calibrate import Inputs, load_inputs, save_inputs
from pixart.reward.record import load_noise, save_noise
from pixart.text.encoded import Encoded, load_embeddings, save_embeddings
from pixart.text.files import T5Files
from pixart.text.t5 import _config, _load
from pixart.text.tokens import PromptReport
from pixart.train.data import PreparedFolder
from pixart.train.state import read_state, write_state
from pixart.weights.safetensors_file import write_tensors

# --- quantised weights ------------------------------------------------------------------------------------------------

LAYER, FP4 = "blocks.0.attn.qkv", b'{"format": "pixart_fp4", "version": 1, '


def marked(text: bytes) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.__setitem__(f"{LAYER}.comfy_quant",
                                               torch.frombuffer(bytearray(text), dtype=torch.uint8))


@pytest.fixture(scope="module")
def quantized_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    made: dict[str, bytes] = {}

    def of(target: str) -> bytes:
        if target not in made:
            made[target] = mutations.quantized(target)(tmp_path_factory.mktemp(target)).read_bytes()
        return made[target]
    return of


@pytest.mark.parametrize("target, change, says", [
    ("fp4", filled(f"{LAYER}.weight_scale", NAN, torch.float16), "not finite"),
    ("fp4", marked(FP4 + b'"float": ["e2m1"], "group_size": 32}'), "float is ['e2m1']"),
    ("fp4", marked(FP4 + b'"float": "e2m1", "group_size": 1e400}'), "no number"),
    ("fp4", marked('{"format": "pixart_fp4"}'.encode("utf-16")), "version is no number"),
    ("fp4", lambda t: t.__setitem__(f"{LAYER}.pre_quant_scale", torch.full((96,), NAN)), "not finite"),
    ("nvfp4", put(f"{LAYER}.weight_scale_2", lambda scale: scale * 0 + 3e38), "not finite"),
    ("mxfp8", put(f"{LAYER}.weight_scale", lambda scale: torch.full_like(scale, 255)), "not finite"),
    ("float8_e4m3fn", filled(f"{LAYER}.weight_scale", 3e38), "not finite"),
    ("int8_tensorwise", lambda t: t.__setitem__(f"{LAYER}.weight_scale", torch.ones(7)), "instead of float32 of shape"),
])
def test_quantised_weights(quantized_file, tmp_path, target, change, says):
    (tmp_path / "model.safetensors").write_bytes(quantized_file(target))
    path = edited(tmp_path / "model.safetensors", change)
    refused(load, path, says)
    refused(lambda path: load(path, quantized=True), path, says)


@pytest.mark.parametrize("target", ["fp4", "nvfp4", "float8_e4m3fn", "asym_w4a8_int8"])
def test_what_a_format_cannot_hold_is_not_written(tmp_path, target):
    model = mutations.random_model(mutations.QUANTIZED_CONFIG)
    model.blocks[0].attn.qkv.bias[0] = 1e6                         # what is not quantised is kept in float16
    plain = mutations.save_checkpoint(tmp_path / "plain.safetensors", model)
    refused(lambda path: mutations.convert(path, target, tmp_path / "new.safetensors"), plain, "too large for float16")
    model.blocks[0].attn.qkv.bias[0] = 0
    model.blocks[0].attn.qkv.weight[0, 0] = 3e38
    mutations.save_checkpoint(plain, model)
    if target in ("fp4", "asym_w4a8_int8"):
        refused(lambda path: mutations.convert(path, target, tmp_path / "new.safetensors"), plain, f"{LAYER} holds")
        assert [path.name for path in tmp_path.iterdir()] == ["plain.safetensors"]


def test_a_narrow_type_is_not_saved_with_infinities(tmp_path):
    model = mutations.random_model()
    model.blocks[0].attn.qkv.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="blocks.0.attn.qkv.weight holds numbers too large for float16; save it with"):
        mutations.save_checkpoint(tmp_path / "half.safetensors", model, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


# --- LoRA, ControlNet -------------------------------------------------------------------------------------------------

QKV = "lora_unet_blocks_0_attn_qkv"


def added(name: str, tensor: Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.__setitem__(name, tensor)


@pytest.mark.parametrize("change, says", [
    (added(f"{QKV}.alpha", torch.tensor(1e38)), "alpha is 1e+38"),
    (added(f"{QKV}.alpha", torch.tensor(1j)), "holds 1 complex numbers"),
    (added(f"{QKV}.alpha", torch.ones(3)), "holds 3 numbers"),
    (added(f"{QKV}.oft_blocks", torch.ones(18, 4, 4)), "two methods for one layer"),
    (added(f"{QKV}.lora_mid.weight", torch.ones(2, 2)), "and its partners do not fit"),
    (put(f"{QKV}.lora_A.weight", lambda t: t[:1]), "and its partners do not fit"),
    (put(f"{QKV}.lora_A.weight", lambda t: t[..., None, None, None]), "and its partners do not fit"),
    (lambda t: t.pop(f"{QKV}.lora_A.weight"), "has no partner"),
    (lambda t: t.update({name: tensor * 1e25 for name, tensor in t.items()}), "too large to be a finite number"),
])
def test_a_lora(tmp_path, change, says):
    model = mutations.random_model()
    save_file(written("LoRA of peft", "kohya", {"blocks.0.attn.qkv": model.blocks[0].attn.qkv.weight}),
              tmp_path / "lora.safetensors")

    def opened(path: Path) -> object:
        return merge_lora(model, read_lora(path))
    refused(opened, edited(tmp_path / "lora.safetensors", change), says)


@pytest.mark.parametrize("change, metadata, says", [
    (added("controlnet.999999999.after_proj.weight", torch.ones(24, 24)), {}, "a tensor of control block 999999999"),
    (added("controlnet.-1.after_proj.weight", torch.ones(24, 24)), {}, "unknown kind of ControlNet"),
    (put("controlnet.0.before_proj.weight", lambda t: t[0, 0]), {}, "with () instead of (24, 24)"),
    (filled("controlnet.0.before_proj.bias", HUGE, torch.float64), {}, "too large for float32"),
    (same, {"pixart_config": DEEP}, "nested too deeply"),
])
def test_a_control_net(tmp_path, change, metadata, says):
    refused(load_control, edited(mutations.control(tmp_path), change, **metadata), says)


# --- feedback, noise, encoded prompts, calibration --------------------------------------------------------------------

@pytest.mark.parametrize("change, metadata, says", [
    (filled("block.attn.proj.bias", HUGE, torch.float64), {}, "too large for float32"),
    (filled("block.attn.proj.bias", 1, torch.int8), {}, "holds int8 numbers"),
    (same, {"pixart_feedback": '{"version": 1, "first": 1, "last": 0, "steps": 20}'}, "blocks 1 to 0"),
    (same, {"pixart_feedback": '{"version": true, "first": 0, "last": 1, "steps": 20}'}, "version is True"),
    (same, {"pixart_feedback": '{"version": 1, "first": 0, "last": 1, "steps": Infinity}'}, "steps is inf"),
])
def test_feedback(tmp_path, change, metadata, says):
    path = save_feedback(tmp_path / "f.safetensors", Feedback(mutations.CONFIG, 0, 1, 20))
    refused(load_feedback, edited(path, change, **metadata), says)


@pytest.mark.parametrize("change, says", [
    (filled("noise", HUGE, torch.float64), "too large for float32"), (filled("noise", 1, torch.int64), "int64 numbers"),
    (filled("noise", NAN), "not finite"), (lambda t: t.__setitem__("other", t.pop("noise")), "no noise"),
    (put("noise", lambda noise: noise[:, :, :0]), "(1, 4, 0, 8)"),
    (put("noise", lambda noise: noise.to(torch.complex64)), "complex64 numbers"),
])
def test_noise(tmp_path, change, says):
    save_noise(tmp_path / "n.safetensors", torch.randn(1, 4, 8, 8), {})
    refused(load_noise, edited(tmp_path / "n.safetensors", change), says)


REPORT = {"prompt": "a", "text": "a", "tokens": 4, "needed": 4, "limit": 120, "cut": "", "notes": []}


@pytest.mark.parametrize("change, metadata, says", [
    (filled("context", NAN), {}, "context holds numbers that are not finite"),
    (filled("context", HUGE, torch.float64), {}, "too large for float32"),
    (filled("context", 1, torch.int8), {}, "context holds int8 numbers"),
    (put("mask", torch.zeros_like), {}, "without a single token"),
    (put("mask", lambda mask: mask.float()), {}, "mask (1, 4) torch.float32, 1 prompts"),
    (put("context", lambda context: context[0]), {}, "context (4, 8)"), (same, {"reports": "[]"}, "bool, 0 prompts"),
    (lambda t: t.pop("context"), {}, "without context"),
    (same, {"reports": DEEP}, "nested too deeply"), (same, {"reports": "7"}, "reports is 7"),
    (same, {"reports": json.dumps([{**REPORT, "prompt": 5}])}, "prompt is 5"),
    (same, {"reports": json.dumps([{**REPORT, "tokens": "many"}])}, "tokens is 'many'"),
    (same, {"reports": json.dumps([{"prompt": "a"}])}, "lacks cut"),
])
def test_encoded_prompts(tmp_path, change, metadata, says):
    path = tmp_path / "e.safetensors"
    save_embeddings(path, Encoded(torch.randn(1, 4, 8), torch.ones(1, 4, dtype=torch.bool),
                                  [PromptReport("a", "a", 4, 4, 120)]))
    assert load_embeddings(path).reports[0].prompt == "a"
    refused(load_embeddings, edited(path, change, **metadata), says)


def test_a_header_longer_than_the_file_is_not_read(tmp_path):
    (tmp_path / "e.safetensors").write_bytes(struct.pack("<Q", 3 << 30) + b"{")
    for opener in (load_embeddings, load_noise, load_feedback, load):
        refused(opener, tmp_path / "e.safetensors", "a safetensors header of 3221225472 bytes")


@pytest.mark.parametrize("change, says", [
    (put("grid", lambda grid: grid[0]), "do not fit each other"), (filled("tokens", NAN), "not finite"),
    (put("grid", lambda grid: grid + 0.5), "do not fit each other"), (lambda t: t.pop("text"), "without text"),
    (put("tokens", lambda rows: rows[:, :-1]), "do not fit each other"),
    (put("text", lambda rows: rows[:1]), "do not fit each other"),
    (put("mask", lambda mask: mask[:, :2]), "do not fit each other"),
    (put("mask", lambda mask: mask.float()), "do not fit each other"), (filled("text", 1, torch.int8), "int8 numbers")])
def test_calibration(tmp_path, change, says):
    path = tmp_path / "c.safetensors"
    save_inputs(path, Inputs(torch.randn(2, 4, 8), torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool),
                             torch.randn(2, 6, 8), (2, 2)))
    assert load_inputs(path).grid == (2, 2)
    refused(load_inputs, edited(path, change), says)


# --- prepared folders -------------------------------------------------------------------------------------------------

def prepared(folder: Path) -> Path:
    shard, images = folder / "bucket-8x8-00000.safetensors", {"latents": (2, 4, 8, 8), "noise": (2, 4, 8, 8)}
    numbers = {name: torch.randn(shape).half() for name, shape in {**images, "features": (2, 3, 8)}.items()}
    write_shard(shard, {**numbers, "mask": torch.ones(2, 3, dtype=torch.uint8), "size": torch.full((2, 2), 64.0),
                        "aspect": torch.ones(2)}, {"latent_space": "sd", "edges": "none"}, ["a", "b"])
    write_tensors(folder / "null.safetensors", {"features": torch.randn(1, 8).half(), "mask": torch.ones(1).byte()})
    return shard


def read(path: Path) -> object:
    data = PreparedFolder(path.parent)
    return Shard(path).keys, data.without_caption(data.batch(torch.Generator().manual_seed(0), 2))


@pytest.mark.parametrize("change, metadata, says", [
    (put("latents", lambda t: t[0, 0, 0, 0]), {}, "latents has 0 dimensions"),
    (put("mask", lambda t: t.float()), {}, "mask has 2 dimensions of float32"),
    (put("features", lambda t: t.to(torch.int8)), {}, "features has 3 dimensions of int8"),
    (put("aspect", lambda t: t.to(torch.complex64)), {}, "aspect has 1 dimensions of complex64"),
    (filled("noise", HUGE, torch.float64), {}, "noise, rows"), (filled("latents", NAN), {}, "not finite"),
    (same, {"caption_tokens": "many"}, "caption_tokens is not readable"),
    (same, {"caption_tokens": "1000000000"}, "caption_tokens is 1000000000"),
    (same, {"caption_tokens": "-5"}, "caption_tokens is -5"),
    (same, {"keys": DEEP}, "keys in its header is nested too deeply"), (same, {"keys": "7"}, "keys is 7"),
])
def test_a_shard_of_pairs(tmp_path, change, metadata, says):
    path = prepared(tmp_path)
    read(path)
    with pytest.raises(ValueError) as caught:
        read(edited(path, change, **metadata))
    assert says in str(caught.value) and path.name in str(caught.value)


@pytest.mark.parametrize("change, says", [
    (filled("features", HUGE, torch.float64), "too large for float32"), (put("mask", torch.zeros_like), "0 tokens"),
    (put("features", lambda t: t.to(torch.complex64)), "complex64"), (lambda t: t.pop("mask"), "mask")])
def test_the_empty_caption_of_a_prepared_folder(tmp_path, change, says):
    prepared(tmp_path)
    edited(tmp_path / "null.safetensors", change)
    with pytest.raises(ValueError, match=f"(?s){says}.*|.*{says}") as caught:
        load_null(tmp_path)
    assert "null.safetensors" in str(caught.value)


# --- T5, edge network -------------------------------------------------------------------------------------------------

QUERY = "encoder.block.0.layer.0.SelfAttention.q"


def scaled(scale: Tensor) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[f"{QUERY}.weight"] = tensors[f"{QUERY}.weight"].to(torch.float8_e4m3fn)
        tensors[f"{QUERY}.scale_weight"] = scale
    return change


@pytest.mark.parametrize("change, says", [
    (put("shared.weight", lambda t: t[:0]), "shared.weight of shape (0, 32)"),
    (filled("shared.weight", HUGE, torch.float64), "too large for bfloat16"),
    (filled("shared.weight", 3.4e38), "too large for bfloat16"),
    (added("encoder.block.400.layer.0.layer_norm.weight", torch.ones(32)), "a tensor of layer 400 among 2"),
    (scaled(torch.ones(32)), f"{QUERY}.scale_weight has shape (32,)"),
    (scaled(torch.tensor(3e38)), "scaled, holds numbers"), (scaled(torch.tensor(1j)), "complex64 numbers"),
])
def test_a_t5_folder(tmp_path, change, says):
    (tmp_path / "t5").mkdir()
    mutations.t5(tmp_path / "t5")
    edited(tmp_path / "t5" / "model.safetensors", change)

    def opened(path: Path) -> object:
        files = T5Files(path)
        return _load(files, _config(files), 16, torch.device("cpu"), None)
    refused(opened, tmp_path / "t5", says)


@pytest.mark.parametrize("change, says", [
    (filled("norm", HUGE, torch.float64), "too large for float32"), (filled("norm", 1, torch.int64), "int64 numbers"),
    (filled("norm", NAN, torch.float8_e4m3fn), "not finite")])
def test_the_edge_network(tmp_path, change, says):
    save_file(HED().state_dict(), tmp_path / "hed.safetensors")
    refused(load_hed, edited(tmp_path / "hed.safetensors", change), says)


@pytest.mark.parametrize("content", [[1], {"a": 1}, {"step": "x"}, {"step": -1}, {"step": 2.5}])
def test_a_training_state(tmp_path, content: Any):
    torch.save(content, tmp_path / "state.pt")
    refused(read_state, tmp_path / "state.pt", "no training state")


def test_a_damaged_training_state_is_one_message_wherever_it_is_damaged(tmp_path):
    write_state(tmp_path / "right.pt", {"step": 3, "model": {"a": torch.randn(40, 40)}, "name": "x"})
    content, clear = (tmp_path / "right.pt").read_bytes(), 0
    for seed in range(200):
        chance, damaged = random.Random(seed), bytearray(content)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(min(len(damaged), chance.choice((300, 1500))))] = chance.choice((0, 255, 40, 92))
        (tmp_path / "state.pt").write_bytes(damaged)
        try:
            read_state(tmp_path / "state.pt")
        except ValueError:
            clear += 1
    assert clear > 100
