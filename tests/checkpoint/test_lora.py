"""LoRA files: every layout gives the same weights at the true scale; what cannot be used is named."""
import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixart.checkpoint import CheckpointError, CheckpointNotFound, save_checkpoint, to_diffusers, to_reference
from pixart.checkpoint.layouts import file_name
from pixart.checkpoint.lora import Lora, LoraPart, merge_lora
from pixart.checkpoint.lora.alpha import ADAPTER_METADATA
from pixart.checkpoint.lora.keys import split_key, weight_slice
from pixart.checkpoint.lora.read import read_lora
from pixart.checkpoint.lora.write import write_lora
from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer

SMALL = PixArtConfig(depth=2, hidden=48, heads=4, caption_width=20, caption_tokens=9)
RANK = 4
# One module of every kind that the official trainers adapt: (rows, columns...).
MODULES = {"pos_embed.proj": (48, 4, 2, 2), "caption_projection.linear_1": (48, 20), "proj_out": (32, 48),
           "adaln_single.emb.timestep_embedder.linear_2": (48, 48), "adaln_single.linear": (288, 48),
           "adaln_single.emb.resolution_embedder.linear_1": (16, 256),
           **{f"transformer_blocks.{n}.{name}": shape for n in range(2) for name, shape in (
               ("attn1.to_q", (48, 48)), ("attn1.to_k", (48, 48)), ("attn1.to_v", (48, 48)),
               ("attn1.to_out.0", (48, 48)), ("attn2.to_q", (48, 48)), ("attn2.to_k", (48, 48)),
               ("attn2.to_v", (48, 48)), ("attn2.to_out.0", (48, 48)), ("ff.net.0.proj", (192, 48)),
               ("ff.net.2", (48, 192)))}}


def model(dtype: torch.dtype = torch.float32, config: PixArtConfig = SMALL) -> PixArtTransformer:
    torch.manual_seed(0)
    made = PixArtTransformer(config).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made.to(dtype)


def pairs(modules: dict = MODULES, rank: int = RANK, dtype: torch.dtype = torch.float32) -> dict[str, tuple]:
    """Diffusers module -> (A, B) as peft shapes them."""
    generator = torch.Generator().manual_seed(1)
    result = {}
    for name, (rows, *columns) in modules.items():
        a = torch.randn(rank, *columns, generator=generator)
        b = torch.randn(rows, rank, *[1] * (len(columns) - 1), generator=generator)
        result[name] = (a.to(dtype), b.to(dtype))
    return result


def peft_keys(prefix: str, modules: dict = MODULES) -> dict[str, Tensor]:
    return {f"{prefix}{name}.lora_{letter}.weight": tensor for name, pair in pairs(modules).items()
            for letter, tensor in zip("AB", pair)}


def kohya_keys(prefix: str, alpha: float, joined: bool = True, modules: dict = MODULES) -> dict[str, Tensor]:
    result = {}
    for name, (a, b) in pairs(modules).items():
        stem = prefix + (name.replace(".", "_") if joined else name)
        result |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(alpha)}
    return result


