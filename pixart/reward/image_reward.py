"""ImageReward (Xu et al. 2023): BLIP reads prompt and image together, a small network turns that into a score."""
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..weights import CheckpointError, Kind, open_weights
from .clip_files import as_float32, check_shapes, restore_buffers
from .eyes import clip_normalised, middle_square
from .protocol import check_images

if TYPE_CHECKING:
    from tokenizers import BertWordPieceTokenizer

logger = logging.getLogger(__name__)

IMAGE_REWARD_FILE = "ImageReward.pt of zai-org/ImageReward (formerly THUDM/ImageReward)"
IMAGE_REWARD_KIND = Kind(IMAGE_REWARD_FILE, "", ("ImageReward", "model"))
BLIP_TOKENS = 35                    # longest prompt in its training
SCORE_MEAN, SCORE_DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the scores in its training
MLP = (1024, 128, 64, 16, 1)
MLP_PLACES = (0, 2, 4, 6, 7)        # of the layers in the file: between them is dropout
# Names of `BlipScorer` that say what it is, and how large.
SCORER_PARTS = ("vision.embeddings.patch_embedding.weight", "vision.embeddings.position_embedding",
          "vision.encoder.layers.0.mlp.fc1.weight", "text.embeddings.word_embeddings.weight",
          "text.embeddings.position_embeddings.weight", "text.encoder.layer.0.intermediate.dense.weight",
          "text.encoder.layer.0.crossattention.self.key.weight", "mlp.0.weight")
_VISION = (("patch_embed.proj.", "embeddings.patch_embedding."), ("norm.", "post_layernorm."),
           ("blocks.", "encoder.layers."))
_VISION_PARTS = ((".attn.proj.", ".self_attn.projection."), (".attn.qkv.", ".self_attn.qkv."),
                 (".norm1.", ".layer_norm1."), (".norm2.", ".layer_norm2."))


class BlipScorer(nn.Module):
    """The network: images, token ids and mask in, scores out."""

    def __init__(self, vision: dict[str, Any], text: dict[str, Any]) -> None:
        from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        self.text = BlipTextModel(BlipTextConfig(**text), add_pooling_layer=False)
        widths = (text["hidden_size"], *MLP)
        self.mlp = nn.Sequential(*(nn.Linear(a, b) for a, b in zip(widths, widths[1:])))

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        seen = self.vision(pixel_values=images).last_hidden_state
        read = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen,
                         encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device))
        return (self.mlp(read.last_hidden_state[:, 0]).float()[:, 0] - SCORE_MEAN) / SCORE_DEVIATION


