"""One known update in every adapter and every layout gives the same weights and the same image."""
import json
import re

import pytest
import torch
from checkpoint.adapters_at_hand import ADAPTERS, LAYOUTS, loha, lora, update, updated, written
from safetensors.torch import save_file
from torch import Tensor

from pixart.checkpoint import CheckpointError
from pixart.checkpoint.layouts import file_name
from pixart.checkpoint.lora import merge_lora, read_lora, write_lora
from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer

CONFIG = PixArtConfig(depth=2, hidden=48, heads=3, caption_width=16, caption_tokens=12)
MODULES = ("x_embedder.proj", "t_block.1", "y_embedder.y_proj.fc1", "final_layer.linear",
           *(f"blocks.1.{name}" for name in ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear",
                                             "mlp.fc1", "mlp.fc2")))


def model() -> PixArtTransformer:
    torch.manual_seed(0)
    network = PixArtTransformer(CONFIG).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(torch.randn_like(parameter) / max(parameter[0].numel(), 4) ** 0.5)
    return network


def weights(network: PixArtTransformer) -> dict[str, Tensor]:
    parameters = dict(network.named_parameters())
    return {module: parameters[f"{module}.weight"].clone() for module in MODULES}


def image(network: PixArtTransformer) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x, context = torch.randn(1, 4, 8, 12, generator=generator), torch.randn(1, 7, 16, generator=generator)
    with torch.no_grad():
        return network(x, torch.tensor([400.0]), context, size=torch.tensor([[64.0, 96.0]]),
                       aspect=torch.tensor([0.67]))


@pytest.fixture(scope="module")
def drawn() -> dict[bool, Tensor]:
    """Images with the update in whole weights (False) and in the parts that diffusers names (True)."""
    result = {}
    for layout in ("ComfyUI", "diffusers"):
        network = model()
        parameters = dict(network.named_parameters())
        for module, weight in updated(layout, weights(network)).items():
            parameters[f"{module}.weight"].copy_(weight)
        result[LAYOUTS[layout][1]] = image(network)
    return result


