"""Writes the smallest models of every kind that the host tier needs, with random weights."""
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from pixart.checkpoint import load, save_checkpoint
from pixart.checkpoint.control import save_control
from pixart.checkpoint.header import to_header
from pixart.config import VARIANTS, PixArtConfig
from pixart.mini import SHIPPED
from pixart.model.controlnet import PixArtControlNet
from pixart.model.flexdit import transformer_class
from pixart.model.flexdit_config import FlexDiTConfig
from pixart.model.to_flexdit import to_flexdit
from pixart.model.transformer import PixArtTransformer
from pixart.pt_dit.config import PTDiTConfig
from pixart.pt_dit.load import save_pt_dit
from pixart.pt_dit.transformer import PTDiT
from pixart.text import Encoded, PromptReport, save_embeddings

WIDTH = 64                       # of the text features; 4-bit layers need multiples of 64
SHAPE = {"depth": 2, "hidden": 48, "heads": 4, "caption_width": WIDTH}


def tiny(variant: str, **changes: object) -> PixArtConfig:
    return replace(VARIANTS[variant], **{**SHAPE, **changes})


CONFIGS = {
    "alpha-1024": tiny("alpha-1024"),
    "alpha-512": tiny("alpha-512"),
    "alpha-256": tiny("alpha-256"),
    "sigma-1024": tiny("sigma-1024"),
    "sigma-2k": tiny("sigma-2k"),
    "deep-1024": tiny("alpha-1024", depth=5),       # the base of the ControlNets
    "flexdit": FlexDiTConfig.of(tiny("alpha-1024", depth=8)),
    "deep-sigma": tiny("sigma-1024", depth=5),
}
PT_DIT = PTDiTConfig(**SHAPE, base_size=8, window=4, proxy=4)
CONTROLS = {
    "control": (CONFIGS["deep-1024"], 3),
    "control-wide": (tiny("alpha-1024", depth=5, hidden=96), 3),
    "control-sigma": (CONFIGS["deep-sigma"], 3),
    "control-long": (tiny("alpha-1024", depth=8), 7),
}


def random_model(config: PixArtConfig, seed: int = 0) -> PixArtTransformer:
    """Every weight random, so that nothing is multiplied away."""
    torch.manual_seed(seed)
    return randomised(transformer_class(config)(config))


def random_control(config: PixArtConfig, blocks: int, seed: int = 4) -> PixArtControlNet:
    torch.manual_seed(seed)
    return randomised(PixArtControlNet(config, blocks))


def randomised(model: nn.Module) -> nn.Module:
    model = model.eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        fan_in = tensor[0].numel() if tensor.ndim > 1 and "table" not in name else 12
        tensor.copy_(torch.randn_like(tensor) / fan_in ** 0.5)
    return model


def write_transformer(folder: Path, name: str) -> Path:
    return save_checkpoint(folder / f"{name}.safetensors", random_model(CONFIGS[name]))


def write_pt_dit(path: Path) -> Path:
    torch.manual_seed(5)
    return save_pt_dit(path, randomised(PTDiT(PT_DIT)))


def write_t5(folder: Path, tokenizer: Path, width: int = WIDTH) -> Path:
    """A Hugging Face folder of two layers; `tokenizer` is the host's tokenizer.json of T5."""
    torch.manual_seed(1)
    square, block = (width, width), "encoder.block.{}.layer.{}.{}.weight"
    shapes = {"shared.weight": (32128, width), "encoder.final_layer_norm.weight": (width,),
              block.format(0, 0, "SelfAttention.relative_attention_bias"): (32, 4)}
    for index in range(2):
        shapes.update({block.format(index, 0, f"SelfAttention.{leaf}"): square for leaf in "qkvo"})
        shapes.update({block.format(index, 1, f"DenseReluDense.{leaf}"): square for leaf in ("wi_0", "wi_1", "wo")})
        shapes.update({block.format(index, layer, "layer_norm"): (width,) for layer in (0, 1)})
    state = {name: torch.ones(shape) if "norm" in name else torch.randn(shape) / shape[-1] ** 0.5
             for name, shape in shapes.items()}
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({
        "model_type": "t5", "architectures": ["T5EncoderModel"], "d_model": width, "d_kv": width // 4, "d_ff": width,
        "num_heads": 4, "num_layers": 2, "vocab_size": 32128, "feed_forward_proj": "gated-gelu"}))
    shutil.copy(tokenizer, folder / "tokenizer.json")
    return folder


