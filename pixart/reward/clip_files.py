"""CLIP networks from files: names of transformers or of open_clip, sizes from the shapes of the weights."""
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..weights import CheckpointError, Kind, Weights, check_finite, check_floating, open_weights, read_json

if TYPE_CHECKING:
    from transformers import CLIPConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CLIP_FILE = "a CLIP network: a Hugging Face folder with config.json, or a file of open_clip"
CLIP_KIND = Kind(CLIP_FILE, "", ("model", "pytorch_model", "open_clip_pytorch_model"))
HEADS = {1280: 16, 1408: 16, 1664: 16}          # of the vision transformers H, g and bigG; smaller ones have width / 64
# What open_clip calls a layer -> what transformers does; before these the tower and number of the layer.
_LAYER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
          "attn.out_proj": "self_attn.out_proj"}
_WHOLE = {"token_embedding.weight": "text_model.embeddings.token_embedding.weight",
          "positional_embedding": "text_model.embeddings.position_embedding.weight",
          "ln_final.weight": "text_model.final_layer_norm.weight", "ln_final.bias": "text_model.final_layer_norm.bias",
          "visual.class_embedding": "vision_model.embeddings.class_embedding",
          "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
          "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
          "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
          "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
          "visual.ln_post.weight": "vision_model.post_layernorm.weight",
          "visual.ln_post.bias": "vision_model.post_layernorm.bias", "logit_scale": "logit_scale"}
_PROJECTIONS = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_BLOCK = re.compile(r"(?P<tower>visual\.)?transformer\.resblocks\.(?P<number>\d{1,4})\.(?P<rest>.+)")
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_MEANINGLESS = re.compile(r"(.*\.)?position_ids|attn_mask")


def open_clip_network(path: Path, tokenizer: Path | None) -> "tuple[nn.Module, PreTrainedTokenizerBase]":
    """Network in float32, and its tokenizer. Raises CheckpointError (a ValueError) and FileNotFoundError."""
    from transformers import CLIPModel

    weights = open_weights(path, CLIP_KIND)
    named = {name: tensor for name, tensor in weights.tensors.items() if not _MEANINGLESS.fullmatch(name)}
    state = from_open_clip(named) if "visual.conv1.weight" in named else named
    check_clip(state, weights, path)
    config = config_of(state, path)
    words = open_tokenizer(path, tokenizer)
    with torch.device("meta"):
        network = CLIPModel(config)
    check_shapes(state, network.state_dict(), path)
    network.load_state_dict(as_float32(state, path, CLIP_FILE), assign=True)
    restore_buffers(network)
    eye: Any = config.vision_config
    logger.info("CLIP %s: %d px, %d layers", path, eye.image_size, eye.num_hidden_layers)
    return network.eval(), words


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of transformers: projections turned, query, key and value apart."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = _BLOCK.fullmatch(name)
        if block is not None:
            tower = "vision_model" if block["tower"] else "text_model"
            found.update(_layer(f"{tower}.encoder.layers.{block['number']}", block["rest"], tensor))
        elif name in _PROJECTIONS:
            found[_PROJECTIONS[name]] = tensor.T
        else:
            found[_WHOLE.get(name, name)] = tensor
    return found


def _layer(prefix: str, rest: str, tensor: Tensor) -> dict[str, Tensor]:
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {f"{prefix}.self_attn.{letter}_proj.{kind}": part for letter, part in zip("qkv", tensor.chunk(3))}
    layer, _, kind = rest.rpartition(".")
    return {f"{prefix}.{_LAYER.get(layer, layer)}.{kind}": tensor}


