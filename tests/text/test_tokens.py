"""Tokens are counted, and what does not fit is named."""
import shutil
from pathlib import Path

import pytest
import torch

from pixart.text.t5 import T5Encoder, require_t5
from pixart.text.tokens import LONGEST_WORD, PromptReport, _word_start, load_tokenizer, lone_tokenizer

from .conftest import WORDS, write_tokenizer


def test_a_prompt_that_fits_says_how_many_tokens_it_has(t5_folder: Path) -> None:
    ids, report = load_tokenizer(t5_folder).encode("a red cat on the house", 120)
    assert len(ids) == report.tokens == report.needed == 7
    assert report.summary == "7 of 120 tokens" and report.cut == "" and report.cut_words == []


def test_a_prompt_that_is_too_long_ends_with_the_end_token_and_names_the_cut_words(t5_folder: Path) -> None:
    ids, report = load_tokenizer(t5_folder).encode("one two three four  five six", 5)
    assert len(ids) == 5 and ids[-1] == 1
    assert report.cut_words == ["five", "six"]
    assert report.summary == "5 of 5 tokens, the prompt needs 7; 2 words cut: five six"


def test_exactly_as_many_tokens_as_allowed_cuts_nothing(t5_folder: Path) -> None:
    assert load_tokenizer(t5_folder).encode("one two three four", 5)[1].summary == "5 of 5 tokens"


def test_two_thousand_words_are_cut_with_a_short_notice(t5_folder: Path) -> None:
    ids, report = load_tokenizer(t5_folder).encode("word " * 2000, 120)
    assert len(ids) == 120 and len(report.cut_words) == 2000 - 119 and len(report.summary) < 120


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_prompt_is_one_end_token(t5_folder: Path, text: str) -> None:
    tokenizer = load_tokenizer(t5_folder)
    assert tokenizer.encode(text, 120)[0] == [1] and tokenizer.count(text) == 1


def test_what_the_vocabulary_cannot_spell_is_named(t5_folder: Path) -> None:
    report = load_tokenizer(t5_folder).encode("a 🐱 and 猫", 120)[1]
    assert report.tokens == 5 and "🐱 猫" in report.notes[0]


def spiece_model(folder: Path, **more: object) -> Path:
    """A real SentencePiece model, with T5's order of special pieces."""
    sentencepiece = pytest.importorskip("sentencepiece")
    text = folder / "corpus.txt"
    text.write_text("\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))) + "\n½ ﬁne Ａ café")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, **more)
    return folder / "spiece.model"


def test_a_sentencepiece_file_gives_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    path = spiece_model(tmp_path)
    import sentencepiece
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = load_tokenizer(tmp_path)
    for text in ("a red cat", "  two  blanks  ", "", " ", "½ ﬁne Ａ café", "猫 cat 🐱", "x" * 50, "a\tcat\non a house"):
        assert tokenizer.encode(text, 500)[0] == reference.encode(text) + [1], text
    assert tokenizer.size == reference.get_piece_size() + 100     # <extra_id_N>


def test_a_long_word_cut_in_the_middle_is_named_whole(tmp_path: Path) -> None:
    spiece_model(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    limit = tokenizer.count("a cat") + 2
    assert tokenizer.encode("a cat paintingpaintingpainting dog", limit)[1].cut_words == \
        ["paintingpaintingpainting", "dog"]


@pytest.mark.parametrize(("text", "at", "start"), [
    ("a cat", 3, 2), ("a cat", 2, 2), ("a cat", 1, 1), ("cat", 2, 0), ("cat", 0, 0), ("cat", 3, 3),
    ("a " + "x" * LONGEST_WORD, 1 + LONGEST_WORD, 2), ("\u732b" * 100, 60, 60)])
def test_a_cut_goes_back_to_the_start_of_its_word_where_words_are_written_apart(text: str, at: int, start: int) -> None:
    assert _word_start(text, at) == start


def test_the_summary_shows_eight_words_of_those_cut_and_counts_all() -> None:
    def summary(cut: str) -> str:
        return PromptReport("p", "p", 4, 9, 4, cut).summary
    assert summary("fox") == "4 of 4 tokens, the prompt needs 9; 1 word cut: fox"
    assert summary("1 2 3 4 5 6 7 8").endswith("8 words cut: 1 2 3 4 5 6 7 8")
    assert summary("1 2 3 4 5 6 7 8 9").endswith("9 words cut: 1 2 3 4 5 6 7 8 ...")
    report = PromptReport("p", "p", 4, 9, 4, "fox", ("a note",))
    assert report.notices == (report.summary, "a note") and PromptReport("p", "p", 3, 3, 4).notices == ()


def test_a_sentencepiece_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    spiece_model(tmp_path, model_type="bpe")
    with pytest.raises(ValueError, match=r"spiece\.model holds no unigram SentencePiece model"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "spiece.model").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(ValueError, match="spiece.model is not a SentencePiece model file.*more than"):
        load_tokenizer(tmp_path)


def test_a_truncated_sentencepiece_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    path = spiece_model(tmp_path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"spiece\.model is not a SentencePiece model file or is damaged"):
        load_tokenizer(tmp_path)


def test_the_tokenizer_of_a_diffusers_pipeline_lies_beside_the_encoder(t5_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "tokenizer").mkdir()
    shutil.copy(t5_folder / "tokenizer.json", tmp_path / "tokenizer")
    assert load_tokenizer(tmp_path / "text_encoder").source == tmp_path / "tokenizer" / "tokenizer.json"


def test_own_tokenizer_wins_over_the_one_passed(t5_folder: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, WORDS[:5])
    assert load_tokenizer(t5_folder, tmp_path).source.parent == t5_folder
    assert load_tokenizer(None, tmp_path).source.parent == tmp_path


def test_no_tokenizer_is_an_error_that_says_where_to_put_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json.*t5_tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds neither"):
        load_tokenizer(None, tmp_path)


@pytest.mark.parametrize("place", ["models/text_encoders", "comfy/text_encoders/t5_tokenizer"])
def test_a_single_file_takes_the_tokenizer_beside_it_or_of_its_comfyui(t5_folder: Path, tmp_path: Path,
                                                                       place: str) -> None:
    """A published single file brings none, and there was no way to name one on the command line."""
    file = tmp_path / "models" / "text_encoders" / "t5xxl_fp16.safetensors"
    for folder in (file.parent, tmp_path / place):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(t5_folder / "model.safetensors", file)
    with pytest.raises(FileNotFoundError, match=r"lies beside this single file.*download t5-tokenizer"):
        require_t5(file)
    write_tokenizer(tmp_path / place)
    assert lone_tokenizer(file) == tmp_path / place / "tokenizer.json"
    assert torch.equal(T5Encoder(file, 16).encode(["a red cat"], 120).context,
                       T5Encoder(t5_folder, 16).encode(["a red cat"], 120).context)


def test_the_tokenizer_of_another_model_beside_a_single_file_is_left_alone(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>")).save(
        str(tmp_path / "tokenizer.json"))
    assert lone_tokenizer(tmp_path / "t5.safetensors") is None


def test_a_damaged_tokenizer_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer file or is damaged"):
        load_tokenizer(tmp_path)