class ImageReward(nn.Module):
    """Human preference by ImageReward-v1.0: about -2 for bad to 2 for good."""

    name = "imagereward"

    def __init__(self, network: BlipScorer, tokenizer: "BertWordPieceTokenizer") -> None:
        super().__init__()
        self.network, self.tokenizer = network.eval().requires_grad_(False), tokenizer
        config: Any = network.vision.config
        self.side: int = config.image_size

    @classmethod
    def open(cls, path: str | Path, tokenizer: str | Path | None = None) -> "ImageReward":
        """A folder with ImageReward.pt and vocab.txt, or the file itself.

        tokenizer: folder with the vocab.txt of bert-base-uncased, where it does not lie beside the weights.
        """
        path = Path(path)
        return cls(open_blip(path), open_vocabulary(path, None if tokenizer is None else Path(tokenizer)))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_images(images, prompts)
        weight = next(self.network.mlp.parameters())
        shown = clip_normalised(middle_square(images.float().to(weight.device), self.side)).to(weight.dtype)
        ids, mask = (part.to(weight.device) for part in self._tokens(prompts))
        return self.network(shown, ids, mask)

    def _tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids and mask (B, L) int64, padded to the longest."""
        rows = [self.tokenizer.encode(prompt).ids for prompt in prompts]
        for row in rows:
            if len(row) > BLIP_TOKENS:
                logger.warning("%s reads %d tokens, a prompt has %d; it is scored by its beginning", self.name,
                               BLIP_TOKENS, len(row))
        rows = [row if len(row) <= BLIP_TOKENS else [*row[:BLIP_TOKENS - 1], row[-1]] for row in rows]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return ids, (torch.arange(longest)[None] < torch.tensor(list(map(len, rows)))[:, None]).long()


def open_blip(path: Path) -> BlipScorer:
    """In float32. Raises CheckpointError (a ValueError)."""
    weights = open_weights(path, IMAGE_REWARD_KIND)
    state = renamed(weights.tensors)
    missing = [name for name in SCORER_PARTS if name not in state]
    if missing:
        kind = "only a part of ImageReward" if len(missing) < len(SCORER_PARTS) else "not ImageReward"
        raise CheckpointError(path, f"{kind} ({len(weights.tensors)} tensors, such as {min(weights.tensors)[:60]}; it "
                              f"lacks {missing[0]})", IMAGE_REWARD_FILE)
    with torch.device("meta"):
        network = BlipScorer(*configs_of(state))
    check_shapes(state, network.state_dict(), path, IMAGE_REWARD_FILE)
    network.load_state_dict(as_float32(state, path, IMAGE_REWARD_FILE), assign=True)
    restore_buffers(network)
    return network


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published names -> those of `BlipScorer`; what its training had besides is left out."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith("blip.visual_encoder."):
            found["vision." + _vision_name(name.removeprefix("blip.visual_encoder."))] = tensor
        elif name.startswith("blip.text_encoder.") and not name.endswith("position_ids"):
            found["text." + name.removeprefix("blip.text_encoder.")] = tensor
        elif (layer := re.fullmatch(r"mlp\.layers\.(\d)\.(weight|bias)", name)) and int(layer[1]) in MLP_PLACES:
            found[f"mlp.{MLP_PLACES.index(int(layer[1]))}.{layer[2]}"] = tensor
    return found


def _vision_name(name: str) -> str:
    whole = {"cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding"}
    for old, new in _VISION:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    for old, new in _VISION_PARTS:
        name = name.replace(old, new)
    return whole.get(name, name)


def configs_of(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes of both halves; heads are 64 channels wide in them."""
    width, _, patch, _ = state["vision.embeddings.patch_embedding.weight"].shape
    places = state["vision.embeddings.position_embedding"].shape[1] - 1
    vocabulary, inside = state["text.embeddings.word_embeddings.weight"].shape
    vision = {"hidden_size": width, "patch_size": patch, "image_size": patch * round(places ** 0.5),
              "intermediate_size": state["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
              "num_hidden_layers": _layers(state, "vision.encoder.layers."), "layer_norm_eps": 1e-6,
              "num_attention_heads": max(1, width // 64), "hidden_act": "gelu"}
    text = {"vocab_size": vocabulary, "hidden_size": inside, "encoder_hidden_size": width, "hidden_act": "gelu",
            "intermediate_size": state["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
            "num_hidden_layers": _layers(state, "text.encoder.layer."), "layer_norm_eps": 1e-12,
            "num_attention_heads": max(1, inside // 64), "is_decoder": True,     # what gives it cross-attention
            "max_position_embeddings": state["text.embeddings.position_embeddings.weight"].shape[0],
            "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0, "sep_token_id": None}
    return vision, text


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def open_vocabulary(path: Path, elsewhere: Path | None) -> "BertWordPieceTokenizer":
    """The lower-casing word-piece tokenizer of BERT, from its vocab.txt."""
    from tokenizers import BertWordPieceTokenizer

    own = path if path.is_dir() else path.parent
    places = [own, own / "tokenizer", *([] if elsewhere is None else [elsewhere])]
    for place in places:
        if (place / "vocab.txt").is_file():
            return BertWordPieceTokenizer(str(place / "vocab.txt"), lowercase=True)
    raise FileNotFoundError("BERT's vocabulary is missing: put vocab.txt of google-bert/bert-base-uncased beside "
                            f"ImageReward.pt. Looked in {' and '.join(map(str, places))}")