def taesd_layers() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the host's small autoencoder (Tiny AutoEncoder for Stable Diffusion)."""
    def block(prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        for index in (0, 2, 4):
            yield f"{prefix}.conv.{index}.weight", (64, 64, 3, 3)
            yield f"{prefix}.conv.{index}.bias", (64,)

    def conv(prefix: str, out: int, into: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{prefix}.weight", (out, into, 3, 3)
        if bias:
            yield f"{prefix}.bias", (out,)

    yield from conv("taesd_encoder.0", 64, 3)
    yield from block("taesd_encoder.1")
    for start in (2, 6, 10):
        yield from conv(f"taesd_encoder.{start}", 64, 64, bias=False)
        for index in range(start + 1, start + 4):
            yield from block(f"taesd_encoder.{index}")
    yield from conv("taesd_encoder.14", 4, 64)
    yield from conv("taesd_decoder.1", 64, 4)
    for start in (3, 8, 13):
        for index in range(start, start + 3):
            yield from block(f"taesd_decoder.{index}")
        yield from conv(f"taesd_decoder.{start + 4}", 64, 64, bias=False)
    yield from block("taesd_decoder.18")
    yield from conv("taesd_decoder.19", 3, 64)


def write_vae(path: Path) -> Path:
    torch.manual_seed(2)
    state = {name: torch.randn(shape) / (torch.Size(shape[1:]).numel() * 2) ** 0.5 for name, shape in taesd_layers()}
    state.update(vae_scale=torch.tensor(0.18215), vae_shift=torch.tensor(0.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


def write_lora(path: Path) -> Path:
    """The layout of diffusers PixArt LoRAs: parts of fused weights, and a Linear outside of the blocks."""
    torch.manual_seed(3)
    modules = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_v", "transformer_blocks.0.ff.net.2")
    state = {}
    for module in modules:
        into = 4 * SHAPE["hidden"] if module.endswith("net.2") else SHAPE["hidden"]
        state[f"transformer.{module}.lora_A.weight"] = torch.randn(4, into)
        state[f"transformer.{module}.lora_B.weight"] = torch.randn(SHAPE["hidden"], 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


def write_controls(models: Path) -> None:
    """ControlNets alone, one with its base among the diffusion models, and one of another family."""
    folder = models / "controlnet"
    for name, (config, blocks) in CONTROLS.items():
        save_control(folder / f"{name}.safetensors", random_control(config, blocks))
    parts = {"base_model": random_model(CONFIGS["deep-1024"]), "": random_control(*CONTROLS["control"])}
    bundle = {f"{prefix}.{name}".lstrip(".").replace("table.weight", "table"): tensor
              for prefix, model in parts.items() for name, tensor in model.state_dict().items()}
    save_file(bundle, models / "diffusion_models" / "PixArt-ControlNet.safetensors", to_header(CONFIGS["deep-1024"]))
    save_file({"input_hint_block.0.weight": torch.zeros(16, 3, 3, 3),
               "zero_convs.0.0.weight": torch.zeros(8, 8, 1, 1)}, folder / "sd15.safetensors")


def write_models(models: Path, host: Path) -> None:
    """A `models` folder of the host with one of everything, wrong files included."""
    diffusion = models / "diffusion_models"
    for name in CONFIGS:
        write_transformer(diffusion, name)
    save_checkpoint(diffusion / "mini-flexdit.safetensors", to_flexdit(load(SHIPPED.teacher)))
    write_pt_dit(diffusion / "pt-dit.safetensors")
    whole = (diffusion / "alpha-1024.safetensors").read_bytes()
    (diffusion / "truncated.safetensors").write_bytes(whole[:len(whole) // 2])
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(9, 3), "img_in.weight": torch.zeros(3, 3)},
              diffusion / "flux.safetensors")
    tokenizer = host / "comfy" / "text_encoders" / "t5_tokenizer" / "tokenizer.json"
    write_t5(models / "text_encoders" / "tiny-t5", tokenizer)
    write_t5(models / "text_encoders" / "wide-t5", tokenizer, 2 * WIDTH)
    write_vae(models / "vae" / "tiny-vae.safetensors")
    for name in ("tiny-lora", "tiny-tdm", "tiny-dmd"):
        write_lora(models / "loras" / f"{name}.safetensors")
    write_controls(models)
    (models / "pixart_prompts").mkdir()
    save_embeddings(models / "pixart_prompts" / "tiny-prompt.safetensors",
                    Encoded(torch.randn(1, 5, WIDTH), torch.ones(1, 5, dtype=torch.bool),
                            [PromptReport("a cat", "a cat", 5, 5, 5)]))
    (models / "notes.json").write_text(json.dumps({"made by": "tests/host/tiny.py"}))
