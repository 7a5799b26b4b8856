"""Files that are not a PixArt transformer: each gets an error that says what it is and what to do."""
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint.samples import TINY, full, reference
from safetensors.torch import save_file

from pixart.checkpoint import CheckpointError, CheckpointNotFound, read_checkpoint, to_diffusers
from pixart.checkpoint.detect import find_layout
from pixart.checkpoint.families import OTHER_FAMILIES, matches

# Names as these models have them in their own files.
NAMES = {
    "LTX-Video": ["patchify_proj.weight", "adaln_single.linear.weight", "caption_projection.linear_1.weight",
                  "transformer_blocks.0.attn1.to_q.weight"],
    "Latte": ["temporal_transformer_blocks.0.attn1.to_q.weight", "adaln_single.linear.weight", "pos_embed.proj.weight"],
    "Open-Sora": ["t_block.1.weight", "x_embedder.proj.weight", "blocks.0.attn_temp.qkv.weight"],
    "Sana": ["t_block.1.weight", "x_embedder.proj.weight", "blocks.0.mlp.inverted_conv.conv.weight"],
    "HunyuanDiT": ["text_embedding_padding", "blocks.0.attn1.Wqkv.weight", "mlp_t5.0.weight"],
    "Flux": ["double_blocks.0.img_attn.norm.key_norm.scale", "single_blocks.0.linear1.weight", "img_in.weight"],
    "Stable Diffusion 3": ["model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight",
                           "first_stage_model.decoder.conv_in.weight", "first_stage_model.decoder.conv_out.weight",
                           "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"],
    "SDXL": ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight",
             "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"],
    "Stable Diffusion 1 or 2": ["model.diffusion_model.input_blocks.0.0.weight",
                                "first_stage_model.decoder.conv_in.weight", "first_stage_model.decoder.conv_out.weight",
                                "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"],
    "Stable Diffusion ControlNet": ["control_model.input_hint_block.0.weight", "control_model.input_blocks.0.0.weight"],
    "VAE": ["taesd_decoder.1.weight", "taesd_encoder.0.weight"],
    "T5": ["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"],
    "CLIP": ["text_model.encoder.layers.0.self_attn.q_proj.weight"],
    "DiT": ["x_embedder.proj.weight", "y_embedder.embedding_table.weight", "blocks.0.adaLN_modulation.1.weight"],
    "ControlNet without its base": ["controlnet.0.copied_block.attn.qkv.weight", "controlnet.0.before_proj.weight"],
    "HED": ["block1.convs.0.weight", "block1.projection.weight", "norm"],
    "a LoRA": ["base_model.model.adaln_single.linear.lora_A.weight",
               "base_model.model.adaln_single.linear.lora_B.weight"],
    "unknown model": ["some.weight", "thing.bias"],
}
DIFFUSERS = {
    "LTXVideoTransformer3DModel": ("LTX-Video", {"num_layers": 1}),
    "AllegroTransformer3DModel": ("Allegro", {"num_layers": 1}),
    "LatteTransformer3DModel": ("Latte", {"num_layers": 1, "caption_channels": 16, "norm_type": "ada_norm_single",
                                          "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4,
                                          "out_channels": 8, "cross_attention_dim": 16, "sample_size": 16,
                                          "patch_size": 2}),
    "HunyuanDiT2DModel": ("HunyuanDiT", {"num_layers": 2, "in_channels": 4, "sample_size": 32, "patch_size": 2}),
    "HunyuanVideoTransformer3DModel": ("HunyuanVideo", {"num_layers": 1, "num_single_layers": 1}),
    "FluxTransformer2DModel": ("Flux", {"num_layers": 1, "num_single_layers": 1}),
    "SD3Transformer2DModel": ("Stable Diffusion 3", {"num_layers": 1}),
    "SanaTransformer2DModel": ("Sana", {"num_layers": 1}),
    "DiTTransformer2DModel": ("DiT", {"num_layers": 1}),
    "AuraFlowTransformer2DModel": ("AuraFlow", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}),
    "CogVideoXTransformer3DModel": ("CogVideoX", {"num_layers": 1}),
    "MochiTransformer3DModel": ("Mochi", {"num_layers": 1}),
    "WanTransformer3DModel": ("Wan", {"num_layers": 1}),
    "Lumina2Transformer2DModel": ("Lumina", {"num_layers": 1}),
    "QwenImageTransformer2DModel": ("Qwen-Image", {"num_layers": 1}),
    "UNet2DConditionModel": ("Stable Diffusion 1 or 2", {}),
    "ControlNetModel": ("Stable Diffusion ControlNet", {}),
    "AutoencoderKL": ("VAE", {}),
    "AutoencoderTiny": ("VAE", {}),
}