def official_folder(folder: Path, alpha: float = 8, **said: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(peft_keys("base_model.model."), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": alpha, **said}))
    return folder


def file(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "lora.safetensors"
    save_file(tensors, path, metadata)
    return path


def change_of(lora: Lora, name: str) -> Tensor:
    """What the LoRA adds to a weight of a model in float64."""
    before = model(torch.float64)
    after = copy.deepcopy(before)
    merge_lora(after, lora)
    return after.get_parameter(name) - before.get_parameter(name)


def wanted(scale: float) -> dict[str, Tensor]:
    """Weights in reference names with every change, by merging into the parts and stacking these: another way."""
    state = {file_name(name): tensor for name, tensor in model(torch.float64).state_dict().items()}
    parts = {name: tensor.clone() for name, tensor in to_diffusers(state).items()}
    for name, (a, b) in pairs(dtype=torch.float64).items():
        parts[f"{name}.weight"] += scale * torch.einsum("or...,ri->oi", b.flatten(1), a.flatten(1)).view(
            parts[f"{name}.weight"].shape)
    return to_reference(parts)


def merged(lora: Lora) -> dict[str, Tensor]:
    changed = model(torch.float64)
    merge_lora(changed, lora)
    return {file_name(name): tensor for name, tensor in changed.state_dict().items()}


def check(lora: Lora, scale: float) -> None:
    got = merged(lora)
    for name, tensor in wanted(scale).items():
        assert (got[name] - tensor).abs().max() < 1e-12, name


LAYOUTS = {
    "peft folder": (8 / RANK, lambda at: official_folder(at / "lora")),
    "peft file with its json": (8 / RANK, lambda at: official_folder(at / "lora") / "adapter_model.safetensors"),
    "peft, alpha said": (24 / RANK, lambda at: official_folder(at / "lora", 24)),
    "peft, rank stabilised": (8 / RANK ** 0.5, lambda at: official_folder(at / "lora", use_rslora=True)),
    "peft without json": (8 / RANK, lambda at: file(at, peft_keys("base_model.model."))),
    "official trainer": (8 / RANK, lambda at: file(at, peft_keys("unet.base_model.model."))),
    "diffusers": (1.0, lambda at: file(at, peft_keys("transformer."))),
    "diffusers with settings": (3 / RANK, lambda at: file(at, peft_keys("transformer."), {ADAPTER_METADATA: json.dumps(
        {"transformer.r": RANK, "transformer.lora_alpha": 3, "text_encoder.lora_alpha": 99})})),
    "plain": (1.0, lambda at: file(at, peft_keys(""))),
    "with the adapter's name": (1.0, lambda at: file(at, {
        key.replace(".weight", ".default.weight"): tensor for key, tensor in peft_keys("transformer.").items()})),
    "OneTrainer": (6 / RANK, lambda at: file(at, kohya_keys("lora_transformer_", 6.0))),
    "kohya": (2 / RANK, lambda at: file(at, kohya_keys("lora_unet_", 2.0))),
    "kohya, doubled": (2 / RANK, lambda at: file(at, kohya_keys("lora_unet_transformer_", 2.0))),
    "LyCORIS": (2 / RANK, lambda at: file(at, kohya_keys("lycoris_", 2.0))),
    "dotted with alpha": (2 / RANK, lambda at: file(at, kohya_keys("transformer.", 2.0, joined=False))),
    "alpha in the header": (2 / RANK, lambda at: file(at, {
        key: tensor for key, tensor in kohya_keys("lora_unet_", 9.0).items() if "alpha" not in key},
        {"ss_network_alpha": "2.0"})),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights_at_its_true_scale(layout, tmp_path):
    scale, write = LAYOUTS[layout]
    lora = read_lora(write(tmp_path))
    assert lora.ignored == () and len(lora.parts) == len(MODULES)
    check(lora, scale)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", "", "lora_unet_"])
def test_layers_under_their_reference_names(prefix, tmp_path):
    """What the host's own trainer and kohya's write for the fused layout."""
    a, b = torch.randn(RANK, 48), torch.randn(144, RANK)
    name = f"{prefix}blocks.1.attn.qkv" if prefix != "lora_unet_" else "lora_unet_blocks_1_attn_qkv"
    path = file(tmp_path, {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b,
                           f"{name}.alpha": torch.tensor(2.0)})
    got = change_of(read_lora(path), "blocks.1.attn.qkv.weight")
    assert torch.allclose(got, 0.5 * (b.double() @ a.double()), atol=1e-12)


@pytest.mark.parametrize("module, first", [("attn1.to_q", 0), ("attn1.to_k", 48), ("attn1.to_v", 96)])
def test_a_part_changes_its_own_rows_alone(module, first, tmp_path):
    path = file(tmp_path, peft_keys("transformer.", {f"transformer_blocks.0.{module}": (48, 48)}))
    rows = change_of(read_lora(path), "blocks.0.attn.qkv.weight").abs().amax(1)
    assert (rows[first:first + 48] > 0).all() and rows.sum() == rows[first:first + 48].sum()


@pytest.mark.parametrize("module, first", [("attn2.to_k", 0), ("attn2.to_v", 48)])
def test_key_and_value_of_the_text_have_their_rows(module, first, tmp_path):
    path = file(tmp_path, peft_keys("transformer.", {f"transformer_blocks.1.{module}": (48, 48)}))
    rows = change_of(read_lora(path), "blocks.1.cross_attn.kv_linear.weight").abs().amax(1)
    assert (rows[first:first + 48] > 0).all() and rows.sum() == rows[first:first + 48].sum()


def test_alpha_of_single_modules_in_the_json(tmp_path):
    folder = official_folder(tmp_path / "lora", 4, alpha_pattern={"attn1.to_q": 12, "transformer_blocks.0.ff.net.2": 2})
    scales = {(part.module, part.part): part.scale for part in read_lora(folder).parts}
    assert scales["blocks.1.attn.qkv", 0] == 3.0 and scales["blocks.1.attn.qkv", 1] == 1.0
    assert scales["blocks.0.mlp.fc2", 0] == 0.5 and scales["blocks.1.mlp.fc2", 0] == 1.0


def test_alpha_of_single_modules_under_our_names(tmp_path):
    """As peft saves adapters of this package's own network, whose fused layers diffusers does not have."""
    tensors = peft_keys("base_model.model.", {"blocks.0.attn.qkv": (144, 48), "blocks.0.mlp.fc1": (192, 48)})
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 4, "alpha_pattern": {
        "attn.qkv": 12, "attn1.to_q": 40}}))
    assert {part.module: part.scale for part in read_lora(tmp_path).parts} == {"blocks.0.attn.qkv": 3.0,
                                                                               "blocks.0.mlp.fc1": 1.0}


def test_a_json_whose_ranks_are_told_layer_by_layer_is_believed(tmp_path):
    folder = official_folder(tmp_path / "lora", 12, r=32, rank_pattern={"to_.*": RANK, "proj": RANK, "linear.*": RANK})
    assert {part.scale for part in read_lora(folder).parts} == {12 / RANK}


def test_a_json_of_another_lora_is_not_believed(tmp_path):
    folder = official_folder(tmp_path / "lora", 64)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 64, "lora_alpha": 64}))
    lora = read_lora(folder)
    assert {part.scale for part in lora.parts} == {8 / RANK}
    assert "another LoRA" in lora.description and "assumed" in lora.description


