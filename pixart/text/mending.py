"""Repair of broken Unicode before a caption is cleaned: by ftfy, or without it by what the standard library can do."""
import logging
import re
import unicodedata
from functools import lru_cache

logger = logging.getLogger(__name__)

NOTE = ("ftfy is not installed: text that was decoded with the wrong character set (such as 'â€œ' for a quotation "
        "mark) is not repaired, as it was for the training captions. To repair it: pip install ftfy")
_PERHAPS_WRONGLY_DECODED = re.compile("[\x80-\u25ff] ?[\x80-\u25ff]")    # at least two such characters


def has_ftfy() -> bool:
    try:
        import ftfy  # noqa: F401
    except ImportError:
        return False
    return True


def mending_note(text: str) -> str:
    """What `mend` cannot do for this text on this machine, or "" when it does everything."""
    return NOTE if _PERHAPS_WRONGLY_DECODED.search(text) and not has_ftfy() else ""


def mend(text: str) -> str:
    """ftfy.fix_text with its defaults. Without ftfy everything but the repair of wrongly decoded text."""
    try:
        from ftfy import fix_text
    except ImportError:
        if mending_note(text):
            _tell_once()
        return mend_plainly(text)
    return fix_text(text)


@lru_cache(maxsize=1)
def _tell_once() -> None:
    logger.warning("%s", NOTE)


def mend_plainly(text: str) -> str:
    """ftfy's repairs except that of wrongly decoded text: ligatures, widths, quotes, line ends, controls, NFC."""
    for pattern, replacement in _pairs():
        text = pattern.sub(replacement, text)
    return unicodedata.normalize("NFC", text.translate(_table()))


@lru_cache(maxsize=1)
def _pairs() -> tuple[tuple[re.Pattern[str], str], ...]:
    return ((re.compile("\x1b\\[[\\d;]*[a-zA-Z]"), ""),           # colours of a terminal
            (re.compile("\r\n|[\r\u2028\u2029]"), "\n"))


@lru_cache(maxsize=1)
def _table() -> dict[int, str | None]:
    """Character -> what it becomes; None removes it."""
    table: dict[int, str | None] = {}
    for code in (*range(0xFB00, 0xFB07), *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), 0x132, 0x133):
        table[code] = unicodedata.normalize("NFKC", chr(code))    # ligatures and digraphs
    table.update({0x149: "'n", 0xFB05: "\u017ft"})
    for code in (0x3000, *range(0xFF01, 0xFFF0)):
        table[code] = unicodedata.normalize("NFKC", chr(code))    # full and half width forms
    table.update(dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'"))
    table.update(dict.fromkeys(range(0x201C, 0x2020), '"'))
    for code in range(0x80, 0xA0):                                # control codes that were Windows-1252
        character = bytes((code,)).decode("cp1252", errors="ignore") or chr(code)
        table[code] = table.get(ord(character), character)
    controls = (*range(0, 9), 0xB, *range(0xE, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
    table.update(dict.fromkeys(controls))
    table.update(dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}"))
    return table
