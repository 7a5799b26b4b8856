"""The visible text of a piece of HTML, read as BeautifulSoup with the standard parser reads it."""
from html.entities import codepoint2name, html5
from html.parser import HTMLParser

_VOID = frozenset((
    "area", "base", "br", "col", "embed", "hr", "img", "input", "keygen", "link", "menuitem", "meta", "param", "source",
    "track", "wbr", "basefont", "bgsound", "command", "frame", "image", "isindex", "nextid", "spacer"))
_HIDDEN = frozenset(("script", "style", "template", "rt", "rp"))
_NAMES = {name: chr(code) for code, name in codepoint2name.items()}


class _TextCollector(HTMLParser):
    """Collects text in document order, leaving out comments, declarations and hidden elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.pieces: list[str] = []
        self._run: list[str] = []
        self._open: list[str] = []
        self._closed_void: list[str] = []

    def end_run(self) -> None:
        """Finish a run of text; a run of nothing but blanks becomes a single one."""
        run = "".join(self._run)
        self._run.clear()
        if run and not run.strip(" \n\t\f\r"):
            run = "\n" if "\n" in run else " "
        if not _HIDDEN.intersection(self._open):
            self.pieces.append(run)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.end_run()
        if tag in _VOID:
            self._closed_void.append(tag)
        else:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.end_run()

    def handle_endtag(self, tag: str) -> None:
        if tag in self._closed_void:
            self._closed_void.remove(tag)
            return
        self.end_run()
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        self._run.append(data)

    def handle_entityref(self, name: str) -> None:
        known = html5.get(name + ";") or html5.get(name) or _NAMES.get(name)
        self._run.append(known or "&" + name)

    def handle_charref(self, name: str) -> None:
        self._run.append(_character(name))

    def handle_comment(self, data: str) -> None:
        self.end_run()

    def handle_decl(self, decl: str) -> None:
        self.end_run()

    def handle_pi(self, data: str) -> None:
        self.end_run()

    def unknown_decl(self, data: str) -> None:
        self.end_run()
        if data.upper().startswith("CDATA["):
            self.pieces.append(data[len("CDATA["):] or " ")


def _character(reference: str) -> str:
    """`65` or `x41` -> `A`; 128..159 mean Windows-1252, as in browsers; impossible numbers give U+FFFD."""
    code = int(reference[1:], 16) if reference[0] in "xX" else int(reference)
    if 128 <= code < 160:
        return bytes((code,)).decode("cp1252", errors="ignore") or chr(code)
    if code == 0 or code > 0x10FFFF or 0xD800 <= code < 0xE000:
        return "\N{REPLACEMENT CHARACTER}"
    return chr(code)


def visible_text(markup: str) -> str:
    """Text of `markup`: entities decoded, tags dropped, neighbours joined without a space.

    Markup that the standard parser rejects (an unknown `<![...` section) is returned as it is.
    """
    collector = _TextCollector()
    try:
        collector.feed(markup)
        collector.close()
    except AssertionError:
        return markup
    collector.end_run()
    return "".join(collector.pieces)