def test_where_the_scale_comes_from_is_said(tmp_path):
    assert "alpha 8 from adapter_config.json" in read_lora(official_folder(tmp_path / "lora")).description
    assumed = read_lora(file(tmp_path, peft_keys("unet.base_model.model."))).description
    assert "alpha 8 assumed" in assumed and "scale 2" in assumed and "rank 4" in assumed
    assert "alpha from the file" in read_lora(file(tmp_path, kohya_keys("lora_unet_", 2.0))).description
    assert "not said" in read_lora(file(tmp_path, peft_keys("transformer."))).description


def test_a_chosen_alpha_wins(tmp_path):
    for tensors in (peft_keys("base_model.model."), kohya_keys("lora_unet_", 2.0)):
        lora = read_lora(file(tmp_path, tensors), alpha=16)
        assert {part.scale for part in lora.parts} == {16 / RANK} and "as chosen" in lora.description
    with pytest.raises(ValueError, match="above 0"):
        read_lora(file(tmp_path, peft_keys("")), alpha=0)


@pytest.mark.parametrize("alpha", ["1e7", "-1e7", "inf", "nan"])
def test_an_alpha_of_nonsense_in_the_header_is_refused(alpha, tmp_path):
    with pytest.raises(CheckpointError, match="ss_network_alpha is .*a number up to 1e\\+06.*lora.safetensors"):
        read_lora(file(tmp_path, peft_keys("lora_unet_"), {"ss_network_alpha": alpha}))


