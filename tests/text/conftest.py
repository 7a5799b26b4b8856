"""A tiny random T5 in a Hugging Face folder, with a tokenizer that knows a few words."""
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

WORDS = ["a", "the", "of", "and", "with", "red", "green", "blue", "small", "large", "cat", "dog", "house", "circle",
         "square", "on", "in", "under", "above", "photo", "painting", "word", "one", "two", "three", "four", "five",
         "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(4)        # a setting that must not matter
    tokenizer.save(str(folder / "tokenizer.json"))


def tiny_config(**changes: object) -> dict:
    return {"vocab_size": 64, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4,
            "feed_forward_proj": "gated-gelu", "dropout_rate": 0.1, **changes}


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json, model.safetensors in float32, tokenizer.json."""
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    T5EncoderModel(T5Config(**tiny_config())).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def t5_weights(t5_folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(t5_folder / "model.safetensors")


def copy_config(t5_folder: Path, to: Path, **changes: object) -> None:
    to.mkdir(parents=True, exist_ok=True)
    config = json.loads((t5_folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **changes}))
    write_tokenizer(to)
