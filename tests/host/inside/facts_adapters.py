"""LoRAs of every adapter on a MODEL: ours gives what merged weights give, the stock loader where the layout is its own.

Also what the host itself trains and extracts.
"""
from pathlib import Path
from unittest.mock import patch

import folder_paths
import torch
from checkpoint.adapters_at_hand import ADAPTERS, LAYOUTS, STOCK, updated, written
from host import tiny
from safetensors.torch import load_file, save_file
from support import MODELS, condition, latent, load, network, off, off_when_offloaded, pack, sample, text
from torch import Tensor

from pixart.checkpoint import save_checkpoint
from pixart.checkpoint.lora import merge_lora, read_lora

FOLDER = MODELS / "loras"
CONFIG = tiny.CONFIGS["alpha-1024"]
MODULES = ("x_embedder.proj", "t_block.1", "final_layer.linear", "y_embedder.y_proj.fc1",
           *(f"blocks.1.{name}" for name in ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear",
                                             "mlp.fc1", "mlp.fc2")))
# The host needs an alpha for BOFT, and takes lengths of the unchanged rows for DoRA: no oracle.
NOT_STOCK = ("DoRA", "LoRA of peft")


def weights() -> dict[str, Tensor]:
    parameters = dict(tiny.random_model(CONFIG).named_parameters())
    return {module: parameters[f"{module}.weight"].clone() for module in MODULES}


def write(name: str, tensors: dict[str, Tensor]) -> str:
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file(tensors, FOLDER / name)
    return name


def ours(file: str, strength: float = 1.0, alpha: float = 0.0):
    return pack("nodes.lora").PixArtDeltaLoraLoader().load(load("alpha-1024", "fp32"), file, strength, alpha)


def stock(file: str, strength: float = 1.0):
    import nodes
    return nodes.LoraLoaderModelOnly().load_lora_model_only(load("alpha-1024", "fp32"), file, strength)[0]


def image(model) -> Tensor:
    return sample(model, condition(text(3)), condition(text(3)), latent(64, 64))


def drawn_with(layout: str) -> Tensor:
    """With the update in the weights themselves."""
    model = load("alpha-1024", "fp32")
    state = {f"{module}.weight": tensor for module, tensor in updated(layout, weights()).items()}
    network(model).load_state_dict(state, strict=False)
    return image(model)


def patched(model) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network(model).named_parameters()}


def test_every_adapter_in_every_layout_gives_the_same_image():
    wanted = {layout: drawn_with(layout) for layout in ("ComfyUI", "diffusers")}
    plain = image(load("alpha-1024", "fp32"))
    for layout, (_, diffusers, _) in LAYOUTS.items():
        want = wanted["diffusers" if diffusers else "ComfyUI"]
        assert off(want, plain) > 1e-2
        for adapter in ADAPTERS:
            keys = written(adapter, layout, weights())
            file = write("adapter.safetensors", keys)
            model, report = ours(file, alpha=2.0 if adapter == "LoRA of peft" else 0.0)
            assert off(image(model), want) < 1e-5, (adapter, layout)
            assert f"{len(keys)} of {len(keys)} keys used" in report, (adapter, layout)


def test_the_stock_loader_reads_its_own_layouts_the_same():
    wanted = {layout: drawn_with(layout) for layout in ("ComfyUI", "diffusers")}
    for layout in STOCK:
        for adapter in ADAPTERS:
            if not adapter.startswith(NOT_STOCK):
                file = write("adapter.safetensors", written(adapter, layout, weights()))
                want = wanted["diffusers" if LAYOUTS[layout][1] else "ComfyUI"]
                assert off(image(stock(file)), want) < 1e-5, (adapter, layout)


def test_strength_and_unloading():
    before = patched(load("alpha-1024", "fp32"))
    for adapter in ADAPTERS:
        file = write("adapter.safetensors", written(adapter, "ComfyUI", weights()))
        alpha = 2.0 if adapter == "LoRA of peft" else None
        model = ours(file, -0.4, alpha or 0.0)[0]
        merged = tiny.random_model(CONFIG)
        merge_lora(merged, read_lora(FOLDER / file, alpha), -0.4)
        got = patched(model)
        assert max(off(got[name], want) for name, want in merged.named_parameters()) < 1e-5, adapter
        model.unpatch_model()
        assert all(torch.equal(tensor, before[name])
                   for name, tensor in model.model.diffusion_model.named_parameters()), adapter


def test_layer_by_layer_offload_gives_the_same():
    for adapter in ("LoKr", "OFT", "DoRA", "full difference"):
        model = ours(write("adapter.safetensors", written(adapter, "ComfyUI", weights())))[0]
        assert off_when_offloaded(model) < 1e-5, adapter


def test_two_adapters_of_different_kinds_add_up():
    """The second acts on the weights as the first left them, as in the library."""
    files = [write(f"{name}.safetensors", written(adapter, "ComfyUI", weights()))
             for name, adapter in (("one", "LoKr"), ("two", "full difference"))]
    loader = pack("nodes.lora").PixArtDeltaLoraLoader()
    once = loader.load(load("alpha-1024", "fp32"), files[0], 0.5)[0]
    twice = loader.load(once, files[1], 0.25)[0]
    merged = tiny.random_model(CONFIG)
    for file, strength in zip(files, (0.5, 0.25), strict=True):
        merge_lora(merged, read_lora(FOLDER / file), strength)
    got = patched(twice)
    assert max(off(got[name], want) for name, want in merged.named_parameters()) < 1e-6


