"""Weights in prompts: what is read, what is refused, and what becomes of the features."""
from pathlib import Path

import pytest
import torch

from pixart.text import EmbeddingCache, T5Encoder
from pixart.text.emphasis import (
    DEEPEST_EMPHASIS,
    WeightedText,
    weigh_tokens,
    weighted_parts,
    whole_characters,
    written_prompt,
)

READ = {
    "a cat": [WeightedText("a cat")],
    "": [WeightedText("")],
    "a (red:1.2) cat": [WeightedText("a "), WeightedText("red", 1.2), WeightedText(" cat")],
    "(red)": [WeightedText("red", 1.1)],
    "(red:0)": [WeightedText("red", 0.0)],
    "(red:-1.5)": [WeightedText("red", -1.5)],
    "(a:b:1.3)": [WeightedText("a:b", 1.3)],
    "(a:b)": [WeightedText("a:b", 1.1)],
    "(:1.3)": [WeightedText(":1.3", 1.1)],
    "((red:1.2) (blue:1.4):2.0)": [WeightedText("red", 1.2), WeightedText(" ", 2.0), WeightedText("blue", 1.4)],
    r"a \(red:1.2\) cat": [WeightedText("a (red:1.2) cat")],
    r"(\(red\):1.2)": [WeightedText("(red)", 1.2)],
    "a ( cat": [WeightedText("a "), WeightedText("( cat")],
    "a) cat": [WeightedText("a) cat")],
    "((((": [WeightedText("((((")],
    "()": [WeightedText("")],
}


@pytest.mark.parametrize("prompt", READ)
def test_weights_are_read_as_users_write_them(prompt: str) -> None:
    assert list(weighted_parts(prompt)) == READ[prompt]


def test_brackets_within_brackets_multiply() -> None:
    ((part,), (deep,)) = weighted_parts("((red))"), weighted_parts("((red:1.5))")
    assert part.text == "red" and part.weight == pytest.approx(1.21) and deep == WeightedText("red", 1.5)


@pytest.mark.parametrize("prompt", READ)
def test_written_parts_are_read_back(prompt: str) -> None:
    assert weighted_parts(written_prompt(READ[prompt])) == tuple(READ[prompt])


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "1e999"])
def test_a_weight_that_is_not_finite_is_refused_by_name(weight: str) -> None:
    with pytest.raises(ValueError, match=f"the weight '{weight}' in the prompt is not a finite number"):
        weighted_parts(f"a (red:{weight}) cat")


def test_depth_is_bounded() -> None:
    assert len(weighted_parts("(" * DEEPEST_EMPHASIS + "red" + ")" * DEEPEST_EMPHASIS)) == 1
    with pytest.raises(ValueError, match="brackets 33 deep"):
        weighted_parts("(" * 100_000 + "red" + ")" * 100_000)
    assert weighted_parts("(" * 100_000) == (WeightedText("(" * 100_000),)


def test_halves_of_characters_become_one_that_can_be_encoded() -> None:
    assert whole_characters("a \ud83d\ude00 b \ud83d c \ude00") == "a \U0001f600 b \ufffd c \ufffd"
    assert whole_characters("caf\u00e9 \U0001f600") == "caf\u00e9 \U0001f600"
    assert weighted_parts("\ud800red\ud801") == (WeightedText("\ufffdred\ufffd"),)  # not taken for brackets


@pytest.mark.parametrize("emphasis", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_half_a_character_is_a_note_and_no_traceback(t5_folder: Path, clean: bool, emphasis: bool) -> None:
    encoded = T5Encoder(t5_folder, 16).encode(["a red \ud83d cat"], 120, clean, emphasis=emphasis)
    assert "no tokens for: \ufffd" in encoded.reports[0].notes[0]
    encoded.reports[0].summary.encode()


def test_without_emphasis_brackets_are_text(t5_folder: Path) -> None:
    encoder = T5Encoder(t5_folder, 16)
    plain, weighted = (encoder.encode(["a (red:1.5) cat"], 120, emphasis=each) for each in (False, True))
    assert plain.reports[0].text == "a (red:1.5) cat" and plain.reports[0].notes
    assert weighted.reports[0].text == "a red cat" and not weighted.reports[0].notes


def test_a_weight_moves_its_tokens_away_from_padding_and_no_others(t5_folder: Path) -> None:
    encoder = T5Encoder(t5_folder, 16)
    plain = encoder.encode(["a red cat"], 120).context[0]
    got = encoder.encode(["a (red:1.5) cat"], 120, emphasis=True).context[0]
    with torch.no_grad():
        padding = encoder.model(input_ids=torch.zeros(1, 4, dtype=torch.long)).last_hidden_state[0].float()
    want = plain.clone()
    want[1] = padding[1] + 1.5 * (plain[1] - padding[1])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert torch.equal(got[[0, 2, 3]], plain[[0, 2, 3]])


def test_weight_one_and_an_escape_change_nothing(t5_folder: Path) -> None:
    encoder = T5Encoder(t5_folder, 16)
    plain = encoder.encode(["a red cat"], 120).context
    assert torch.equal(encoder.encode(["a (red:1.0) cat"], 120, emphasis=True).context, plain)
    raw = encoder.encode(["a (red) cat"], 120).context
    assert torch.equal(encoder.encode([r"a \(red\) cat"], 120, emphasis=True).context, raw)


def test_weights_survive_the_cleaning(t5_folder: Path) -> None:
    encoder = T5Encoder(t5_folder, 16)
    got = encoder.encode(["A (RED:1.5) Cat #12345"], 120, clean=True, emphasis=True)
    assert got.reports[0].text == "a red cat" and got.reports[0].tokens == 4
    assert torch.equal(got.context, encoder.encode(["a (red:1.5) cat"], 120, emphasis=True).context)


def test_a_weighted_prompt_does_not_depend_on_its_neighbours(t5_folder: Path) -> None:
    encoder = T5Encoder(t5_folder, 16)
    prompts = ["a (red:1.5) cat", "one two three four five six", "(a cat:0.5)"]
    together = encoder.encode(prompts, 120, emphasis=True)
    for row, prompt in enumerate(prompts):
        assert torch.equal(together.one(row).context, encoder.encode([prompt], 120, emphasis=True).context)


def test_what_is_cut_is_named_without_its_brackets(t5_folder: Path) -> None:
    report = T5Encoder(t5_folder, 16).encode(["one (two three:1.2) four five"], 4, emphasis=True).reports[0]
    assert report.summary == "4 of 4 tokens, the prompt needs 6; 2 words cut: four five"


def test_the_cache_tells_emphasis_from_text(t5_folder: Path) -> None:
    encoder, cache = T5Encoder(t5_folder, 16), EmbeddingCache()
    for emphasis in (False, True, False, True):
        for clean in (False, True):
            got = cache.encode(encoder, ["a (red:1.5) cat"], 120, clean, emphasis)
            assert torch.equal(got.context, encoder.encode(["a (red:1.5) cat"], 120, clean, emphasis=emphasis).context)
    assert (cache.misses, cache.hits) == (4, 4)


def test_features_at_weight_one_are_the_same_bits() -> None:
    features, padding = torch.randn(3, 8), torch.randn(3, 8)
    got = weigh_tokens(features, padding, [1.0, 0.0, 2.0])
    assert torch.equal(got[0], features[0]) and torch.equal(got[1], padding[1])
