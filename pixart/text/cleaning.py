"""Caption cleaning of PixArt-alpha and -delta, as their training captions were cleaned."""
import html
import re
from collections.abc import Iterable
from functools import cache
from urllib.parse import unquote_plus

from .html_text import visible_text
from .mending import mend, mending_note

_ENDINGS = "com|co|ru|net|org|edu|gov|it"
_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = ("\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
           "\ufe31\ufe32\ufe58\ufe63\uff0d")
_SIGNS = r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+"


def _address(scheme: str) -> str:
    """The scheme with what follows it at once, or a host with its path; never both in one match."""
    return (rf"\b(?:{scheme}:(?:/{{1,3}}|[a-z0-9%])"
            rf"|[a-z0-9.\-]+\.(?:{_ENDINGS})[\w/\-]*\b/?(?!@))")


# Each group is (pattern, replacement) in the order of application.
_ADDRESSES = ((_address("https?"), ""), (_address("www"), ""))

_IDEOGRAPHS = (r"[\u31c0-\u31ef]+|[\u31f0-\u31ff]+|[\u3200-\u32ff]+|[\u3300-\u33ff]+"
               r"|[\u3400-\u4dbf]+|[\u4dc0-\u4dff]+|[\u4e00-\u9fff]+")
_BEFORE_DASH_COUNT = (
    (r"@\w+\b", ""),                                       # nicknames
    (_IDEOGRAPHS, ""),
    (f"[{re.escape(_DASHES[0])}{_DASHES[1:]}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),          # network addresses
    (r"\d:\d\d\s+$", ""),                                  # chapter and verse at the end
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (_SIGNS, " "),
    (r"\s+\.\s+", " "),
)

_AFTER_MENDING = (
    (r"\b[a-z]{1,3}\d{3,15}\b", ""),                       # article numbers
    (r"\b[a-z]+\d+[a-z]+\b", ""),
    (r"\b\d+[a-z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),        # words of shops
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILES})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-z]+\d+[a-z]+\d+[a-z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),                  # dimensions; the second x is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)

# No strip before these: a blank at either end hides the character next to it, as it did in training.
_ENDS = (
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


@cache
def _compiled(rules: tuple[tuple[str, str], ...]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


def _apply(rules: tuple[tuple[str, str], ...], text: str) -> str:
    for pattern, replacement in _compiled(rules):
        text = pattern.sub(replacement, text)
    return text


def clean_once(text: str) -> str:
    """One pass of the cleaner of the alpha text embedder. Use `clean_caption`, which does two as in training."""
    text = unquote_plus(text).strip().lower().replace("<person>", "person")
    text = visible_text(_apply(_ADDRESSES, text))
    text = _apply(_BEFORE_DASH_COUNT, text)
    if text.count("-") + text.count("_") > 3:
        text = text.replace("-", " ").replace("_", " ")
    text = html.unescape(html.unescape(mend(text))).strip()
    return _apply(_ENDS, _apply(_AFTER_MENDING, text)).strip()


def clean_caption(text: str) -> str:
    """The caption as the alpha and delta models saw it in training: lower case, no addresses, codes, brackets.

    Sigma was trained on captions as written; do not clean for it. Needs no package: ftfy is used where it is
    installed, and `cleaning_notes` says what is left out where it is not. Raises ValueError for anything but a string.
    """
    if not isinstance(text, str):
        raise ValueError(f"a caption must be a string, got {type(text).__name__}: {text!r}")
    return clean_once(clean_once(text))


def removed_ideographs(text: str) -> str:
    """Chinese characters of a caption, which the cleaner takes out, with blanks between the runs."""
    return " ".join(re.findall(_IDEOGRAPHS, unquote_plus(text)))


def cleaning_notes(text: str) -> Iterable[str]:
    """What the cleaner could not do to this caption on this machine, one sentence each."""
    note = mending_note(unquote_plus(text))
    return (note,) if note else ()