def test_a_header_that_says_none_says_nothing_of_alpha(tmp_path):
    lora = read_lora(file(tmp_path, peft_keys("transformer."), {"ss_network_alpha": "None"}))
    assert {part.scale for part in lora.parts} == {1.0} and "not said" in lora.description


def test_unused_keys_are_counted_and_named(tmp_path):
    text = {f"lora_te_encoder_block_0_layer_0_SelfAttention_q.{kind}": torch.zeros(4, 4)
            for kind in ("lora_down.weight", "lora_up.weight")}
    lora = read_lora(file(tmp_path, {**kohya_keys("lora_transformer_", 4.0), **text}))
    assert set(lora.ignored) == set(text) and len(lora.parts) == len(MODULES)
    assert f"{3 * len(MODULES)} of {3 * len(MODULES) + 2} keys used" in lora.description
    assert "lora_te_encoder" in lora.description


def test_size_embedders_that_the_model_lacks_are_left_out(tmp_path):
    path = file(tmp_path, peft_keys("transformer."))
    used = merge_lora(model(config=replace(SMALL, micro_conditioning=False)), read_lora(path))
    assert [key for key in used.ignored if "resolution_embedder" not in key] == [] and len(used.ignored) == 2


@pytest.mark.parametrize("changes", [{"hidden": 72}, {"depth": 1}, {"caption_width": 24}, {"learned_variance": False}])
def test_a_lora_of_another_shape_is_refused_and_nothing_changed(changes, tmp_path):
    lora = read_lora(file(tmp_path, peft_keys("transformer.")))
    other = model(config=replace(SMALL, **changes))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="made for a.*lora.safetensors") as caught:
        merge_lora(other, lora)
    assert changes != {"depth": 1} or "2 blocks instead of 1" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


OTHER = {
    "Stable Diffusion 1": {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": 0},
    "SDXL": {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": 0,
             "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight": 0},
    "Flux": {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": 0,
             "transformer.proj_out.lora_A.weight": 0},
    "Diffusion 3": {"transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight": 0,
                    "transformer.transformer_blocks.0.ff.net.2.lora_A.weight": 0},
    "Wan": {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": 0,
            "diffusion_model.blocks.0.cross_attn.k.lora_A.weight": 0},
    "VeRA": {"base_model.model.transformer_blocks.0.attn1.to_q.vera_lambda_d": 0},
    "OFT of peft": {"base_model.model.transformer_blocks.0.attn1.to_q.oft_r": 0},
    "another model": {"transformer.layers.0.linear.lora_A.weight": 0, "transformer.layers.0.linear.lora_B.weight": 0},
    "no LoRA": {"whatever.weight": 0},
}


@pytest.mark.parametrize("name", OTHER)
def test_other_models_and_methods_are_named(name, tmp_path):
    path = file(tmp_path, {key: torch.zeros(4, 4) for key in OTHER[name]})
    with pytest.raises(CheckpointError, match=name) as caught:
        read_lora(path)
    assert "lora.safetensors" in str(caught.value) and "a LoRA of a PixArt transformer" in str(caught.value)


def test_a_whole_model_is_no_lora(tmp_path):
    with pytest.raises(CheckpointError, match="Load PixArt"):
        read_lora(save_checkpoint(tmp_path / "model.safetensors", model()))


def test_half_a_pair_is_named(tmp_path):
    tensors = peft_keys("transformer.")
    del tensors["transformer.proj_out.lora_B.weight"]
    with pytest.raises(CheckpointError, match="transformer.proj_out.lora_A.weight has no partner"):
        read_lora(file(tmp_path, tensors))


def test_ranks_that_differ_within_a_pair_are_named(tmp_path):
    tensors = peft_keys("transformer.") | {"transformer.proj_out.lora_B.weight": torch.zeros(32, RANK + 1)}
    with pytest.raises(CheckpointError, match="do not fit"):
        read_lora(file(tmp_path, tensors))


def test_one_layer_under_two_names_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="same layer"):
        read_lora(file(tmp_path, peft_keys("transformer.") | kohya_keys("lora_unet_", 4.0)))


