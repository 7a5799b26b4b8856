"""What the host saves from our MODEL opens again as what it was, to the bit, and stock loaders read it too."""
from dataclasses import replace
from pathlib import Path

import comfy.sd
import folder_paths
import torch
from host import tiny
from safetensors import safe_open
from safetensors.torch import load_file
from support import MODELS, condition, latent, load, network, off, pack, sample, text
from torch import Tensor

from pixart.checkpoint import read_checkpoint, read_config, save_checkpoint
from pixart.config import VARIANTS

SAVED = Path(folder_paths.get_output_directory()) / "saved"


def save(model, name: str, vae=None) -> Path:
    """By the stock node, ModelSave or with a VAE CheckpointSave."""
    from comfy_extras import nodes_model_merging as stock
    if vae is None:
        stock.ModelSave().save(model, f"saved/{name}")
    else:
        stock.CheckpointSave().save(model, None, vae, f"saved/{name}")
    return max(SAVED.glob(f"{name}_*.safetensors"))


def copies(model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network(model).state_dict().items()}


def reopened(path: Path, dtype: str = "fp32") -> object:
    return pack("nodes.host.model").load_model(str(path), weight_dtype=dtype)


def test_every_variant_that_the_host_saves_opens_as_what_it_was():
    for name in ("alpha-1024", "alpha-512", "alpha-256", "sigma-1024", "sigma-2k"):
        dtype = "bf16" if name == "alpha-512" else "fp32"
        model = load(name, dtype)
        path = save(model, name)
        assert read_config(path) == tiny.CONFIGS[name] and "guessed" not in read_checkpoint(path).description
        again = reopened(path, dtype)
        want, got = copies(model), copies(again)
        assert want.keys() == got.keys() and all(torch.equal(want[key], got[key]) for key in want), name
        assert type(again.model.latent_format) is type(model.model.latent_format)


def test_a_saved_model_gives_the_same_image():
    model, prompt = load("sigma-2k", "fp32"), condition(text(3))
    want = sample(model, prompt, prompt, latent(64, 64))
    assert torch.equal(sample(reopened(save(model, "image")), prompt, prompt, latent(64, 64)), want)


def test_a_merged_model_is_saved_merged():
    from comfy_extras.nodes_model_merging import ModelMergeSimple
    other = MODELS / "diffusion_models" / "alpha-512-other.safetensors"
    save_checkpoint(other, tiny.random_model(tiny.CONFIGS["alpha-512"], seed=9))
    one, two = load("alpha-512", "fp32"), load("alpha-512-other", "fp32")
    first, second = copies(one), copies(two)
    path = save(ModelMergeSimple().merge(one, two, 0.25)[0], "merged")
    assert read_config(path) == tiny.CONFIGS["alpha-512"]
    found = read_checkpoint(path).state_dict
    for name, tensor in found.items():
        key = f"{name}.weight" if name.endswith("table") else name
        assert off(tensor, 0.25 * first[key] + 0.75 * second[key]) < 1e-6 or "y_embedding" in name, name
    again = reopened(path)
    merged = {f"{name}.weight" if name.endswith("table") else name: tensor for name, tensor in found.items()}
    assert all(torch.equal(tensor.to(merged[name].dtype), merged[name]) for name, tensor in copies(again).items())


def test_a_whole_checkpoint_opens_as_its_transformer():
    vae = comfy.sd.VAE(sd=load_file(MODELS / "vae" / "tiny-vae.safetensors"))
    model = load("alpha-256", "fp32")
    path = save(model, "whole", vae)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
    assert any(not name.startswith("model.diffusion_model.") for name in names)
    assert read_config(path) == tiny.CONFIGS["alpha-256"]
    want = copies(model)
    assert all(torch.equal(want[name], tensor) for name, tensor in copies(reopened(path)).items())


def test_a_model_without_a_null_caption_is_saved_without_one():
    from pixart.checkpoint.save_diffusers import save_diffusers
    folder = MODELS / "diffusion_models" / "no-null"
    save_diffusers(folder, tiny.random_model(tiny.CONFIGS["sigma-1024"]))
    model = load("no-null/diffusion_pytorch_model")
    path = save(model, "no-null")
    assert not read_checkpoint(path).has_null_caption and read_config(path) == tiny.CONFIGS["sigma-1024"]


def test_the_stock_loader_reads_what_the_host_saved():
    """It knows one width only; the training size it takes from the stored position table."""
    for variant, latents in (("sigma-2k", "SDXL"), ("alpha-1024", "SD15")):
        config = replace(VARIANTS[variant], depth=1)
        original = MODELS / "diffusion_models" / f"one-{variant}.safetensors"
        save_checkpoint(original, tiny.random_model(config))
        path = save(load(f"one-{variant}", "fp32"), f"one-{variant}")
        stock = comfy.sd.load_diffusion_model(str(path))
        assert type(stock.model.latent_format).__name__ == latents
        assert stock.model.model_config.unet_config["input_size"] == 2 * config.base_size
        found = stock.model.diffusion_model.state_dict()
        want = read_checkpoint(original).state_dict
        assert all(torch.equal(found[name].to(tensor.dtype), tensor.to(found[name].dtype).to(tensor.dtype))
                   for name, tensor in want.items())
        assert read_config(path) == config
        for file in (original, path):
            file.unlink()