def extracted(lora_type: str) -> str:
    """What ModelMergeSubtract and LoraSave of the host make of two models; returns the LoRA's name."""
    import asyncio

    from comfy_extras import nodes_lora_extract
    from comfy_extras.nodes_model_merging import ModelSubtract
    save_checkpoint(MODELS / "diffusion_models" / "other.safetensors", tiny.random_model(CONFIG, seed=7))
    difference = ModelSubtract().merge(load("other", "fp32"), load("alpha-1024", "fp32"), 1.0)[0]
    done = nodes_lora_extract.LoraSave.execute("loras/extracted", 8, lora_type, True, difference)
    assert not asyncio.iscoroutine(done)
    found = max(Path(folder_paths.get_output_directory(), "loras").glob("extracted_*.safetensors"))
    return write(f"extracted-{lora_type}.safetensors", load_file(found))


def test_loras_that_the_host_extracts_are_used_whole_and_as_by_its_own_loader():
    for lora_type in ("standard", "full_diff"):
        file = extracted(lora_type)
        model, report = ours(file)
        count = len(load_file(FOLDER / file))
        assert f"{count} of {count} keys used" in report and "bias" not in report
        got, want = patched(model), patched(stock(file))
        assert max(off(got[name], want[name]) for name in want) < 1e-5, lora_type
        assert off(got["blocks.0.attn.qkv.bias"], patched(load("alpha-1024", "fp32"))["blocks.0.attn.qkv.bias"]) > 0.1
    other = dict(tiny.random_model(CONFIG, seed=7).named_parameters())
    assert max(off(got[name], want) for name, want in other.items()) < 2e-3          # the host keeps 16 bits


def trained(algorithm: str) -> str:
    """A LoRA in the very names and shapes of the host's training node, with numbers that are not zero."""
    from comfy_extras import nodes_train
    model = load("alpha-1024", "fp32")
    network(model)
    made = {}
    for name, module in model.model.named_modules():
        if not hasattr(module, "weight_function") or module.weight is None:
            continue
        if hasattr(nodes_train, "_create_weight_adapter"):
            made |= nodes_train._create_weight_adapter(module, name, {}, algorithm, torch.float32, 4)[1]
            if getattr(module, "bias", None) is not None:
                made |= nodes_train._create_bias_adapter(module, name, torch.float32)[1]
        else:
            from comfy.weight_adapter import adapter_maps
            train = adapter_maps[algorithm].create_train(module.weight, rank=4, alpha=1.0)
            made |= {f"{name}.{key}": value for key, value in train.named_parameters()}
    generator = torch.Generator().manual_seed(8)
    return write(f"trained-{algorithm}.safetensors", {
        key: tensor.detach().clone() if key.endswith("alpha") else 0.1 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in made.items()})


def test_loras_that_the_host_trains_are_used_whole_and_as_by_its_own_loader():
    for algorithm in ("LoRA", "LoHa", "LoKr", "OFT"):
        file = trained(algorithm)
        model, report = ours(file)
        count = len(load_file(FOLDER / file))
        assert f"{count} of {count} keys used" in report, report
        got, want = patched(model), patched(stock(file))
        worst = max(want, key=lambda name: off(got[name], want[name]))
        assert off(got[worst], want[worst]) < 1e-4, (algorithm, worst)


def test_loras_beside_the_weights_give_what_merged_ones_do():
    """The host's bypass mode, which changes what layers say instead of their weights: the modulation tables too.

    Without OFT, which this mode of the host cannot run on any layer.
    """
    import comfy.sd
    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        return
    plain = image(load("alpha-1024", "fp32"))
    for algorithm in ("LoRA", "LoHa", "LoKr"):
        whole = load_file(FOLDER / trained(algorithm))
        for keys in (whole, {key: value for key, value in whole.items() if "scale_shift_table" in key}):
            want = image(stock(write("beside.safetensors", keys), 0.5))
            beside, _ = comfy.sd.load_bypass_lora_for_models(load("alpha-1024", "fp32"), None, keys, 0.5, 0)
            assert 0 < 100 * off(image(beside), want) < off(want, plain) or torch.equal(image(beside), want)
            assert not torch.equal(want, plain)
    assert torch.equal(image(load("alpha-1024", "fp32")), plain)


def test_adapters_that_came_off_leave_the_tables_as_they_were():
    """The host leaves a forward on every layer it had changed."""
    import comfy.sd
    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        return
    model = load("alpha-1024", "fp32")
    plain = image(model)
    beside, _ = comfy.sd.load_bypass_lora_for_models(model, None, load_file(FOLDER / trained("LoRA")), 0.5, 0)
    assert not torch.equal(image(beside), plain)
    table = model.model.diffusion_model.blocks[0].scale_shift_table
    assert table.is_changed()
    with patch.object(type(table), "changed_table", side_effect=AssertionError):
        assert torch.equal(image(model), plain)
    assert "forward" in vars(table) and not table.is_changed()
