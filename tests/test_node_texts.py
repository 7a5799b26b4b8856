"""Texts of every node in English and Chinese: complete, current, and such as ComfyUI's page can read."""
import re
import sys

import pytest
from node_texts import DOCS, LANGUAGES, LOCALES, NO_FILES, all_english, as_file, inputs, read
from node_wiring import drawings

NUMBER = re.compile(r"\d+(?:\.\d+)?")
# The page takes these for its own: a plural, a link to another text, a value to put in.
RESERVED = re.compile(r"[{}|@]|\$t")
WRITE = "run python tests/node_texts.py"


@pytest.fixture
def named(extension, monkeypatch):
    """The extension, with inputs readable without a host."""
    monkeypatch.setitem(sys.modules, "folder_paths", NO_FILES)
    return extension


def shape(texts: dict) -> dict:
    """The keys alone."""
    return {key: shape(value) if isinstance(value, dict) else None for key, value in texts.items()}


def leaves(texts: dict) -> list[tuple[str, str]]:
    """(path, text) of every text."""
    return [(f"{key}.{path}" if path else key, text) for key, value in texts.items()
            for path, text in (leaves(value) if isinstance(value, dict) else [("", value)])]


def numbers(text: str) -> set[str]:
    return set(NUMBER.findall(text))


def test_english_is_what_the_nodes_say(named):
    assert (LOCALES / "en" / "nodeDefs.json").read_text(encoding="utf-8") == as_file(all_english(named)), WRITE


def test_chinese_has_every_text_and_no_other(named):
    assert shape(read("zh", "nodeDefs")) == shape(all_english(named))


def test_chinese_is_chinese_and_has_the_same_numbers(named):
    """A range or a good value that changed in one language only is found by its number."""
    chinese = dict(leaves(read("zh", "nodeDefs")))
    for path, text in leaves(all_english(named)):
        if path.endswith(("tooltip", "description")):
            assert re.search("[\u4e00-\u9fff]", chinese[path]), path
            assert numbers(chinese[path]) == numbers(text), path


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_have_nothing_that_the_page_would_take_for_its_own(language):
    for name in ("nodeDefs", "main"):
        assert [path for path, text in leaves(read(language, name)) if not text or RESERVED.search(text)] == []


def test_every_part_of_the_menu_has_a_name_in_both_languages(named):
    """Only parts that ComfyUI has no word for: these files would replace its own words in every pack's menu."""
    used = {part for node in named.NODE_CLASS_MAPPINGS.values() for part in node.CATEGORY.split("/")}
    for language in LANGUAGES:
        given = set(read(language, "main")["nodeCategories"])
        assert given == used - OF_THE_HOST
    assert read("en", "main")["nodeCategories"] == {part: part for part in used - OF_THE_HOST}


OF_THE_HOST = {"loaders", "conditioning", "latent", "controlnet", "sampling", "training", "model", "utilities"}


def page(node: str, language: str) -> str:
    return (DOCS / node / f"{language}.md").read_text(encoding="utf-8")


def outline(text: str) -> dict[str, int]:
    """What must be as many in every language."""
    lines = text.splitlines()
    beginning = {"headings": "#", "rows": "|", "lines of code": "    "}
    return {"images": text.count("!["),
            **{kind: sum(line.startswith(mark) for line in lines) for kind, mark in beginning.items()}}


def test_every_node_has_help_in_every_language_and_nothing_else_has(named):
    nodes = set(named.NODE_CLASS_MAPPINGS)
    assert {path.name for path in DOCS.iterdir() if path.is_dir()} == nodes == {path.stem for path in DOCS.glob("*.md")}
    for node in nodes:
        assert {path.name for path in (DOCS / node).iterdir()} == {
            f"{language}{ending}" for language in LANGUAGES for ending in (".md", ".svg")}
        assert (DOCS / f"{node}.md").read_text(encoding="utf-8") == page(node, "en"), f"change en.md, then {WRITE}"


def test_help_says_the_same_in_both_languages(named):
    """As many headings, table rows and images; the same names in code and the same numbers."""
    for node in named.NODE_CLASS_MAPPINGS:
        texts = [page(node, language) for language in LANGUAGES]
        assert outline(texts[0]) == outline(texts[1]), node
        for find in (re.compile("`[^`]+`"), NUMBER):
            there = [set(find.findall(text)) for text in texts]
            assert there[0] == there[1], f"{node}: {there[0] ^ there[1]}"


def test_chinese_help_has_the_title_of_the_node(named):
    titles = {name: texts["display_name"] for name, texts in read("zh", "nodeDefs").items()}
    assert {name: page(name, "zh").splitlines()[0] for name in titles} == {
        name: f"# {title}" for name, title in titles.items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_names_every_input(named, language):
    for name, node in named.NODE_CLASS_MAPPINGS.items():
        assert [each for each in inputs(node) if f"`{each}`" not in page(name, language)] == [], name


def test_chinese_help_names_inputs_as_the_node_shows_them_too(named):
    for node, texts in read("zh", "nodeDefs").items():
        for name, text in texts["inputs"].items():
            shown = f"`{name}`" if text["name"] == name else f"`{name}`（{text['name']}）"
            assert shown in page(node, "zh") or node == "PixArtLoraLoader", f"{node}: {shown}"


def test_messages_quoted_in_help_are_those_of_the_code(named):
    """The longest piece of each without numbers and names, which the code fills in."""
    code = "\n".join(path.read_text(encoding="utf-8") for folder in ("nodes", "pixart")
                     for path in sorted((DOCS.parents[1] / folder).rglob("*.py")))
    joined = re.sub(r'"\s*\n\s*f?"', "", code)
    quoted = [(node, message) for node in named.NODE_CLASS_MAPPINGS for message in messages(page(node, "en"))]
    assert len(quoted) > 20
    assert [(node, message) for node, message in quoted if longest_piece(message) not in joined] == []


def messages(text: str) -> list[str]:
    """The first column of the tables of messages."""
    found, inside = [], False
    for line in text.splitlines():
        inside = line.startswith(("| message", "| what it says")) or (inside and line.startswith("|"))
        if inside and not line.startswith(("| message", "| what it says", "|---")):
            found.append(line.split("|")[1].strip())
    return found


def longest_piece(message: str) -> str:
    return max(re.split(r"\.\.\.|'[^']*'|\d[\d.]*|PixArt-\w+|\(\w+\)", message), key=len).strip()


def test_diagrams_show_the_workflows_as_they_are():
    files = drawings()
    assert set(DOCS.rglob("*.svg")) == files.keys()
    for path, text in files.items():
        assert path.read_text(encoding="utf-8") == text, "run python tests/node_wiring.py"
        image = f"]({path.parent.name}/{path.name})"
        assert image in page(path.parent.name, path.stem), f"{path.stem}.md of {path.parent.name} shows no diagram"
