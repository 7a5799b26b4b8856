"""Files of weights with random numbers, written once a campaign: T5-XXL, a transformer, an autoencoder."""
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from pixart.checkpoint import save_checkpoint
from pixart.config import PixArtConfig
from pixart.files.atomic import replacing
from pixart.mini import SHIPPED

from .networks import autoencoder, transformer
from .setting import Setting

XXL = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128}
TINY_T5 = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 2, "vocab_size": 32128}
BLOCK = "encoder.block.{}.layer.{}.{}.weight"


def t5_shapes(sizes: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a T5 v1.1 encoder in the Hugging Face layout."""
    width, inner, hidden = sizes["d_model"], sizes["d_kv"] * sizes["num_heads"], sizes["d_ff"]
    yield "shared.weight", (sizes["vocab_size"], width)
    yield "encoder.final_layer_norm.weight", (width,)
    yield BLOCK.format(0, 0, "SelfAttention.relative_attention_bias"), (32, sizes["num_heads"])
    for i in range(sizes["num_layers"]):
        for leaf in "qkv":
            yield BLOCK.format(i, 0, f"SelfAttention.{leaf}"), (inner, width)
        yield BLOCK.format(i, 0, "SelfAttention.o"), (width, inner)
        for leaf in ("wi_0", "wi_1"):
            yield BLOCK.format(i, 1, f"DenseReluDense.{leaf}"), (hidden, width)
        yield BLOCK.format(i, 1, "DenseReluDense.wo"), (width, hidden)
        yield from ((BLOCK.format(i, layer, "layer_norm"), (width,)) for layer in (0, 1))


def t5_tensor(name: str, shape: tuple[int, ...], sizes: dict[str, int], generator: torch.Generator) -> torch.Tensor:
    """float16 on the CPU. T5 does not scale its attention, so queries start that much smaller."""
    if "norm" in name:
        return torch.ones(shape, dtype=torch.float16)
    scale = shape[-1] ** -0.5 * (sizes["d_kv"] ** -0.5 if ".q." in name else 1.0)
    return (torch.randn(shape, generator=generator, device=generator.device) * scale).half().cpu()


def t5_folder(setting: Setting) -> Path:
    """A Hugging Face folder of T5-XXL, all 24 layers of it 9.5 GB in float16, with the tokenizer of PixArt-mini."""
    from safetensors.torch import save_file
    folder, sizes = setting.work / "t5", t5_sizes(setting)
    if not (folder / "model.safetensors").exists():
        folder.mkdir(exist_ok=True)
        generator = torch.Generator(setting.device).manual_seed(5)
        facts = {"model_type": "t5", "feed_forward_proj": "gated-gelu", **sizes}
        (folder / "config.json").write_text(json.dumps(facts))
        shutil.copy(SHIPPED.t5 / "tokenizer.json", folder)
        with replacing(folder / "model.safetensors") as beside:
            save_file({name: t5_tensor(name, shape, sizes, generator) for name, shape in t5_shapes(sizes)}, beside)
    return folder


def t5_sizes(setting: Setting) -> dict[str, int]:
    sizes = TINY_T5 if setting.tiny else XXL
    return sizes | {"num_layers": setting.depth} if setting.depth else sizes


def text_width(setting: Setting) -> int:
    return (TINY_T5 if setting.tiny else XXL)["d_model"]


def transformer_file(setting: Setting, config: PixArtConfig, name: str) -> Path:
    path = setting.work / f"{name}.safetensors"
    if not path.exists():
        save_checkpoint(path, transformer(config, torch.float16, setting.device))
    return path


def vae_folder(setting: Setting) -> Path:
    """diffusers' layout, float32, as the published autoencoders are. Raises Absent."""
    folder = setting.work / "vae"
    if not (folder / "config.json").exists():
        autoencoder(setting.tiny, torch.float32, setting.device).cpu().save_pretrained(folder)
    return folder
