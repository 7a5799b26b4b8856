"""Small CLIP and ImageReward networks with random weights, as files in the published layouts."""
import json
from pathlib import Path

import torch
from torch import Tensor, nn

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = 100
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1,
        "max_position_embeddings": 20, "hidden_act": "gelu", "bos_token_id": 0, "eos_token_id": 2,
        "pad_token_id": 1}
VISION = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8, "hidden_act": "gelu"}


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight random and of a size that lets signals pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            fan = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan ** 0.5 + (tensor.ndim == 1) * 0.5)
            if name == "logit_scale":
                tensor.fill_(3.0)
    return network.eval()


def write_clip_tokenizer(folder: Path) -> int:
    """A byte-pair vocabulary of letters alone; the number of its words."""
    from tokenizers.pre_tokenizers import ByteLevel
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(words)


def hugging_face_clip(folder: Path, seed: int = 0) -> nn.Module:
    """Writes a folder with weights, config.json and tokenizer; the network of transformers with these weights."""
    from transformers import CLIPConfig, CLIPModel
    words = write_clip_tokenizer(folder)
    config = CLIPConfig(text_config={**TEXT, "vocab_size": words, "projection_dim": 24},
                        vision_config={**VISION, "projection_dim": 24}, projection_dim=24)
    network = randomised(CLIPModel(config), seed)
    network.save_pretrained(folder)
    return network


def bert_vocabulary(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(words))
    return len(words)


def images(count: int = 2, height: int = 48, width: int = 40, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