def refusal(path: Path, **arguments: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, **arguments)
    assert str(path.name) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", NAMES)
def test_file_of_another_family_is_named(family, tmp_path):
    path = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(2, 2) for name in NAMES[family]}, path)
    assert family in refusal(path)


@pytest.mark.parametrize("model", DIFFUSERS)
def test_diffusers_model_of_another_family_is_named(model):
    diffusers = pytest.importorskip("diffusers")
    family, sizes = DIFFUSERS[model]
    with torch.device("meta"):
        tensors = getattr(diffusers, model)(**sizes).state_dict()
    with pytest.raises(CheckpointError, match=family):
        find_layout(tensors, Path("file"))


@pytest.mark.parametrize("family", [name for name in NAMES if name not in ("a LoRA", "unknown model")])
def test_each_family_has_one_detector(family):
    fitting = {other.name for other in OTHER_FAMILIES if matches(other, NAMES[family])}
    assert len(fitting) == 1, fitting


@pytest.mark.parametrize("variant, diffusers", [("alpha-1024", False), ("sigma-1024", True)])
def test_no_detector_of_another_family_fires_on_pixart(variant, diffusers):
    names = full(variant, diffusers)
    assert not [family.name for family in OTHER_FAMILIES if matches(family, names)]


@pytest.mark.parametrize("key", ["lora_transformer_proj_out.lora_down.weight", "transformer.proj_out.lora_A.weight",
                                 "unet.base_model.model.proj_out.lora_B.weight"])
