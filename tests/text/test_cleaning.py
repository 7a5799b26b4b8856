"""Captions are cleaned exactly as the official alpha text embedder cleaned them."""
import json
import random
import sys
from pathlib import Path

import pytest

from pixart.text import clean_caption
from pixart.text.cleaning import clean_once, cleaning_notes
from pixart.text.html_text import visible_text
from pixart.text.mending import mend_plainly

GOLDEN = Path(__file__).parents[1] / "golden" / "10_caption_cleaning.json"
CASES = json.loads(GOLDEN.read_text("utf-8"))["cases"]
# Wrongly decoded text, which only ftfy repairs.
NEEDS_FTFY = {227, 229, 295}


def wrong_cases() -> set[int]:
    return {case["id"] for case in CASES
            if clean_once(case["input"]) != case["once"] or clean_caption(case["input"]) != case["twice"]}


def test_all_official_examples_are_cleaned_exactly_once_and_twice() -> None:
    pytest.importorskip("ftfy")
    assert len(CASES) == 299
    assert wrong_cases() == set()


def test_without_ftfy_and_bs4_only_wrongly_decoded_text_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    monkeypatch.setitem(sys.modules, "bs4", None)
    assert wrong_cases() == NEEDS_FTFY


def test_without_ftfy_every_caption_that_may_differ_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    noted = {case["id"] for case in CASES if cleaning_notes(case["input"])}
    assert noted >= NEEDS_FTFY
    assert not cleaning_notes("a plain cat") and not cleaning_notes("café with 🐱")
    assert "pip install ftfy" in cleaning_notes("â€œquotedâ€")[0]


def test_with_ftfy_nothing_is_reported() -> None:
    pytest.importorskip("ftfy")
    assert not [case for case in CASES if cleaning_notes(case["input"])]


def test_every_single_character_is_mended_as_ftfy_does() -> None:
    ftfy = pytest.importorskip("ftfy")
    codes = (*range(0x80, 0x3400), *range(0xD800, 0xE000), *range(0xF900, 0x10000))
    characters = [chr(code).lower() for code in codes]
    assert [c for c in characters if mend_plainly(f"a{c}b") != ftfy.fix_text(f"a{c}b")] == []


def test_markup_is_read_as_beautifulsoup_reads_it() -> None:
    bs4 = pytest.importorskip("bs4")
    parts = ["<b>", "</b>", "<br>", "<br/>", "</br>", "<script>", "</script>", "<style>", "</style>", "<template>",
             "</template>", "<rt>", "</rt>", "<!--", "-->", "<!doctype html>", "<![cdata[", "]]>", "<?php", "?>", "<",
             ">", "&", "&amp;", "&lt;", "&quot", "&foo;", "&#", "&#65;", "&#150;", "&#x;", "&#xd800;", " ", "  ", "\n",
             "cat", "a<b", "'", '"', "<img src=x>", "<script/>", "</", "<!", "<a b=\"", "&eacute", "é"]
    choose = random.Random(0)
    for _ in range(2000):
        markup = "".join(choose.choices(parts, k=choose.randint(1, 9)))
        try:
            expected = bs4.BeautifulSoup(markup, features="html.parser").text
        except Exception:
            expected = markup       # what the parser rejects stays as it is
        assert visible_text(markup) == expected, markup


@pytest.mark.parametrize("wrong", [None, 7, ["a"], b"a"])
def test_a_caption_that_is_no_string_is_an_error(wrong: object) -> None:
    with pytest.raises(ValueError, match="must be a string"):
        clean_caption(wrong)
