"""Telling a T5 v1.1 encoder from every other family of weights by names, so that a wrong file gets a clear error."""
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..weights.errors import CheckpointError

# (part of a key, what a file with it looks like); the first that occurs names the file.
_OTHERS = (
    ("text_model.encoder.layers.", "a CLIP text encoder"),
    ("transformer.resblocks.", "an OpenCLIP text encoder"),
    ("model.layers.0.self_attn.q_proj", "a language model (Llama, Gemma, Qwen or the like)"),
    ("blk.0.attn_q", "a language model or T5 in GGUF names"),
    ("encoder.layer.0.attention.self", "a BERT text encoder"),
    ("y_embedder.y_proj", "a PixArt transformer"),
    ("caption_projection.linear_1", "a PixArt transformer in diffusers layout"),
    ("double_blocks.", "a Flux-like diffusion transformer"),
    ("joint_blocks.", "an SD3 diffusion transformer"),
    ("transformer_blocks.", "a diffusion transformer"),
    ("model.diffusion_model.", "a diffusion checkpoint"),
    ("decoder.conv_in", "a VAE"),
    ("taesd_decoder", "a small autoencoder (TAESD)"),
    ("lora_", "a LoRA"),
)


def check_t5_family(keys: Iterable[str], config: dict[str, Any], path: Path) -> None:
    """Raises CheckpointError that names what it looks like, unless these are tensors of a gated T5 (v1.1) encoder."""
    found = _other_family(set(keys), config)
    if found:
        raise CheckpointError(path, f"it looks like {found}", "the T5 v1.1 XXL encoder (t5xxl_fp16.safetensors, or "
                              "the text_encoder folder of a PixArt release)")


def _other_family(keys: set[str], config: dict[str, Any]) -> str:
    family = config.get("model_type", "t5")
    if family != "t5":
        return f"a model of the {family} family (model_type in its config.json)"
    if config.get("quantization_config"):
        return "a T5 that was already quantised when it was saved (quantization_config in its config.json)"
    if any(key.endswith("encoder.block.0.layer.0.SelfAttention.q.weight") for key in keys):
        return _other_t5(keys, config)
    if any("decoder.block.0.layer.0.SelfAttention.q.weight" in key for key in keys):
        return "the decoder of a T5 without its encoder"
    for part, name in _OTHERS:
        if any(part in key for key in keys):
            return name
    example = min(keys, default="no tensors at all")
    return f"something other than a T5 ({len(keys)} tensors, such as {example})"


def _other_t5(keys: set[str], config: dict[str, Any]) -> str:
    def has(name: str) -> bool:
        return any(key.endswith(name) for key in keys)

    if has("encoder.block.0.layer.1.DenseReluDense.wi.weight"):
        return "a T5 v1.0 encoder (t5-small to t5-11b), which has no gated feed-forward layers"
    if not has("encoder.block.0.layer.1.DenseReluDense.wi_0.weight"):
        return "a T5 encoder without feed-forward layers"
    if has("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"):
        return "a UMT5 encoder, which has position tables in every block"
    if str(config.get("tokenizer_class", "")).startswith("ByT5"):
        return "a ByT5 encoder, which reads bytes"
    return ""
