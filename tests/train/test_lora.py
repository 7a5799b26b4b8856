"""Adapters on a transformer: exact at the start, only they learn, and their files mean the same to peft."""
import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from pixart.checkpoint import to_diffusers
from pixart.checkpoint.lora import Lora, merge_lora
from pixart.checkpoint.lora.read import read_lora
from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer
from pixart.train.lora import (
    adaptable,
    adapters,
    add_lora,
    load_lora_state,
    lora_parts,
    lora_state,
    save_lora,
    without_adapters,
)

SMALL = PixArtConfig(depth=2, hidden=48, heads=4, caption_width=20, caption_tokens=9, base_size=8, position_scale=1.0)


def base(seed: int = 0, **changes: object) -> PixArtTransformer:
    torch.manual_seed(seed)
    model = PixArtTransformer(replace(SMALL, **changes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"latent": torch.randn(2, 4, 8, 12, generator=generator, dtype=dtype),
            "timestep": torch.tensor([999.0, 17.0]),
            "context": torch.randn(2, 9, 20, generator=generator, dtype=dtype),
            "mask": torch.arange(9)[None] < torch.tensor([[9], [4]]),
            "size": torch.tensor([[64.0, 96.0]] * 2), "aspect": torch.tensor([0.66, 0.5])}


def trained(model: nn.Module, std: float = 0.1) -> nn.Module:
    """Adapters as if they had learned something."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in lora_state(model).items():
            noise = std * torch.randn(tensor.shape, generator=generator)
            tensor.mul_(1 + noise) if "magnitude" in name else tensor.add_(noise)
    return model


def diffusers_model(model: PixArtTransformer) -> nn.Module:
    from diffusers import PixArtTransformer2DModel
    config = model.config
    theirs = PixArtTransformer2DModel(
        num_attention_heads=config.heads, attention_head_dim=config.hidden // config.heads, in_channels=4,
        out_channels=8, num_layers=config.depth, cross_attention_dim=config.hidden, sample_size=2 * config.base_size,
        caption_channels=config.caption_width, interpolation_scale=config.position_scale,
        use_additional_conditions=True).eval()
    theirs.load_state_dict(to_diffusers(model.state_dict()), strict=True)
    return theirs


@torch.no_grad()
def diffusers_output(model: nn.Module) -> torch.Tensor:
    given = inputs()
    extra = {"resolution": given["size"], "aspect_ratio": given["aspect"][:, None]}
    return model(given["latent"], encoder_hidden_states=given["context"], timestep=given["timestep"],
                 added_cond_kwargs=extra, encoder_attention_mask=given["mask"].float(), return_dict=False)[0]


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize("dora", [False, True])
def test_untrained_adapters_change_nothing(dora):
    model, given = base(), inputs()
    want = model(**given)
    add_lora(model, rank=4, alpha=8, dora=dora)
    got = model(**given)
    assert torch.equal(got, want) if not dora else off(got, want) < 1e-6


def test_all_linear_layers_and_the_patch_convolution_are_adapted():
    model = add_lora(base(), rank=2, alpha=None)
    layers = [name for name, module in base().named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    assert [name for name, _ in adapters(model)] == layers == adaptable(base())


def test_only_adapters_are_trainable():
    model = add_lora(base(), rank=2, alpha=None, dora=True)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == set(lora_state(model)) and len(trainable) == 3 * len(adaptable(base()))


def test_the_seed_alone_decides_the_start_and_no_global_state_moves():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a = lora_state(add_lora(base(), 2, None, seed=1))
    torch.manual_seed(5)
    b = lora_state(add_lora(base(3), 2, None, seed=1))
    c = lora_state(add_lora(base(), 2, None, seed=2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["x_embedder.proj.lora_A.default.weight"], c["x_embedder.proj.lora_A.default.weight"])
    model = base()
    torch.random.set_rng_state(before)
    add_lora(model, 2, None)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_targets_are_names_or_ends_of_names():
    model = add_lora(base(), 2, None, targets=["attn.qkv", "blocks.1.mlp.fc1"])
    assert [name for name, _ in adapters(model)] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.1.mlp.fc1"]


@pytest.mark.parametrize("targets", [["to_q"], ["attn.qkv", "nothing"], []])
def test_targets_that_mean_nothing_are_refused(targets):
    with pytest.raises(ValueError, match="attn.qkv"):
        add_lora(base(), 2, None, targets=targets)


@pytest.mark.parametrize("rank, alpha", [(0, None), (4, 0.0), (4, -1.0)])
def test_impossible_numbers_are_refused(rank, alpha):
    with pytest.raises(ValueError, match="rank"):
        add_lora(base(), rank, alpha)


@pytest.mark.parametrize(("alpha", "scale"), [(6.0, 3.0), (1.0, 0.5), (None, 1.0)])
def test_the_change_is_scaled_by_alpha_over_the_rank(alpha, scale):
    model = add_lora(base().double(), rank=2, alpha=alpha, targets=["attn.proj"])
    layer, = (module for name, module in adapters(model) if name == "blocks.0.attn.proj")
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.ones_(up)
    x = torch.randn(3, down.shape[1], dtype=torch.float64)
    torch.testing.assert_close(layer(x) - layer.base_layer(x), (scale * (x.float() @ down.T @ up.T)).double())
    assert {part.scale for part in lora_parts(model)} == {scale}


def test_a_second_adapter_is_refused():
    with pytest.raises(ValueError, match="already"):
        add_lora(add_lora(base(), 2, None), 2, None)


def test_adapters_of_a_half_precision_model_are_float32():
    model = add_lora(base().bfloat16(), 2, None)
    assert {tensor.dtype for tensor in lora_state(model).values()} == {torch.float32}
    assert model(**inputs(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("dora", [False, True])
def test_switched_off_it_is_the_base_and_on_again_it_learns(dora):
    model, given = base(), inputs()
    want = model(**given)
    trained(add_lora(model, 4, 8, dora=dora))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with without_adapters(model):
        assert torch.equal(model(**given), want)
    assert off(model(**given), want) > 1e-2
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def test_switching_a_frozen_copy_leaves_it_frozen():
    model = add_lora(base(), 2, None).requires_grad_(False)
    with without_adapters(model):
        pass
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_error_inside_switches_back_on():
    model = trained(add_lora(base(), 2, None))
    want = model(**inputs())
    with pytest.raises(RuntimeError), without_adapters(model):
        raise RuntimeError
    assert torch.equal(model(**inputs()), want)


@pytest.mark.parametrize("dora", [False, True])
def test_merged_equals_unmerged_in_float64(dora):
    model, given = base().double(), inputs(torch.float64)
    plain = copy.deepcopy(model)
    trained(add_lora(model, 4, 6, dora=dora)).double()
    merge_lora(plain, Lora(lora_parts(model)))
    assert off(plain(**given), model(**given)) < 1e-13


def test_merged_equals_unmerged_in_float32():
    model = base()
    plain = copy.deepcopy(model)
    trained(add_lora(model, 4, 6))
    merge_lora(plain, Lora(lora_parts(model)))
    assert off(plain(**inputs()), model(**inputs())) < 1e-5


@pytest.mark.parametrize("dora", [False, True])
def test_a_folder_loads_in_peft_on_a_diffusers_model(tmp_path, dora):
    from peft import PeftModel
    theirs = diffusers_model(base())
    model = trained(add_lora(base(), 4, 6, dora=dora))
    save_lora(tmp_path / "adapter", model)
    adapted = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    got = diffusers_output(adapted)
    want = model(**inputs(), learned_variance=True)
    assert off(got, want) < 1e-5 and off(want, base()(**inputs(), learned_variance=True)) > 1e-2


@pytest.mark.parametrize("dora", [False, True])
def test_a_file_loads_through_diffusers_own_lora_reader(tmp_path, dora):
    from diffusers.loaders import PeftAdapterMixin
    theirs = diffusers_model(base())
    theirs.__class__ = type("WithAdapters", (PeftAdapterMixin, type(theirs)), {})
    model = trained(add_lora(base(), 4, 6, dora=dora))
    theirs.load_lora_adapter(save_lora(tmp_path / "lora.safetensors", model))
    assert off(diffusers_output(theirs), model(**inputs(), learned_variance=True)) < 1e-5


OFFICIAL_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "proj",
                    "linear", "linear_1", "linear_2"]


@pytest.mark.parametrize("options, scale", [({}, 2.0), ({"use_dora": True}, 2.0), ({"use_rslora": True}, 4.0)])
def test_what_peft_trains_on_diffusers_is_read_at_its_scale(tmp_path, options, scale):
    """As the official trainers do it: their targets, peft's own alpha of 8, peft's own file."""
    from peft import LoraConfig, get_peft_model
    adapted = get_peft_model(diffusers_model(base()), LoraConfig(r=4, init_lora_weights="gaussian",
                                                                 target_modules=OFFICIAL_TARGETS, **options))
    trained(adapted.eval(), 0.03)
    adapted.save_pretrained(tmp_path / "adapter")
    lora = read_lora(tmp_path / "adapter")
    assert lora.ignored == () and {part.scale for part in lora.parts} == {scale}
    model, exact = base(), base().double()
    merge_lora(model, lora)
    assert off(model(**inputs(), learned_variance=True), diffusers_output(adapted)) < 1e-5
    merge_lora(exact, lora)
    got, want = to_diffusers(exact.state_dict()), adapted.double().merge_and_unload().state_dict()
    assert all((tensor - want[name]).abs().max() < 1e-12 for name, tensor in got.items())


def test_adapters_go_on_where_they_were_saved():
    model = trained(add_lora(base(), 4, 6, dora=True))
    state = {name: tensor.clone() for name, tensor in lora_state(model).items()}
    again = add_lora(base(), 4, 6, dora=True, seed=9)
    load_lora_state(again, state)
    assert torch.equal(again(**inputs()), model(**inputs()))
    with pytest.raises(ValueError, match="do not fit"):
        load_lora_state(add_lora(base(), 3, 6, dora=True), state)
    with pytest.raises(ValueError, match="do not fit"):
        load_lora_state(add_lora(base(), 4, 6), state)


def test_nothing_to_save_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to save"):
        save_lora(tmp_path / "lora.safetensors", base())


def test_gradients_pass_through_recomputed_blocks():
    grads = []
    for recompute in (False, True):
        model = trained(add_lora(base(), 4, 6))
        model.recompute = recompute
        model(**inputs()).square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad})
    assert all(torch.allclose(grads[0][name], grads[1][name], rtol=1e-4, atol=1e-7) for name in grads[0])
