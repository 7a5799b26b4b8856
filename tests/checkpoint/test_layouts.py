"""Names and shapes: both layouts, the way between them, and agreement with the model and with diffusers."""
from dataclasses import replace

import pytest
import torch
from checkpoint.samples import TINY, equal, full, reference

from pixart.checkpoint import expected_shapes, reference_module, reference_state_dict, to_diffusers, to_reference
from pixart.config import VARIANTS, KVCompression, PixArtConfig
from pixart.model.transformer import PixArtTransformer

CONFIGS = {
    "alpha": TINY,
    "sigma": replace(TINY, micro_conditioning=False, caption_tokens=300, latent_space="sdxl", learned_variance=False),
    "qk-norm": replace(TINY, qk_norm=True),
    "conv": replace(TINY, kv_compression=KVCompression("conv", 2, (1,))),
    "ave": replace(TINY, kv_compression=KVCompression("ave", 2, (0, 1))),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_expected_shapes_are_those_of_the_model(name):
    model = PixArtTransformer(CONFIGS[name], device="meta")
    shapes = {key: tuple(value.shape) for key, value in reference_state_dict(model).items()}
    assert shapes == expected_shapes(CONFIGS[name])


@pytest.mark.parametrize("variant, ours, theirs", [("alpha-1024", 445, 611), ("sigma-1024", 437, 603)])
def test_key_counts_are_those_of_the_published_files(variant, ours, theirs):
    assert len(full(variant)) == ours
    assert len(full(variant, diffusers=True)) == theirs


@pytest.mark.parametrize("name", ["alpha", "sigma", "qk-norm"])
def test_round_trip_through_diffusers_is_bit_exact(name):
    weights = reference(CONFIGS[name])
    there = to_diffusers(weights, null_caption=True)
    assert equal(to_reference(there), {key: value for key, value in weights.items() if key != "pos_embed"})
    assert equal(to_diffusers(to_reference(there), null_caption=True), there)


def test_diffusers_class_accepts_our_names_strictly():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.PixArtTransformer2DModel(num_attention_heads=1, num_layers=2, cross_attention_dim=72,
                                               caption_channels=16, sample_size=128)
    weights = reference()
    model.load_state_dict(to_diffusers(weights), strict=True)
    assert torch.equal(model.transformer_blocks[1].attn1.to_k.weight, weights["blocks.1.attn.qkv.weight"][72:144])
    assert torch.equal(model.transformer_blocks[0].attn2.to_v.bias, weights["blocks.0.cross_attn.kv_linear.bias"][72:])


def test_parts_of_stacked_modules_are_located_for_lora():
    assert reference_module("transformer_blocks.3.attn1.to_k") == ("blocks.3.attn.qkv", 1, 3)
    assert reference_module("transformer_blocks.13.attn2.to_v") == ("blocks.13.cross_attn.kv_linear", 1, 2)
    assert reference_module("pos_embed.proj") == ("x_embedder.proj", 0, 1)
    assert reference_module("transformer_blocks.0.norm3") is None


def test_tables_carry_the_files_name_not_the_parameters():
    names = reference_state_dict(PixArtTransformer(TINY, device="meta"))
    assert "blocks.0.scale_shift_table" in names and "final_layer.scale_shift_table" in names
    assert not any(name.endswith("table.weight") for name in names)


def test_translation_leaves_its_input_alone():
    weights = to_diffusers(reference())
    before = dict(weights)
    to_reference(weights)
    assert weights.keys() == before.keys() and all(weights[name] is before[name] for name in before)


def test_compression_weights_have_no_place_in_diffusers():
    with pytest.raises(KeyError, match=r"attn\.sr\.weight"):
        to_diffusers(reference(CONFIGS["conv"]))


def test_unknown_diffusers_names_are_counted_and_named():
    with pytest.raises(KeyError, match="1 names.*transformer_blocks.0.norm3.weight"):
        to_reference({**to_diffusers(reference()), "transformer_blocks.0.norm3.weight": torch.zeros(1)})


def test_parameter_counts_are_the_published_ones():
    def count(config: PixArtConfig) -> int:
        return sum(torch.Size(shape).numel() for name, shape in expected_shapes(config).items()
                   if name != "y_embedder.y_embedding")
    assert count(VARIANTS["alpha-1024"]) == 611_349_152
    assert count(VARIANTS["sigma-1024"]) == 610_856_096
    assert count(replace(VARIANTS["sigma-1024"], depth=42)) == 908_433_824