def test_truncated_missing_and_empty(tmp_path):
    path = file(tmp_path, peft_keys("transformer."))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated.*a LoRA of a PixArt"):
        read_lora(path)
    with pytest.raises(CheckpointNotFound, match="no such file"):
        read_lora(tmp_path / "nowhere.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFound, match="adapter_model.safetensors"):
        read_lora(tmp_path / "empty")


def test_unreadable_settings_are_named(tmp_path):
    folder = official_folder(tmp_path / "lora")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable as JSON.*adapter_config.json"):
        read_lora(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strength_zero_and_a_lora_of_zeros_leave_every_bit(dtype, tmp_path):
    lora = read_lora(file(tmp_path, peft_keys("transformer.")))
    silent = Lora(tuple(replace(part, up=torch.zeros_like(part.up)) for part in lora.parts))
    for strength, given in ((0.0, lora), (1.0, silent), (-2.5, silent)):
        changed = model(dtype)
        merge_lora(changed, given, strength)
        assert all(torch.equal(tensor, model(dtype).state_dict()[name])
                   for name, tensor in changed.state_dict().items())


@pytest.mark.parametrize("strength", [-1.0, 0.3, 2.0])
def test_strength_is_a_factor(strength, tmp_path):
    lora = read_lora(file(tmp_path, peft_keys("transformer.")))
    changed, plain = model(torch.float64), model(torch.float64)
    merge_lora(changed, lora, strength)
    once = change_of(lora, "blocks.0.attn.qkv.weight")
    assert torch.allclose(changed.blocks[0].attn.qkv.weight, plain.blocks[0].attn.qkv.weight + strength * once,
                          atol=1e-12)


def dora_keys(prefix: str = "transformer.", ending: str = "lora_magnitude_vector") -> dict[str, Tensor]:
    magnitudes = {}
    for name, (rows, *columns) in MODULES.items():
        generator = torch.Generator().manual_seed(rows)
        values = 1 + torch.rand(rows, generator=generator)
        magnitudes[f"{prefix}{name}.{ending}"] = values.view(1, -1, 1, 1) if len(columns) > 1 else values
    return {**peft_keys(prefix), **magnitudes}


@pytest.mark.parametrize("ending", ["lora_magnitude_vector", "lora_magnitude_vector.weight",
                                    "lora_magnitude_vector.default.weight", "dora_scale"])
def test_dora_gives_rows_their_lengths(ending, tmp_path):
    lora = read_lora(file(tmp_path, dora_keys(ending=ending)))
    assert lora.dora and lora.ignored == () and lora.description.startswith("DoRA")
    got = merged(lora)
    plain = wanted(1.0)
    for name in ("blocks.0.attn.qkv.weight", "x_embedder.proj.weight", "final_layer.linear.weight"):
        rows, direction = got[name].flatten(1), plain[name].flatten(1)
        part = {"blocks.0.attn.qkv.weight": 3}.get(name, 1)
        generator = torch.Generator().manual_seed(len(rows) // part)
        lengths = (1 + torch.rand(len(rows) // part, generator=generator)).double().repeat(part)
        assert torch.allclose(rows.norm(dim=1), lengths, atol=1e-9)
        assert torch.allclose(nn.functional.cosine_similarity(rows, direction), torch.ones(len(rows)).double())


def test_magnitudes_of_another_length_are_refused(tmp_path):
    tensors = dora_keys() | {"transformer.proj_out.lora_magnitude_vector": torch.ones(5)}
    with pytest.raises(CheckpointError, match="5 lengths for 32 rows"):
        read_lora(file(tmp_path, tensors))


def test_a_fused_change_is_its_parts_with_one_down_matrix():
    whole = LoraPart("blocks.0.attn.qkv", 0, 1, torch.randn(RANK, 48), torch.randn(144, RANK), 0.7, torch.rand(144) + 1)
    a, b = model(torch.float64), model(torch.float64)
    merge_lora(a, Lora((whole,)))
    merge_lora(b, Lora(whole.split(3)))
    assert torch.allclose(a.blocks[0].attn.qkv.weight, b.blocks[0].attn.qkv.weight, atol=1e-14)
    assert not torch.equal(a.blocks[0].attn.qkv.weight, model(torch.float64).blocks[0].attn.qkv.weight)
    with pytest.raises(ValueError, match="already split"):
        whole.split(3)[0].split(2)


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
@pytest.mark.parametrize("dora", [False, True])
def test_written_and_read_again_it_is_the_same_at_scale_one(layout, dora, tmp_path):
    lora = read_lora(file(tmp_path, dora_keys() if dora else peft_keys("transformer.")), alpha=6)
    path = write_lora(tmp_path / ("out.safetensors" if layout == "diffusers" else "out"), lora, layout)
    again = read_lora(path)
    assert {part.scale for part in again.parts} == {1.0} and "not said" not in again.description
    lengths = {name: tuple(tensor.shape) for name, tensor in load_file(again.path).items() if "magnitude" in name}
    assert len(lengths) == (len(MODULES) if dora else 0)
    for name, shape in lengths.items():                 # of a kernel as peft keeps them
        assert shape == (1, 48, 1, 1) if "pos_embed" in name else len(shape) == 1
    before, after = merged(lora), merged(again)
    assert all(torch.allclose(tensor, after[name], atol=1e-6) for name, tensor in before.items())


def test_different_ranks_are_written_down(tmp_path):
    parts = (LoraPart("final_layer.linear", 0, 1, torch.randn(2, 48), torch.randn(32, 2), 1.0),
             LoraPart("blocks.0.attn.qkv", 0, 1, torch.randn(5, 48), torch.randn(144, 5), 0.5))
    folder = write_lora(tmp_path / "out", parts, "peft")
    said = json.loads((folder / "adapter_config.json").read_text())
    assert said["r"] == 5 and said["rank_pattern"] == said["alpha_pattern"] == {"proj_out": 2}
    assert {part.scale for part in read_lora(folder).parts} == {1.0}


def test_writing_in_half_precision_keeps_the_value(tmp_path):
    lora = read_lora(file(tmp_path, peft_keys("transformer.")), alpha=2)
    again = read_lora(write_lora(tmp_path / "half.safetensors", lora, dtype=torch.float16))
    assert {part.up.dtype for part in again.parts} == {torch.float16}
    before, after = merged(lora), merged(again)
    assert all(torch.allclose(tensor, after[name], atol=2e-2, rtol=2e-3) for name, tensor in before.items())


def test_what_diffusers_cannot_hold_is_refused(tmp_path):
    part = LoraPart("blocks.0.attn.sr", 0, 1, torch.randn(2, 1, 2, 2), torch.randn(48, 2), 1.0)
    with pytest.raises(ValueError, match="blocks.0.attn.sr"):
        write_lora(tmp_path / "out.safetensors", (part,))
    with pytest.raises(ValueError, match="layout"):
        write_lora(tmp_path / "out.safetensors", (part,), "kohya")
    assert list(tmp_path.iterdir()) == []


def test_keys_are_told_apart():
    assert split_key("transformer.proj_out.lora_A.weight") == ("transformer.proj_out", "down")
    assert split_key("lora_unet_proj_out.alpha") == ("lora_unet_proj_out", "alpha")
    assert split_key("transformer.proj_out.weight") is None
    assert weight_slice("transformer.transformer_blocks.0.attn1.nothing") is None
    assert weight_slice("lora_te_encoder_block_0") is None and weight_slice("text_encoder.proj_out") is None
