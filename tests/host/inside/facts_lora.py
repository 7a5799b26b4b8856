"""LoRAs on a MODEL: every layout at one scale, equal to merged weights and to the stock loader where that is right."""
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from host import tiny
from safetensors.torch import load_file, save_file
from support import MODELS, condition, latent, load, network, off, off_when_offloaded, pack, refusal, sample, text
from torch import Tensor

from pixart.checkpoint.lora import Lora, LoraPart, merge_lora
from pixart.checkpoint.lora.read import read_lora
from pixart.checkpoint.lora.write import diffusers_parts, write_lora
from pixart.model.transformer import PixArtTransformer

FOLDER = MODELS / "loras"
CONFIG = tiny.CONFIGS["alpha-1024"]
RANK = 4
NAMES = ("x_embedder.proj", "t_block.1", "final_layer.linear", "csize_embedder.mlp.0", "y_embedder.y_proj.fc1",
         *(f"blocks.{n}.{name}" for n in range(2) for name in (
             "attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "mlp.fc1", "mlp.fc2")))


def reference() -> PixArtTransformer:
    return tiny.random_model(CONFIG)


def parts(dora: bool = False, scale: float = 2.0) -> tuple[LoraPart, ...]:
    """A change of every kind of layer at scale 8 / rank, so that a reader that misses alpha is off by two."""
    generator = torch.Generator().manual_seed(4)
    weights, result = dict(reference().named_parameters()), []
    for name in NAMES:
        rows, *columns = weights[f"{name}.weight"].shape
        magnitude = 1 + torch.rand(rows, generator=generator) if dora else None
        result.append(LoraPart(name, 0, 1, 0.1 * torch.randn(RANK, *columns, generator=generator),
                               torch.randn(rows, RANK, generator=generator), scale, magnitude))
    return tuple(result)


def merged(lora: Lora, strength: float = 1.0) -> dict[str, Tensor]:
    model = reference()
    merge_lora(model, lora, strength)
    return dict(model.named_parameters())


def patched(model) -> dict[str, Tensor]:
    """Copies of the weights as the host has patched them."""
    return {name: tensor.detach().clone() for name, tensor in network(model).named_parameters()}


def worst(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    assert got.keys() == want.keys()
    return max(off(got[name], want[name]) for name in want)


def loader() -> type:
    return pack("nodes.lora").PixArtDeltaLoraLoader


def ours(file: str, strength: float = 1.0, name: str = "alpha-1024", **options: object):
    return loader()().load(load(name), file, strength, **options)


def stock(file: str, strength: float = 1.0):
    import nodes
    return nodes.LoraLoaderModelOnly().load_lora_model_only(load("alpha-1024"), file, strength)[0]


def pairs(dora: bool = False) -> dict[str, LoraPart]:
    """Diffusers module -> its change, apart from its scale."""
    return {name: part for whole in parts(dora) for name, part in diffusers_parts(whole)}


def peft_keys(prefix: str, dora: bool = False) -> dict[str, Tensor]:
    result = {}
    for name, part in pairs(dora).items():
        up = part.up.view(*part.up.shape, *[1] * (part.down.ndim - 2))
        result |= {f"{prefix}{name}.lora_A.weight": part.down.clone(), f"{prefix}{name}.lora_B.weight": up.clone()}
        if dora:
            result[f"{prefix}{name}.lora_magnitude_vector"] = part.magnitude.clone()
    return result


def write(name: str, tensors: dict[str, Tensor]) -> str:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return name


def write_folder(name: str, dora: bool = False) -> str:
    """As peft saves it after the official trainers."""
    file = write(f"{name}/adapter_model.safetensors", peft_keys("base_model.model.", dora))
    (FOLDER / name / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 8, "use_dora": dora}))
    return file


def write_joined(name: str, prefix: str) -> str:
    tensors = {}
    for module, part in pairs().items():
        stem = prefix + module.replace(".", "_")
        tensors |= {f"{stem}.lora_down.weight": part.down.clone(), f"{stem}.lora_up.weight": part.up.clone().view(
            *part.up.shape, *[1] * (part.down.ndim - 2)), f"{stem}.alpha": torch.tensor(8.0)}
    return write(name, tensors)


def write_ours(name: str, dora: bool = False) -> str:
    write_lora(FOLDER / name, parts(dora))
    return name


def test_our_file_is_the_same_for_the_stock_loader_ours_and_merging():
    file = write_ours("ours.safetensors")
    want = merged(Lora(parts()))
    model, report = ours(file)
    assert worst(patched(model), want) < 1e-6
    assert worst(patched(stock(file)), want) < 1e-6
    count = len(load_file(FOLDER / file))
    assert f"{count} of {count} keys used" in report and "scale 1 " in report
    assert worst(merged(read_lora(FOLDER / file)), want) < 1e-6
    assert worst(merged(Lora(())), want) > 1e-2


def test_every_layout_patches_the_same_weights():
    want = merged(Lora(parts()))
    files = {"peft": write_folder("peft"),
             "official": write("official.safetensors", peft_keys("unet.base_model.model.")),
             "OneTrainer": write_joined("onetrainer.safetensors", "lora_transformer_"),
             "kohya": write_joined("kohya.safetensors", "lora_unet_"),
             "LyCORIS": write_joined("lycoris.safetensors", "lycoris_")}
    for layout, file in files.items():
        model, report = ours(file)
        assert worst(patched(model), want) < 1e-6, layout
        assert layout in report or layout == "peft" and "PEFT" in report, report
    assert "peft/adapter_model.safetensors" in files["peft"]


def test_native_layer_names_are_read_as_the_stock_loader_reads_them():
    tensors = {}
    for part in parts():
        stem = f"diffusion_model.{part.module}"
        tensors |= {f"{stem}.lora_up.weight": part.up, f"{stem}.lora_down.weight": part.down.flatten(1).contiguous(),
                    f"{stem}.alpha": torch.tensor(8.0)} if part.down.ndim == 2 else {}
    file = write("native.safetensors", tensors)
    assert worst(patched(ours(file)[0]), patched(stock(file))) < 1e-6


def test_the_stock_loader_takes_alpha_for_the_rank_and_ours_does_not():
    file = write("official.safetensors", peft_keys("unet.base_model.model."))
    name, before = "blocks.0.attn.proj.weight", dict(reference().named_parameters())
    true, taken = (patched(model)[name] - before[name] for model in (ours(file)[0], stock(file)))
    assert off(true, 2 * taken) < 1e-5


def test_a_chosen_alpha_scales():
    file = write("official.safetensors", peft_keys("unet.base_model.model."))
    model, report = ours(file, alpha=4.0)
    assert worst(patched(model), merged(Lora(parts(scale=1.0)))) < 1e-6 and "as chosen" in report


def test_strength_is_a_factor_and_zero_gives_back_the_same_model():
    file = write_ours("ours.safetensors")
    for strength in (0.5, -1.0):
        assert worst(patched(ours(file, strength)[0]), merged(Lora(parts()), strength)) < 1e-6
    model = load("alpha-1024")
    assert loader()().load(model, file, 0.0)[0] is model


def test_unloading_gives_every_bit_back_and_the_input_model_is_untouched():
    model = load("alpha-1024")
    before = patched(model)
    changed = loader()().load(model, write_ours("ours.safetensors"), 1.0)[0]
    assert worst(patched(changed), before) > 1e-2
    assert all(torch.equal(tensor, before[name]) for name, tensor in patched(model).items())


def test_a_lora_of_zeros_leaves_every_bit():
    tensors = {key: tensor * ("lora_A" in key) for key, tensor in peft_keys("transformer.").items()}
    got = patched(ours(write("zeros.safetensors", tensors))[0])
    assert all(torch.equal(tensor, got[name]) for name, tensor in reference().named_parameters())


def test_dora_equals_merged_weights_at_every_strength():
    for file in (write_folder("dora", dora=True), write_ours("dora.safetensors", dora=True)):
        for strength in (1.0, 0.4):
            model, report = ours(file, strength)
            assert worst(patched(model), merged(Lora(parts(dora=True)), strength)) < 1e-5
            assert report.startswith("DoRA")


def test_two_loras_add_up():
    file = write_ours("ours.safetensors")
    once = loader()().load(load("alpha-1024"), file, 0.25)[0]
    twice = loader()().load(once, file, 0.5)[0]
    assert worst(patched(twice), merged(Lora(parts()), 0.75)) < 1e-6


def test_layer_by_layer_offload_gives_the_same():
    for file in (write_ours("ours.safetensors"), write_folder("dora", dora=True)):
        model = ours(file)[0]
        assert off_when_offloaded(model) < 1e-5


def test_half_and_eighth_precision_models_take_it():
    file = write_ours("ours.safetensors")
    want = merged(Lora(parts()))["blocks.0.attn.qkv.weight"]
    for dtype, tolerance in (("bf16", 0.01), ("fp8_e4m3fn", 0.1)):
        model = loader()().load(load("alpha-1024", dtype), file, 1.0)[0]
        assert off(patched(model)["blocks.0.attn.qkv.weight"].float(), want) < tolerance
        result = sample(model, condition(text(3)), condition(text(3)), latent(64, 64))
        assert torch.isfinite(result).all()


def test_the_image_changes_and_merged_weights_give_the_same():
    file, prompt = write_ours("ours.safetensors"), condition(text(3))
    model = load("alpha-1024")
    plain = sample(model, prompt, prompt, latent(64, 64))
    got = sample(loader()().load(model, file, 1.0)[0], prompt, prompt, latent(64, 64))
    baked = load("alpha-1024")
    network(baked).load_state_dict(merged(Lora(parts())), strict=False)
    assert off(got, sample(baked, prompt, prompt, latent(64, 64))) < 1e-5 and off(got, plain) > 1e-2


def test_text_keys_are_ignored_and_counted():
    stem = "lora_te_encoder_block_0_layer_0_SelfAttention_q"
    tensors = load_file(FOLDER / write_joined("onetrainer.safetensors", "lora_transformer_"))
    file = write("with-text.safetensors", {**tensors, f"{stem}.lora_down.weight": torch.zeros(4, 64),
                                           f"{stem}.lora_up.weight": torch.zeros(64, 4)})
    report = ours(file)[1]
    assert f"{len(tensors)} of {len(tensors) + 2} keys used" in report and stem in report


def test_size_embedders_are_left_out_for_models_without_them():
    _, report = ours(write_ours("ours.safetensors"), name="alpha-512")
    count = 2 * len(pairs())
    assert f"{count - 2} of {count} keys used" in report and "resolution_embedder" in report


def test_a_lora_of_another_width_is_refused():
    part = LoraPart("blocks.0.attn.proj", 0, 1, torch.randn(4, 1152), torch.randn(1152, 4), 1.0)
    write_lora(FOLDER / "wide.safetensors", (part,))
    message = refusal(ours, "wide.safetensors")
    assert "wide.safetensors" in message and "1152" in message and "48" in message


def test_loras_of_other_models_are_named():
    key = "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight"
    message = refusal(ours, write("flux.safetensors", {key: torch.zeros(4, 4)}))
    assert "Flux" in message and "flux.safetensors" in message


def test_a_model_of_another_family_is_refused():
    other = SimpleNamespace(model=torch.nn.Linear(2, 2))
    assert "PixArt" in refusal(loader()().load, other, write_ours("ours.safetensors"), 1.0)


def test_a_truncated_and_a_missing_file_are_named():
    whole = (FOLDER / write_ours("ours.safetensors")).read_bytes()
    (FOLDER / "cut.safetensors").write_bytes(whole[:len(whole) // 2])
    assert "cut.safetensors" in refusal(ours, "cut.safetensors")
    message = refusal(ours, "nowhere.safetensors")
    assert "nowhere.safetensors" in message and "loras" in message


def test_the_list_and_the_fingerprint_follow_the_files():
    file = write_folder("peft")
    import folder_paths
    folder_paths.filename_list_cache.clear()
    assert file in loader().INPUT_TYPES()["required"]["file"][0]
    before = loader().IS_CHANGED(file=file)
    config = Path(FOLDER, "peft", "adapter_config.json")
    config.write_text(config.read_text() + " ")
    assert loader().IS_CHANGED(file=file) != before
