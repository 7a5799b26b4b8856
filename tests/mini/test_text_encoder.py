"""The tokenizer follows T5's conventions; the encoder is a plain T5 that transformers opens from its folder."""
import json
import random
from pathlib import Path

import torch

from pixart.mini import SHIPPED
from pixart.mini.grammar import caption
from pixart.mini.scenes import sample_scene
from pixart.mini.text_encoder import (
    MINI_TOKENS,
    WIDTH,
    build_encoder,
    build_tokenizer,
    load_text_encoder,
    save_text_encoder,
    text_features,
    tokenise,
    train_text_encoder,
)


def test_special_tokens_have_the_numbers_of_t5() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert tokenizer("").input_ids == [1]
    assert tokenizer("A RED ring.").input_ids == tokenizer("a red ring .").input_ids
    assert tokenizer("a dinosaur").input_ids[1:] == [2, 1]


def test_the_grammar_needs_no_unknown_words_and_fits() -> None:
    texts = [caption(sample_scene(index, 6, "held-out"), random.Random(index)) for index in range(1000)]
    tokens, mask = tokenise(build_tokenizer(), texts)
    assert not (tokens == 2).any()
    assert mask.sum(1).max() <= 24
    texts = [caption(sample_scene(index, 6, "held-out", crowded=True), random.Random(index)) for index in range(300)]
    tokens, mask = tokenise(build_tokenizer(), texts)
    assert not (tokens == 2).any()
    assert mask.sum(1).min() > 120 and mask.sum(1).max() < MINI_TOKENS


def test_long_prompts_are_cut_and_keep_their_end() -> None:
    tokens, mask = tokenise(build_tokenizer(), ["red " * 400], fixed=True)
    assert tokens.shape == (1, MINI_TOKENS) and tokens[0, -1] == 1 and mask.all()


def test_padding_changes_no_feature() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    encoder = build_encoder(len(tokenizer)).eval()
    text = "a red ring on black"
    alone, _ = text_features(tokenizer, encoder, [text])
    padded, mask = text_features(tokenizer, encoder, [text], fixed=True)
    assert padded.shape == (1, MINI_TOKENS, WIDTH)
    assert torch.allclose(padded[:, :mask.sum()], alone, atol=1e-5)


def test_the_folder_opens_with_transformers_own_classes(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = build_tokenizer()
    encoder = build_encoder(len(tokenizer)).eval()
    save_text_encoder(tmp_path / "t5", tokenizer, encoder)
    opened, again = AutoTokenizer.from_pretrained(tmp_path / "t5"), T5EncoderModel.from_pretrained(tmp_path / "t5")
    assert opened("a red ring.").input_ids == tokenizer("a red ring.").input_ids
    assert torch.equal(text_features(opened, again.eval(), ["a red ring"])[0],
                       text_features(tokenizer, encoder, ["a red ring"])[0])
    names = {path.name for path in (tmp_path / "t5").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    settings = json.loads((tmp_path / "t5" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast", "transformers 4 knows no other"


def test_training_writes_a_folder_that_opens(tmp_path: Path) -> None:
    train_text_encoder(tmp_path / "t5", steps=4, batch=4, captions=40)
    features, _ = text_features(*load_text_encoder(tmp_path / "t5"), ["a small red ring in the centre on grey"])
    assert features.isfinite().all()


def test_the_shipped_encoder_gives_features_of_unit_scale_that_tell_captions_apart() -> None:
    tokenizer, encoder = load_text_encoder(SHIPPED.t5)
    texts = ["a small red ring on the left on grey", "a small blue ring on the left on grey"]
    features, mask = text_features(tokenizer, encoder, texts)
    assert 0.5 < features[mask.bool()].std() < 2
    assert (features[0] - features[1]).norm(dim=-1).mean() > 1
