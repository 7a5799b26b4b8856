"""Long prompts: cut, whole, or in segments; what a single sentence gives, what order changes, that nothing is lost."""
import re

import pytest
import torch

from pixart.text.long import LONGEST_PROMPT, MODES, encode_long
from pixart.text.segments import split_segments
from pixart.text.t5 import T5Encoder

LONG = "a red cat on a house. the small dog in a circle; two green square under one word! three and four"
LIMIT = 6


@pytest.fixture(scope="module")
def encoder(t5_folder):
    return T5Encoder(t5_folder, 16)


def encode(encoder, *prompts, mode="segments", limit=40, **named):
    return encode_long(lambda some, most: encoder.encode(some, most), list(prompts), limit, mode, **named)


@pytest.mark.parametrize("text, count", [("", 1), ("  ", 1), ("a cat", 1), ("a cat.", 1), ("v1.5 of a.png is good", 1),
                                         ("one. two? three! four; five", 5), ('"one." two', 2), ("a... b", 2),
                                         ("\n.\n\n. x", 3), ("line one.\nline two.", 2)])
def test_sentences_are_found_and_no_word_is_lost(text, count):
    segments = split_segments(text)
    assert len(segments) == count
    assert re.sub(r"\s", "", "".join(segments)) == re.sub(r"\s", "", text)
    assert all(segments) or segments == [""]


def test_brackets_of_weights_stay_whole():
    text = r"a (red cat. a dog:1.3) here. b \(open. end"
    assert split_segments(text, emphasis=True) == ["a (red cat. a dog:1.3) here.", r"b \(open.", "end"]
    assert len(split_segments(text)) == 4
    assert split_segments("one) two. (three. four:1.2) five", emphasis=True) == ["one) two.", "(three. four:1.2) five"]


def test_a_single_segment_is_encoded_as_always(encoder):
    for prompt in ("a red cat on a house", "", "one two three."):
        plain = encoder.encode([prompt], 40)
        for mode in MODES:
            got = encode(encoder, prompt, mode=mode)
            assert torch.equal(got.context, plain.context) and torch.equal(got.mask, plain.mask)
            assert got.reports == plain.reports


def test_segments_stand_behind_each_other_without_their_end_tokens(encoder):
    parts = [encoder.encode([segment], 40) for segment in split_segments(LONG)]
    lengths = [part.reports[0].tokens for part in parts]
    got = encode(encoder, LONG)
    assert got.context.shape[1] == sum(lengths) - len(parts) + 1
    want = torch.cat([part.context[:, :-1] for part in parts[:-1]] + [parts[-1].context], dim=1)
    assert torch.equal(got.context, want)
    kept = encode(encoder, LONG, inner_ends=True)
    assert torch.equal(kept.context, torch.cat([part.context for part in parts], dim=1))
    report = got.reports[0]
    assert report.tokens == got.context.shape[1] and report.cut == ""
    assert [note.split(":")[0] for note in report.notes[:4]] == [
        f"segment {number}, {length} tokens" for number, length in enumerate(lengths, 1)]


def test_the_order_of_sentences_changes_the_order_of_tokens_alone(encoder):
    one, two = "a red cat.", "the small dog on a house."
    forward, backward = (encode(encoder, f"{a} {b}", inner_ends=True).context[0] for a, b in ((one, two), (two, one)))
    first = encoder.encode([one], 40).reports[0].tokens
    assert torch.equal(torch.cat([forward[first:], forward[:first]]), backward)


def test_a_sentence_longer_than_the_limit_is_cut_and_named(encoder):
    report = encode(encoder, LONG, limit=LIMIT).reports[0]
    assert report.cut and report.needed > report.tokens and "cut" in report.summary
    words = sum(len(segment.split()) for segment in split_segments(LONG))
    read = sum(len(note.split("cut: ")[1].split()) for note in report.notes if "cut: " in note)
    assert len(report.cut_words) == read < words


def test_whole_prompts_are_read_to_their_end(encoder):
    cut, whole = encode(encoder, LONG, mode="truncate", limit=LIMIT), encode(encoder, LONG, mode="whole", limit=LIMIT)
    assert cut.context.shape[1] == LIMIT and cut.reports[0].cut
    assert whole.context.shape[1] == encoder.tokenizer.count(LONG) and not whole.reports[0].cut
    assert whole.reports[0].notes[-1] == "longer than the 6 tokens of PixArt's training captions"
    assert torch.equal(whole.context, encoder.encode([LONG], 1000).context)


def test_whole_prompts_have_an_end_too(encoder):
    """T5 has no limit, memory has."""
    report = encode(encoder, "word " * (LONGEST_PROMPT + 5), mode="whole", limit=LIMIT).reports[0]
    assert report.tokens == report.limit == 4096 and report.needed == 4102 and len(report.cut_words) == 6
    fitting = encode(encoder, "a cat", mode="whole", limit=LIMIT).reports[0]
    assert fitting.limit == LIMIT and fitting.notes == ()


def test_notes_on_segments_are_kept_once_each(encoder):
    notes = encode(encoder, "a fox. one fox. two cat").reports[0].notes
    assert notes[3:] == ("the text encoder has no tokens for: fox.",)


def test_prompts_of_different_numbers_of_segments_go_together(encoder):
    both = encode(encoder, LONG, "a cat")
    assert torch.equal(both.one(0).context, encode(encoder, LONG).context)
    assert torch.equal(both.one(1).context, encoder.encode(["a cat"], 40).context)


def test_impossible_wishes_are_refused(encoder):
    with pytest.raises(ValueError, match="is not a way to encode long prompts"):
        encode(encoder, "a cat", mode="split")
    with pytest.raises(ValueError, match="inner end tokens are those of segments"):
        encode(encoder, "a cat", mode="whole", inner_ends=True)
