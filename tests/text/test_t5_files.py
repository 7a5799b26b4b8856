"""Every layout of a T5 encoder loads the same, and every wrong file gets its own error."""
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixart.text import T5Encoder

from .conftest import copy_config, write_tokenizer

Weights = dict[str, Tensor]
PROMPTS = ["a red cat on the house", "one two three"]


def shards(weights: Weights, folder: Path, suffix: str, index: bool = True) -> Path:
    """Two shards in Hugging Face names, with their index or without."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names, places = sorted(weights), {}
    for number, part in enumerate((names[:11], names[11:]), 1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        tensors = {name: weights[name].clone() for name in part}
        save_file(tensors, folder / file) if suffix == "safetensors" else torch.save(tensors, folder / file)
        places.update(dict.fromkeys(part, file))
    if index:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def single(weights: Weights, folder: Path) -> Path:
    save_file(weights, folder / "t5.safetensors")
    return folder / "t5.safetensors"


def pickled(weights: Weights, folder: Path, **options: bool) -> Path:
    torch.save(weights, folder / "t5.bin", **options)
    return folder / "t5.bin"


def full_model(weights: Weights, folder: Path) -> Path:
    """Both embedding names, decoder and head, as in the files of the complete T5."""
    extra = {"encoder.embed_tokens.weight": weights["shared.weight"].clone(), "lm_head.weight": torch.zeros(64, 64),
             "decoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(64, 64),
             "decoder.embed_tokens.weight": torch.zeros(64, 64)}
    return single({**weights, **extra}, folder)


def bundle(weights: Weights, folder: Path) -> Path:
    """Inside a checkpoint with other models."""
    extra = {"text_encoders.clip_l.transformer.text_model.encoder.layers.0.x": torch.zeros(2),
             "model.diffusion_model.joint_blocks.0.x": torch.zeros(2)}
    return single({**prefixed(weights, "text_encoders.t5xxl.transformer."), **extra}, folder)


def renamed_embedding(weights: Weights, folder: Path) -> Path:
    return single({"encoder.embed_tokens.weight" if name == "shared.weight" else name: value
                   for name, value in weights.items()}, folder)


def pipeline(weights: Weights, folder: Path) -> Path:
    inner = folder / "text_encoder"
    inner.mkdir()
    save_file(weights, inner / "model.safetensors")
    (folder / "tokenizer").mkdir()
    shutil.move(folder / "tokenizer.json", folder / "tokenizer" / "tokenizer.json")
    return folder


LAYOUTS: dict[str, Callable[[Weights, Path], Path]] = {
    "single file": single,
    "host prefix": lambda w, f: single(prefixed(w, "text_encoders.t5xxl.transformer."), f),
    "short prefix": lambda w, f: single(prefixed(w, "t5xxl.transformer."), f),
    "full T5": full_model,
    "bundle": bundle,
    "embedding under the encoder's name": renamed_embedding,
    "PyTorch file": pickled,
    "old PyTorch file": lambda w, f: pickled(w, f, _use_new_zipfile_serialization=False),
    "sharded folder": lambda w, f: shards(w, f, "safetensors"),
    "sharded folder without index": lambda w, f: shards(w, f, "safetensors", index=False),
    "one of the shards": lambda w, f: shards(w, f, "safetensors") / "model-00002-of-00002.safetensors",
    "the index": lambda w, f: shards(w, f, "safetensors") / "model.safetensors.index.json",
    "sharded .bin folder": lambda w, f: shards(w, f, "bin"),
    "pipeline folder": pipeline,
    "upper-case suffix": lambda w, f: single(w, f).rename(f / "t5.SAFETENSORS"),
    "short suffix": lambda w, f: single(w, f).rename(f / "t5.sft"),
    "PyTorch file in upper case": lambda w, f: pickled(w, f).rename(f / "T5.PTH"),
    "a folder with one file in upper case": lambda w, f: single(w, f).rename(f / "T5.SAFETENSORS").parent,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_features(layout: str, t5_folder: Path, t5_weights: Weights,
                                              tmp_path: Path) -> None:
    expected = T5Encoder(t5_folder, bits=16).encode(PROMPTS, 120).context
    write_tokenizer(tmp_path)
    encoder = T5Encoder(LAYOUTS[layout](t5_weights, tmp_path), bits=16, tokenizer=tmp_path)
    assert torch.equal(encoder.encode(PROMPTS, 120).context, expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_shards_and_single_file_quantise_the_same(t5_folder: Path, t5_weights: Weights, tmp_path: Path,
                                                  bits: int) -> None:
    copy_config(t5_folder, tmp_path)
    a, b = T5Encoder(t5_folder, bits), T5Encoder(shards(t5_weights, tmp_path, "bin"), bits)
    assert torch.equal(a.encode(PROMPTS, 120).context, b.encode(PROMPTS, 120).context)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-6), (torch.float16, 0.015),
                                              (torch.float8_e4m3fn, 0.2)])
def test_other_storage_types_load(t5_folder: Path, t5_weights: Weights, tmp_path: Path,
                                  dtype: torch.dtype, bound: float) -> None:
    path = single({name: value.to(dtype) for name, value in t5_weights.items()}, tmp_path)
    expected = T5Encoder(t5_folder, bits=16).encode(PROMPTS, 120).context
    got = T5Encoder(path, bits=16, tokenizer=t5_folder).encode(PROMPTS, 120).context
    assert float((got - expected).norm() / expected.norm()) < bound


def test_scaled_float8_is_multiplied_by_its_scale(t5_folder: Path, t5_weights: Weights, tmp_path: Path) -> None:
    stored: Weights = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, value in t5_weights.items():
        if not name.endswith((".q.weight", ".wo.weight")):
            stored[name] = value
            continue
        scale = value.abs().max() / 448
        stored[name] = (value / scale).to(torch.float8_e4m3fn)
        stored[name.replace(".weight", ".scale_weight")] = scale
    expected = T5Encoder(t5_folder, bits=16).encode(PROMPTS, 120).context
    encoder = T5Encoder(single(stored, tmp_path), bits=16, tokenizer=t5_folder)
    got = encoder.encode(PROMPTS, 120).context
    assert float((got - expected).norm() / expected.norm()) < 0.06
    assert encoder.parameters == T5Encoder(t5_folder, bits=16).parameters


def test_settings_that_shapes_cannot_tell_come_from_config_json(t5_folder: Path, t5_weights: Weights,
                                                               tmp_path: Path) -> None:
    for name, changes in (("same", {}), ("other", {"relative_attention_max_distance": 20})):
        copy_config(t5_folder, tmp_path / name, **changes)
        save_file(t5_weights, tmp_path / name / "model.safetensors")
    prompt = ["a " * 60]
    same, other = (T5Encoder(tmp_path / name, 16).encode(prompt, 120).context for name in ("same", "other"))
    assert not torch.equal(same, other)
    assert torch.equal(same, T5Encoder(t5_folder / "model.safetensors", 16).encode(prompt, 120).context)


def test_a_config_of_another_model_in_a_mixed_folder_does_not_matter(t5_folder: Path, t5_weights: Weights,
                                                                    tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("that of another model")
    encoder = T5Encoder(single(t5_weights, tmp_path), 16, tokenizer=t5_folder)
    assert encoder.tokenizer.source.parent == t5_folder


# --- wrong files -------------------------------------------------------------------------------------------------

def ungated(weights: Weights) -> Weights:
    kept = {name.replace("wi_0", "wi"): value for name, value in weights.items() if "wi_1" not in name}
    return kept


def umt5(weights: Weights) -> Weights:
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return {**weights, name.replace("block.0", "block.1"): weights[name].clone()}


WRONG: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "T5 v1.0": (ungated, r"looks like a T5 v1\.0 encoder"),
    "UMT5": (umt5, "looks like a UMT5 encoder"),
    "mT5": (lambda w: {**w, "shared.weight": torch.zeros(250112, 64)}, r"multilingual T5 \(mT5, 250112 ids\)"),
    "CLIP": (lambda w: {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2)}, "like a CLIP text encoder"),
    "language model": (lambda w: {"model.layers.0.self_attn.q_proj.weight": torch.zeros(2)},
                       "looks like a language model"),
    "PixArt": (lambda w: {"blocks.0.attn.qkv.weight": torch.zeros(2), "y_embedder.y_proj.fc1.weight": torch.zeros(2)},
               "looks like a PixArt transformer"),
    "VAE": (lambda w: {"decoder.conv_in.weight": torch.zeros(2)}, "looks like a VAE"),
    "anything": (lambda w: {"foo": torch.zeros(2)}, r"something other than a T5 \(1 tensors, such as foo\)"),
    "no tensors": (lambda w: {}, "no tensor in it"),
    "decoder": (lambda w: {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(2)}, "decoder of a T5"),
    "a layer missing": (lambda w: {n: v for n, v in w.items() if "block.1.layer.1" not in n},
                        r"lacks 4 of the 30 tensors .* first is encoder\.block\.1\.layer\.1"),
    "no embedding": (lambda w: {n: v for n, v in w.items() if n != "shared.weight"}, r"it lacks shared\.weight"),
    "wrong shape": (lambda w: {**w, "encoder.block.2.layer.1.DenseReluDense.wo.weight": torch.zeros(64, 99)},
                    r"1 tensors have the wrong shape, .*wo\.weight with \(64, 99\)\. Expected \(64, 128\)"),
    "two encoders": (lambda w: {**prefixed(w, "a."), **{"b." + n: v.clone() for n, v in w.items()}},
                     "2 T5 encoders"),
    "integers": (lambda w: {n: v.to(torch.int8) for n, v in w.items()}, "int8 numbers.*quantised by another program"),
    "not finite": (lambda w: {**w, "encoder.final_layer_norm.weight": torch.full((64,), float("nan"))},
                   r"encoder\.final_layer_norm\.weight holds numbers that are not finite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused_and_named(kind: str, t5_folder: Path, t5_weights: Weights, tmp_path: Path) -> None:
    make, message = WRONG[kind]
    path = single(make(t5_weights), tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        T5Encoder(path, 16, tokenizer=t5_folder).encode(["a"], 120)
    assert str(path) in str(error.value)


def test_a_folder_of_another_family_is_refused_by_its_config(t5_folder: Path, t5_weights: Weights,
                                                             tmp_path: Path) -> None:
    copy_config(t5_folder, tmp_path, model_type="umt5")
    save_file(t5_weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="a model of the umt5 family"):
        T5Encoder(tmp_path, 16)


def test_a_folder_that_was_quantised_before_is_refused(t5_folder: Path, t5_weights: Weights, tmp_path: Path) -> None:
    copy_config(t5_folder, tmp_path, quantization_config={"load_in_8bit": True})
    save_file(t5_weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="already quantised"):
        T5Encoder(tmp_path, 16)


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -10])
def test_a_truncated_safetensors_file_is_refused(t5_weights: Weights, t5_folder: Path, tmp_path: Path,
                                                 keep: int) -> None:
    path = single(t5_weights, tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="an empty file|neither safetensors nor torch|a truncated safetensors file"):
        T5Encoder(path, 16, tokenizer=t5_folder)


@pytest.mark.parametrize("keep", [4, 2000, -10])
def test_a_truncated_pytorch_file_is_refused(t5_weights: Weights, t5_folder: Path, tmp_path: Path, keep: int) -> None:
    path = pickled(t5_weights, tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated or damaged torch file"):
        T5Encoder(path, 16, tokenizer=t5_folder)


class Trap:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("/tmp/pixart-trap-was-run"),)


def test_a_pickle_with_code_is_refused_and_not_run(t5_folder: Path, tmp_path: Path) -> None:
    torch.save({"encoder": Trap()}, tmp_path / "t5.bin")
    with pytest.raises(ValueError, match="more than weights .*nothing in it ran"):
        T5Encoder(tmp_path / "t5.bin", 16, tokenizer=t5_folder)
    assert not Path("/tmp/pixart-trap-was-run").exists()


def test_a_missing_shard_is_named(t5_folder: Path, t5_weights: Weights, tmp_path: Path) -> None:
    shards(t5_weights, tmp_path, "safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 shards are missing.*model-00002-of-00002\.safetensors"):
        T5Encoder(tmp_path, 16, tokenizer=t5_folder)


def test_missing_files_and_empty_folders_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        T5Encoder(tmp_path / "t5.safetensors", 16)
    with pytest.raises(FileNotFoundError, match=r"Expected model\.safetensors"):
        T5Encoder(tmp_path, 16)


def test_several_files_in_a_folder_ask_for_a_choice(t5_weights: Weights, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(t5_weights, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"2 weight files \(a\.safetensors, b\.safetensors"):
        T5Encoder(tmp_path, 16)


def test_gguf_and_unfinished_downloads_are_named(t5_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t5.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match="a GGUF file"):
        T5Encoder(tmp_path / "t5.gguf", 16, tokenizer=t5_folder)
    (tmp_path / "t5.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        T5Encoder(tmp_path / "t5.safetensors", 16, tokenizer=t5_folder)


def test_a_single_file_without_a_tokenizer_says_which_one_to_name(t5_weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="t5_tokenizer of ComfyUI"):
        T5Encoder(single(t5_weights, tmp_path), 16)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(t5_folder: Path, t5_weights: Weights,
                                                             tmp_path: Path) -> None:
    write_tokenizer(tmp_path, [f"word{i}" for i in range(100)])
    with pytest.raises(ValueError, match="103 ids, but the T5 in .* only 64"):
        T5Encoder(single(t5_weights, tmp_path), 16, tokenizer=tmp_path)


def test_loading_leaves_the_file_as_it_was(t5_folder: Path, t5_weights: Weights, tmp_path: Path) -> None:
    path = single(t5_weights, tmp_path)
    before = path.read_bytes()
    T5Encoder(path, 16, tokenizer=t5_folder).encode(PROMPTS, 120)
    assert path.read_bytes() == before and load_file(path).keys() == t5_weights.keys()