def check_clip(state: Mapping[str, Tensor], weights: Weights, path: Path) -> None:
    needed = ("vision_model.embeddings.patch_embedding.weight", "vision_model.embeddings.position_embedding.weight",
              "text_model.embeddings.token_embedding.weight", "text_model.embeddings.position_embedding.weight",
              "visual_projection.weight", "text_projection.weight", "vision_model.encoder.layers.0.mlp.fc1.weight",
              "text_model.encoder.layers.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        half = "only one half of a CLIP network" if len(missing) < len(needed) else "not a CLIP network"
        raise CheckpointError(path, f"{half} ({len(weights.tensors)} tensors, such as {min(weights.tensors)[:60]}; it "
                              f"lacks {missing[0]})", CLIP_FILE)


def config_of(state: Mapping[str, Tensor], path: Path) -> "CLIPConfig":
    """From config.json beside the weights, else from their shapes, as the networks of LAION are (plain GELU)."""
    from transformers import CLIPConfig

    file = (path if path.is_dir() else path.parent) / "config.json"
    if path.is_dir() and file.is_file() and "vision_config" in (told := read_json(file)):
        return CLIPConfig.from_dict(dict(told))
    vision, words = (_tower(state, kind) for kind in ("vision_model", "text_model"))
    patch = state["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    places = state["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    projection = state["visual_projection.weight"].shape[0]
    vision |= {"patch_size": patch, "image_size": patch * round(places ** 0.5), "projection_dim": projection}
    words |= {"vocab_size": state["text_model.embeddings.token_embedding.weight"].shape[0],
              "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0],
              "projection_dim": projection, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    logger.info("%s comes without its config.json: taken as a network of LAION, with plain GELU", path)
    return CLIPConfig(vision_config=vision, text_config=words, projection_dim=projection)


def _tower(state: Mapping[str, Tensor], kind: str) -> dict[str, Any]:
    inner, width = state[f"{kind}.encoder.layers.0.mlp.fc1.weight"].shape
    layers = {name.split(".")[3] for name in state if name.startswith(f"{kind}.encoder.layers.")}
    return {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": len(layers), "hidden_act": "gelu",
            "num_attention_heads": HEADS.get(width, max(1, width // 64)), "layer_norm_eps": 1e-5}


def check_shapes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, what: str = CLIP_FILE) -> None:
    """Refuse weights that are not exactly those of the network."""
    for names, said in ((wanted.keys() - state.keys(), "lacks"), (state.keys() - wanted.keys(), "has too much,")):
        if names:
            raise CheckpointError(path, f"{len(names)} of {len(wanted)} tensors do not fit: it {said} {min(names)}",
                                  what)
    wrong = [name for name, tensor in wanted.items() if state[name].shape != tensor.shape]
    if wrong:
        raise CheckpointError(path, f"{len(wrong)} tensors have the wrong shape, such as {wrong[0]} with "
                              f"{tuple(state[wrong[0]].shape)}", f"{tuple(wanted[wrong[0]].shape)} there")


def as_float32(state: Mapping[str, Tensor], path: Path, what: str) -> dict[str, Tensor]:
    """Copies of weights. CheckpointError for numbers that are no weights, or not finite."""
    for name, tensor in state.items():
        check_floating(name, tensor, path, what)
        check_finite(name, tensor, path, what)
    return {name: tensor.float().clone() for name, tensor in state.items()}


def restore_buffers(network: nn.Module) -> None:
    """What a network made without data lacks and no file holds: the numbers of its positions, 0, 1, 2, ..."""
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                assert name == "position_ids", name
                module.register_buffer(name, torch.arange(buffer.shape[-1])[None], persistent=False)


def open_tokenizer(path: Path, elsewhere: Path | None) -> "PreTrainedTokenizerBase":
    """CLIP's tokenizer from the folder of the weights, its `tokenizer` folder, or `elsewhere`."""
    from transformers import CLIPTokenizerFast  # type: ignore[attr-defined]

    own = path if path.is_dir() else path.parent
    places = [own, own / "tokenizer", *([] if elsewhere is None else [elsewhere])]
    for place in places:
        if any(all((place / name).is_file() for name in names) for names in TOKENIZERS):
            return CLIPTokenizerFast.from_pretrained(place, local_files_only=True)
    raise FileNotFoundError("CLIP's tokenizer is missing: put vocab.json and merges.txt (of any CLIP model, such as "
                            "openai/clip-vit-large-patch14; ComfyUI has them in comfy/sd1_tokenizer) beside the "
                            f"weights. Looked in {' and '.join(map(str, places))}")