def off(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_same_update_gives_the_same_image(adapter, layout, drawn, tmp_path):
    network = model()
    keys = written(adapter, layout, weights(network))
    save_file(keys, tmp_path / "a.safetensors")
    peft = adapter in ("LoRA of peft",) or layout in ("peft", "official")
    found = read_lora(tmp_path / "a.safetensors", alpha=2.0 if adapter == "LoRA of peft" and peft else None)
    used = merge_lora(network, found)
    assert off(image(network), drawn[LAYOUTS[layout][1]]) < 1e-5
    assert off(image(model()), drawn[LAYOUTS[layout][1]]) > 1e-2
    assert not used.ignored and f"{len(keys)} of {len(keys)} keys used" in used.description


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_strength_is_a_factor_of_the_update(adapter, tmp_path):
    network, start = model(), weights(model())
    save_file(written(adapter, "ComfyUI", start), tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors", alpha=2.0 if "peft" in adapter else None)
    merge_lora(network, found, -0.4)
    for module, weight in weights(network).items():
        assert off(weight, start[module] - 0.4 * update(start[module])) < 1e-5, module


def test_general_numbers_follow_their_formulas(tmp_path):
    """Random tensors, each formula written out once more with plain loops or another product."""
    generator = torch.Generator().manual_seed(3)

    def some(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    stem = "diffusion_model.blocks.0.attn.proj"
    weight = model().blocks[0].attn.proj.weight
    w = weight.clone()
    kron_a, kron_b = some(6, 4), some(8, 12)
    kron = torch.stack([torch.cat([kron_a[i, j] * kron_b for j in range(4)], 1) for i in range(6)]).flatten(0, 1)
    h = [some(48, 4), some(4, 48), some(48, 4), some(4, 48)]
    g = [some(48, 4), some(4, 48), some(48, 4), some(4, 48)]
    q = some(12, 4, 4)
    turn = torch.block_diag(*[torch.linalg.solve(torch.eye(4) - (b - b.T), torch.eye(4) + (b - b.T)) for b in q])
    factor = 1 + some(48, 1)
    cases = {
        "LoKr": ({"lokr_w1": kron_a, "lokr_w2": kron_b}, kron),
        "LoHa": (dict(zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), h)) | {"alpha": torch.tensor(8.0)},
                 2 * sum(h[0][:, [r]] * h[1][[r]] for r in range(4)) * (h[2] @ h[3])),
        "GLoRA": (dict(zip(("a1.weight", "a2.weight", "b1.weight", "b2.weight"), g)), w @ g[0] @ g[1] + g[2] @ g[3]),
        "old GLoRA": ({"a1.weight": g[1], "a2.weight": g[0], "b1.weight": g[3], "b2.weight": g[2]},
                      w @ g[0] @ g[1] + g[2] @ g[3]),
        "OFT": ({"oft_blocks": q}, turn.T @ w - w),
        "OFT with factors": ({"oft_blocks": q, "rescale": factor}, factor * (turn.T @ w) - w),
    }
    for name, (tensors, want) in cases.items():
        save_file({f"{stem}.{kind}": tensor.contiguous() for kind, tensor in tensors.items()},
                  tmp_path / "a.safetensors")
        network = model()
        merge_lora(network, read_lora(tmp_path / "a.safetensors"))
        assert off(network.blocks[0].attn.proj.weight - w, want) < 1e-4, name


def cayley(q: Tensor) -> Tensor:
    turn, one = q - q.transpose(-1, -2), torch.eye(q.shape[-1])
    return (one + turn) @ torch.linalg.inv(one - turn)


@pytest.mark.parametrize("alpha, share", [(0.5, 0.5), (1.5, 1.0), (0.0, 1.0)])
def test_alpha_bounds_the_rotation_of_oft(alpha, share, tmp_path):
    """Q of norm 1 is made shorter by a smaller bound, never longer by a larger one; 0 is none."""
    q = torch.randn(12, 4, 4, generator=torch.Generator().manual_seed(3))
    q /= (q - q.transpose(1, 2)).norm()
    save_file({"diffusion_model.blocks.0.attn.proj.oft_blocks": q,
               "diffusion_model.blocks.0.attn.proj.alpha": torch.tensor(alpha)}, tmp_path / "a.safetensors")
    network = model()
    want = torch.block_diag(*cayley(share * q)).T @ network.blocks[0].attn.proj.weight
    merge_lora(network, read_lora(tmp_path / "a.safetensors"))
    assert off(network.blocks[0].attn.proj.weight, want) < 1e-5


@pytest.mark.parametrize("size", [2, 4])
def test_boft_turns_in_several_steps_each_over_rows_further_apart(size, tmp_path):
    """As a product of matrices: in step s, rows k = 2^s size / 2 apart meet in a block."""
    q = torch.randn(3, 48 // size, size, size, generator=torch.Generator().manual_seed(3))
    stem = "diffusion_model.blocks.0.attn.proj"
    save_file({f"{stem}.oft_blocks": q}, tmp_path / "a.safetensors")
    network, whole = model(), torch.eye(48)
    for step in range(3):
        apart = 2 ** step * size // 2
        order = [2 * apart * group + wing * apart + row for group in range(24 // apart) for row in range(apart)
                 for wing in (0, 1)]
        shuffle = torch.eye(48)[order]
        whole = shuffle.T @ torch.block_diag(*cayley(q[step])) @ shuffle @ whole
    want = whole @ network.blocks[0].attn.proj.weight
    merge_lora(network, read_lora(tmp_path / "a.safetensors"))
    assert off(network.blocks[0].attn.proj.weight, want) < 1e-5


def test_kernels_in_tucker_form(tmp_path):
    generator = torch.Generator().manual_seed(3)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    stem, before = "diffusion_model.x_embedder.proj", model().x_embedder.proj.weight
    mid, up, down = some(3, 3, 2, 2), some(48, 3, 1, 1), some(3, 4, 1, 1)
    locon = torch.einsum("or,rshw,si->oihw", up[..., 0, 0], mid, down[..., 0, 0])
    t1, t2, a1, b1, a2, b2 = some(3, 3, 2, 2), some(3, 3, 2, 2), some(3, 48), some(3, 4), some(3, 48), some(3, 4)
    hada = torch.einsum("rshw,ro,si->oihw", t1, a1, b1) * torch.einsum("rshw,ro,si->oihw", t2, a2, b2)
    first, half = some(4, 1), some(3, 12)
    kron = torch.kron(first[..., None, None], torch.einsum("rshw,ro,si->oihw", t1, half, b1))
    cases = {"LoCon": ({"lora_mid.weight": mid, "lora_up.weight": up, "lora_down.weight": down}, locon),
             "LoHa": ({"hada_t1": t1, "hada_t2": t2, "hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2,
                       "hada_w2_b": b2}, hada),
             "LoKr": ({"lokr_w1": first, "lokr_t2": t1, "lokr_w2_a": half, "lokr_w2_b": b1}, kron)}
    for name, (tensors, want) in cases.items():
        save_file({f"{stem}.{kind}": tensor for kind, tensor in tensors.items()}, tmp_path / "a.safetensors")
        network = model()
        merge_lora(network, read_lora(tmp_path / "a.safetensors"))
        assert off(network.x_embedder.proj.weight - before, want) < 1e-5, name


@pytest.mark.parametrize("stem, parameter, rows", [
    ("diffusion_model.blocks.0.attn.qkv", "blocks.0.attn.qkv.bias", slice(None)),
    ("transformer.transformer_blocks.0.attn1.to_k", "blocks.0.attn.qkv.bias", slice(48, 96)),
    ("lycoris_blocks_1_mlp_fc1", "blocks.1.mlp.fc1.bias", slice(None)),
])
def test_differences_of_biases_are_used(stem, parameter, rows, tmp_path):
    network = model()
    want = dict(network.named_parameters())[parameter].clone()
    change = torch.arange(len(want[rows])).float()
    want[rows] += change
    save_file({f"{stem}.diff_b": change}, tmp_path / "a.safetensors")
    merge_lora(network, read_lora(tmp_path / "a.safetensors"))
    assert torch.equal(dict(network.named_parameters())[parameter], want)


TABLES = ("diffusion_model.blocks.0.scale_shift_table", "lora_unet_final_layer_scale_shift_table",
          "transformer.transformer_blocks.1.scale_shift_table", "transformer.scale_shift_table")


@pytest.mark.parametrize("stem", TABLES)
@pytest.mark.parametrize("make", [lora, lambda table: {"diff": update(table)}])
def test_modulation_tables_are_changed(stem, make, tmp_path):
    network = model()
    name = "final_layer" if "blocks" not in stem else f"blocks.{re.search(r'[01]', stem)[0]}"
    table = network.get_submodule(name).scale_shift_table.weight
    want = table + update(table)
    save_file({f"{stem}.{kind}": tensor.contiguous() for kind, tensor in make(table).items()},
              tmp_path / "a.safetensors")
    merge_lora(network, read_lora(tmp_path / "a.safetensors"))
    assert off(table, want) < 1e-5


def test_tables_that_a_model_cannot_change_are_left_out(tmp_path):
    """In ComfyUI's own model they are bare parameters of a block."""
    network, key = model(), f"{TABLES[0]}.diff"
    save_file({key: update(network.blocks[0].scale_shift_table.weight)}, tmp_path / "a.safetensors")
    shapes = {file_name(name): tuple(weight.shape) for name, weight in network.named_parameters()}
    used = read_lora(tmp_path / "a.safetensors").fitted(shapes)
    assert used.parts == () and used.ignored == (key,)


BROKEN = {
    "half of a pair": ({"hada_w1_a": torch.ones(48, 2)}, "has no partner"),
    "factors that do not fit": ({"lokr_w1": torch.ones(5, 5), "lokr_w2": torch.ones(3, 3)}, "another width or family"),
    "a number as a factor": ({"lokr_w1": torch.ones(()), "lokr_w2": torch.ones(48, 48)}, "factors of shapes"),
    "blocks of another size": ({"oft_blocks": torch.ones(5, 5, 5)}, "another width or family"),
    "blocks that are not square": ({"oft_blocks": torch.ones(12, 4, 3)}, "do not fit"),
    "two methods": ({"oft_blocks": torch.ones(12, 4, 4), "diff": torch.ones(48, 48)}, "two methods"),
    "not finite": ({"diff": torch.full((48, 48), float("nan"))}, "not finite"),
    "alpha not finite": (loha(torch.ones(48, 48)) | {"alpha": torch.tensor(float("inf"))}, "not finite"),
    "alpha of several numbers": (loha(torch.ones(48, 48)) | {"alpha": torch.ones(3)}, "holds 3 numbers"),
    "whole numbers": ({"diff": torch.ones(48, 48, dtype=torch.int8)}, "int8 numbers"),
    "another shape": ({"diff": torch.ones(40, 48)}, "another width or family"),
    "rank 0": ({"lora_down.weight": torch.ones(0, 48), "lora_up.weight": torch.ones(48, 0)}, "rank 0"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_adapters_are_refused_and_change_nothing(kind, tmp_path):
    tensors, message = BROKEN[kind]
    save_file({f"diffusion_model.blocks.0.attn.proj.{name}": tensor for name, tensor in tensors.items()},
              tmp_path / "a.safetensors")
    network = model()
    with pytest.raises(ValueError, match=message) as caught:
        merge_lora(network, read_lora(tmp_path / "a.safetensors"))
    assert "a.safetensors" in str(caught.value)
    assert off(network.blocks[0].attn.proj.weight, model().blocks[0].attn.proj.weight) == 0


@pytest.mark.parametrize("settings", [{"lora_alpha": None}, {"lora_alpha": [1]}, {"lora_alpha": float("nan")},
                                      {"r": "16"}, {"use_rslora": 1}, {"alpha_pattern": [1]}, {"rank_pattern": 3},
                                      {"alpha_pattern": {"to_q": "8"}}, {"alpha_pattern": {"(a+)+$": 8}},
                                      {"alpha_pattern": {"(": 8}}, {"alpha_pattern": {".*.*.*.*.*x": 8}}])
def test_settings_of_nonsense_are_refused_by_field(settings, tmp_path):
    save_file(written("LoRA of peft", "peft", weights(model())), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, **settings}))
    with pytest.raises(CheckpointError, match="|".join([*settings, "alpha_pattern"])) as caught:
        read_lora(tmp_path)
    assert "adapter_config.json" in str(caught.value)


def test_what_cannot_be_written_is_said(tmp_path):
    save_file(written("LoKr", "ComfyUI", weights(model())), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="only low-rank changes can be written"):
        write_lora(tmp_path / "b.safetensors", read_lora(tmp_path / "a.safetensors"))
