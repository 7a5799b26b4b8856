"""ControlNet files: every layout gives the same network, everything else is refused by name."""
import json
from dataclasses import replace

import pytest
import torch
from checkpoint.samples import TINY, equal, reference
from safetensors.torch import save_file

from pixart.checkpoint import CheckpointError, load, load_control, read_control, save_control
from pixart.checkpoint.control import control_shapes
from pixart.checkpoint.layouts import diffusers_names
from pixart.config import VARIANTS, KVCompression


def control_weights(blocks: int = 1, seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in control_shapes(TINY, blocks).items()}


def as_diffusers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Key mapping written out by hand: block names through table 3.2, projections as they are."""
    result = {}
    for name, tensor in weights.items():
        _, index, part, *rest = name.split(".")
        if part != "copied_block":
            result[f"controlnet_blocks.{index}.{part}.{rest[0]}"] = tensor
            continue
        theirs = diffusers_names(".".join(["blocks", "0", *rest]))
        for piece, value in zip(theirs, tensor.chunk(len(theirs))):
            inner = piece.removeprefix("transformer_blocks.0.")
            result[f"controlnet_blocks.{index}.transformer_block.{inner}"] = value.clone()
    return result


def test_bundle_control_only_and_diffusers_layouts_give_the_same_weights(tmp_path):
    weights = control_weights()
    base = {f"base_model.{name}": tensor for name, tensor in reference().items()}
    torch.save({"state_dict": {**base, **weights}}, tmp_path / "bundle.pth")
    save_file(weights, tmp_path / "alone.safetensors")
    folder = tmp_path / "diffusers"
    folder.mkdir()
    save_file(as_diffusers(weights), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "PixArtControlNetAdapterModel", "num_layers": 1}))
    for path, layout in ((tmp_path / "bundle.pth", "bundle"), (tmp_path / "alone.safetensors", "control-only"),
                         (folder, "diffusers")):
        found = read_control(path)
        assert equal(found.state_dict, weights), layout
        assert found.blocks == 1 and found.config.hidden == 72 and found.config.heads == 1
        assert f"{layout} layout" in found.description
        assert found.knows_base == (layout == "bundle")


def test_a_bundle_tells_the_base_and_its_base_still_loads(tmp_path):
    base = {f"base_model.{name}": tensor for name, tensor in reference().items()}
    torch.save({"state_dict": {**base, **control_weights()}}, tmp_path / "bundle.pth")
    found = read_control(tmp_path / "bundle.pth")
    assert found.config == load(tmp_path / "bundle.pth").config
    assert "for PixArt-alpha 1024 with 2 blocks" in found.description


def test_saved_alone_it_comes_back_with_its_base_configuration(tmp_path):
    save_file(control_weights(), tmp_path / "a.safetensors")
    control = load_control(tmp_path / "a.safetensors")
    control.config = TINY
    save_control(tmp_path / "new" / "b.safetensors", control)
    again = read_control(tmp_path / "new" / "b.safetensors")
    assert equal(again.state_dict, control_weights()) and again.config == TINY and again.knows_base
    half = read_control(save_control(tmp_path / "c.safetensors", control, torch.float16))
    assert half.dtype == torch.float16 and half.description.endswith("fp16, control-only layout")
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "c.safetensors", "new"}


def test_norm_and_compression_of_a_controlnet_alone_are_seen(tmp_path):
    config = replace(TINY, depth=28, qk_norm=True, kv_compression=KVCompression("conv", 2, (1, 2)))
    weights = {name: torch.randn(shape) for name, shape in control_shapes(config, 3).items()}
    save_file(weights, tmp_path / "a.safetensors")
    found = load_control(tmp_path / "a.safetensors")
    assert found.config.qk_norm and found.config.kv_compression == config.kv_compression
    assert [hasattr(each.copied_block.attn, "sr") for each in found.controlnet] == [False, True, True]


@pytest.mark.parametrize("starts", ["", "controlnet.1."])
def test_in_8_bits_it_computes_in_bf16(tmp_path, starts):
    weights = {name: tensor.to(torch.float8_e4m3fn if name.startswith(starts) and tensor.ndim == 2 else torch.bfloat16)
               for name, tensor in control_weights(2).items()}
    save_file(weights, tmp_path / "control.safetensors")
    control = load_control(tmp_path / "control.safetensors")
    tables = {name for name in control.state_dict() if "scale_shift_table" in name}
    assert {tensor.dtype for name, tensor in control.state_dict().items() if name not in tables} == {torch.bfloat16}
    kept = read_control(tmp_path / "control.safetensors").state_dict        # as they are, for who casts layer by layer
    assert all(torch.equal(kept[name].float(), tensor.float()) and kept[name].dtype == tensor.dtype
               for name, tensor in weights.items())


def test_full_size_shapes_are_the_published_ones():
    shapes = control_shapes(VARIANTS["alpha-1024"], 13)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 294_917_760
    assert shapes["controlnet.12.copied_block.attn.qkv.weight"] == (3456, 1152)
    assert [name for name in shapes if "before_proj" in name] == ["controlnet.0.before_proj.weight",
                                                                  "controlnet.0.before_proj.bias"]


def without(weights: dict, name: str) -> dict:
    return {key: value for key, value in weights.items() if key != name}


REFUSED = {
    "a model": (lambda: reference(), "a PixArt model without a ControlNet"),
    "a Stable Diffusion ControlNet": (lambda: {"input_hint_block.0.weight": torch.zeros(1)},
                                      "Stable Diffusion ControlNet"),
    "anything": (lambda: {"a": torch.zeros(1)}, "none of them of a PixArt ControlNet"),
    "a LoRA": (lambda: {"x.lora_A.weight": torch.zeros(1)}, "a LoRA"),
    "a hole": (lambda: without(control_weights(2), "controlnet.1.copied_block.mlp.fc1.weight"), "1 tensors are"),
    "half a stack": (lambda: without(as_diffusers(control_weights()),
                                     "controlnet_blocks.0.transformer_block.attn1.to_k.weight"), "attn1.to_k.weight"),
    "an unknown part": (lambda: {**control_weights(), "controlnet.0.gate.weight": torch.zeros(1)}, "controlnet.0.gate"),
    "a wrong shape": (lambda: {**control_weights(), "controlnet.0.after_proj.weight": torch.zeros(72, 8)}, "(72, 8)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_controlnet_is_refused_by_name(tmp_path, case):
    make, words = REFUSED[case]
    save_file(make(), tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError) as caught:
        read_control(tmp_path / "file.safetensors")
    assert words in str(caught.value) and "file.safetensors" in str(caught.value)


def test_a_missing_file_and_a_model_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        read_control(tmp_path / "none.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    save_file(control_weights(), tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="UNet2DConditionModel"):
        read_control(tmp_path)


def test_more_copies_than_the_base_can_take_are_refused(tmp_path):
    base = {f"base_model.{name}": tensor for name, tensor in reference().items()}
    save_file({**base, **control_weights(2)}, tmp_path / "bundle.safetensors")
    with pytest.raises(CheckpointError, match="2 control blocks for a base of 2 blocks"):
        read_control(tmp_path / "bundle.safetensors")


def test_parts_of_different_widths_are_refused(tmp_path):
    """Stacked they would make no tensor at all."""
    weights = as_diffusers(control_weights())
    name = "controlnet_blocks.0.transformer_block.attn1.to_k.weight"
    save_file({**weights, name: weights[name][:, :40].contiguous()}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors have another shape.*attn\.qkv\.weight"):
        read_control(tmp_path / "a.safetensors")


def test_the_model_loader_points_to_the_control_loader(tmp_path):
    save_file(control_weights(), tmp_path / "alone.safetensors")
    with pytest.raises(CheckpointError, match="ControlNet loader"):
        load(tmp_path / "alone.safetensors")