def test_lora_layouts_send_to_the_lora_loader(key, tmp_path):
    save_file({key: torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    assert "Use the LoRA loader" in refusal(tmp_path / "a.safetensors")


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("kind", ["zip", "old", "plain"])
def test_pickled_object_is_refused_without_running_it(kind, tmp_path):
    target, path = tmp_path / "executed", tmp_path / "model.pth"
    content = {"state_dict": reference(), "extra": Bomb(target)}
    if kind == "plain":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    message = refusal(path)
    assert "nothing in it ran" in message and "weights_only" not in message
    assert "system" in message or kind == "plain"
    assert not target.exists()


def test_truncated_safetensors_tells_both_sizes(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(reference(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    assert f"truncated safetensors file ({len(whole) - 1000} of {len(whole)} bytes)" in refusal(path)
    path.write_bytes(whole[:100])
    assert "truncated safetensors" in refusal(path)


def test_truncated_zip_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(reference(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated or damaged torch file" in refusal(path)


def test_torch_file_named_safetensors_opens_by_its_content(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save(reference(), path)
    assert read_checkpoint(path).config == TINY


def test_other_zip_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "truncated or damaged torch file" in refusal(path)


def test_truncated_old_pickle_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(reference(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated or damaged torch file" in refusal(path)


@pytest.mark.parametrize("content, message", [
    (b"", "empty file"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
    (b"<!DOCTYPE html><html></html>", "a web page"),
    (b"\n<html lang='en'></html>", "a web page"),
    (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
    (b"hello world, this is text", "neither safetensors nor torch"),
    (struct.pack("<Q", 40) + b"{not json at all" + bytes(60), "safetensors header is not readable as JSON"),
    (struct.pack("<Q", 2) + b"{}", "no tensor"),
])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_files_that_are_no_weights(content, message, suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    assert message in refusal(path)


def test_safetensors_whose_header_length_looks_like_html_is_read(tmp_path):
    """0x3c is "<": the first byte of a header of 60, 316, ... bytes."""
    path = tmp_path / "model.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(0x3C)
    path.write_bytes(struct.pack("<Q", 0x3C) + header + bytes(4))
    assert len(header) == 0x3C
    assert "unknown model" in refusal(path)


def test_missing_path_and_empty_folder_are_file_errors_too(tmp_path):
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=path.name) as caught:
            read_checkpoint(path)
        assert isinstance(caught.value, CheckpointNotFound) and isinstance(caught.value, ValueError)


def test_folders_of_other_things_are_named(tmp_path):
    (tmp_path / "unet").mkdir()
    assert "Stable Diffusion pipeline" in refusal(tmp_path)
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text("{}")
    assert "a LoRA" in refusal(lora)
    flux = tmp_path / "flux"
    flux.mkdir()
    (flux / "config.json").write_text('{"_class_name": "FluxTransformer2DModel"}')
    assert "FluxTransformer2DModel" in refusal(flux)


def test_folder_with_several_files_asks_for_one(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file(reference(), tmp_path / name)
    assert "2 weight files (a.safetensors, b.safetensors" in refusal(tmp_path)


def test_missing_shards_are_counted(tmp_path):
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    assert "2 of 2 shards are missing, the first is 1.safetensors" in refusal(tmp_path / next(
        iter(os.listdir(tmp_path))))


def test_index_cannot_point_outside_its_folder(tmp_path):
    path = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    assert "outside its folder" in refusal(path)


def test_wrong_shape_tells_key_both_shapes_and_count(tmp_path):
    weights = reference()
    weights["blocks.1.mlp.fc1.weight"] = torch.zeros(7, 72)
    weights["blocks.1.mlp.fc1.bias"] = torch.zeros(7)
    torch.save(weights, tmp_path / "model.pth")
    message = refusal(tmp_path / "model.pth")
    assert "2 tensors have another shape" in message
    assert "the first is blocks.1.mlp.fc1.weight with (7, 72) instead of (288, 72)" in message


def test_missing_and_unknown_keys_are_counted_and_named(tmp_path):
    weights = reference()
    del weights["blocks.0.attn.proj.bias"], weights["blocks.0.mlp.fc1.bias"]
    weights["blocks.0.surprise"] = torch.zeros(1)
    torch.save(weights, tmp_path / "model.pth")
    message = refusal(tmp_path / "model.pth")
    assert "2 tensors are missing, the first is blocks.0.attn.proj.bias" in message
    assert "1 tensors are unknown, the first is blocks.0.surprise" in message


def test_missing_block_is_not_taken_for_a_shallower_model(tmp_path):
    weights = {name: value for name, value in reference().items() if not name.startswith("blocks.0.")}
    torch.save(weights, tmp_path / "model.pth")
    assert "15 tensors are missing, the first is blocks.0." in refusal(tmp_path / "model.pth")


def test_missing_part_of_a_stacked_tensor_is_named(tmp_path):
    weights = to_diffusers(reference())
    del weights["transformer_blocks.1.attn1.to_v.weight"]
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "model.safetensors")
    assert "1 tensors are missing, the first is transformer_blocks.1.attn1.to_v.weight" in refusal(
        tmp_path / "model.safetensors")


def test_content_that_is_no_table_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "model.pth")
    assert "a list, not a table of weights" in refusal(tmp_path / "model.pth")


def test_damaged_configuration_in_the_header_is_refused(tmp_path):
    save_file(reference(TINY), tmp_path / "a.safetensors", {"pixart_config": '{"depth": 2, "colour": 1}'})
    assert "colour" in refusal(tmp_path / "a.safetensors")
