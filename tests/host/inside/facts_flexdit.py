"""A FlexDiT in the host: as in the library, offloaded and saved too; what cannot work with it is refused by name."""
from pathlib import Path

import torch
from host import tiny
from support import (
    MODELS,
    condition,
    latent,
    load,
    load_control,
    network,
    node,
    off,
    off_when_offloaded,
    pack,
    refusal,
    sample,
    text,
)

from pixart.checkpoint import load as load_library
from pixart.checkpoint import read_config
from pixart.model.flexdit_config import FlexDiTConfig

NOT_DYNAMIC = ("test_weights_kept_out_of_the_device_give_the_same",)

POSITIVE, NEGATIVE = condition(text(4)), condition(text(3, seed=1))


def test_it_computes_what_the_library_computes():
    ours, library = network(load("flexdit")), load_library(MODELS / "diffusion_models" / "flexdit.safetensors")
    x, t, context = torch.randn(2, 4, 16, 24), torch.tensor([900.0, 37.0]), text(5).expand(2, -1, -1)
    size, aspect = torch.tensor([[128.0, 192.0]] * 2), torch.full((2, 1), 128 / 192)
    got = ours(x, t, context, c_size=size.int(), c_ar=aspect.view(torch.int32))
    assert off(got, library(x, t, context, size=size, aspect=aspect.flatten())) < 1e-5


def test_two_prompts_of_different_length_in_one_pass_are_as_two():
    model = load("flexdit")
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([700.0, 700.0])
    context, mask = text(6).repeat(2, 1, 1), torch.tensor([[1] * 6, [1] * 2 + [0] * 4], dtype=torch.int32)
    together = network(model)(x, t, context, text_mask=mask)
    alone = [network(model)(x[i:i + 1], t[:1], context[:1, :tokens], text_mask=mask[:1, :0])
             for i, tokens in enumerate((6, 2))]
    assert off(together, torch.cat(alone)) < 1e-5


def test_weights_kept_out_of_the_device_give_the_same():
    assert off_when_offloaded(load("flexdit")) < 1e-5


def test_every_weight_dtype_works():
    for dtype in ("bf16", "fp16", "fp8_e4m3fn"):
        assert sample(load("flexdit", dtype), POSITIVE, NEGATIVE, latent(64, 128), cfg=3.0).isfinite().all(), dtype


def test_the_host_saves_it_as_what_it_is():
    import folder_paths
    from comfy_extras import nodes_model_merging as stock
    stock.ModelSave().save(load("flexdit"), "saved/flexdit")
    folder = Path(folder_paths.get_output_directory()) / "saved"
    path = max(folder.glob("flexdit_*.safetensors"))
    assert read_config(path) == tiny.CONFIGS["flexdit"] and isinstance(read_config(path), FlexDiTConfig)
    again = pack("nodes.host.model").load_model(str(path), weight_dtype="fp32")
    assert torch.equal(sample(again, POSITIVE, NEGATIVE, latent(64, 64), cfg=3.0),
                       sample(load("flexdit"), POSITIVE, NEGATIVE, latent(64, 64), cfg=3.0))


def test_caches_controlnets_and_loras_are_refused_by_name():
    model = load("flexdit")
    assert "a FlexDiT takes no cache" in refusal(node("PixArtCache")().apply, model, "steps", 2.0, 0.0, 1.0)
    assert "a LoRA does not fit a FlexDiT" in refusal(node("PixArtDeltaLoraLoader")().load, model,
                                                      "tiny-lora.safetensors", 1.0)
    control = pack("nodes.host.control")
    assert "cannot follow a ControlNet" in refusal(control.check_fits, load_control().control_model, network(model),
                                                   None)
    assert "a FlexDiT, which this node does not take" in refusal(
        pack("nodes.host.bare").bare_transformer, model, torch.float32, 64)


def test_block_patches_of_other_packs_are_refused():
    model = load("flexdit").clone()
    model.set_model_patch_replace(lambda args, more: more["original_block"](args), "dit", "double_block", 1)
    assert "a FlexDiT takes no cache, feedback or block patch" in refusal(
        sample, model, POSITIVE, NEGATIVE, latent(64, 64))


def test_pooled_values_of_the_cache_node_are_those_of_the_library():
    """On a plain model, with the cache switched off: uniform attention, as computed in full."""
    model = load("alpha-1024")
    plain = sample(model, POSITIVE, NEGATIVE, latent(64, 64), cfg=3.0)
    pooled = node("PixArtCache")().apply(model, "steps", 1.0, 0.0, 1.0, pooled_blocks=1)[0]
    none = node("PixArtCache")().apply(model, "steps", 1.0, 0.0, 1.0, pooled_blocks=0)[0]
    drawn = sample(pooled, POSITIVE, NEGATIVE, latent(64, 64), cfg=3.0)
    assert off(drawn, plain) > 1e-4 and torch.equal(sample(none, POSITIVE, NEGATIVE, latent(64, 64), cfg=3.0), plain)
    qkv = network(model).blocks[0].attn.qkv
    kept, width = (qkv.weight.clone(), qkv.bias.clone()), qkv.weight.shape[1]
    try:
        with torch.no_grad():
            qkv.weight[:width], qkv.bias[:width] = 0, 0         # uniform attention, computed in full
        assert off(sample(model, POSITIVE, NEGATIVE, latent(64, 64), cfg=3.0), drawn) < 1e-4
    finally:
        with torch.no_grad():
            qkv.weight.copy_(kept[0])
            qkv.bias.copy_(kept[1])
    assert "64 blocks are to pool; this model has 2" in refusal(
        node("PixArtCache")().apply, model, "steps", 1.0, 0.0, 1.0, pooled_blocks=64)
