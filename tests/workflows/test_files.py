"""The workflow files: page form and API form of each say the same, with links, notes and thumbnails in order."""
import json
import re
import sys
from pathlib import Path

import pytest
from node_texts import NO_FILES
from PIL import Image, ImageColor
from workflows.cards import CARDS, COLOURS, SIDE
from workflows.model_entries import OF_FILE, with_entries
from workflows.spacing import inside, too_near
from workflows.thumbnails import LIST, SHOWN, SIX, node_titled

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NOTES = {"MarkdownNote", "Note"}
STOCK = {"KSampler", "SamplerCustom", "VAELoader", "VAEDecode", "VAEEncode", "SaveImage", "PreviewImage", "LoadImage",
         "SolidMask", "MaskComposite", "SetLatentNoiseMask", "ImageInvert", "ImageScale", "ImageScaleBy",
         "EmptyLatentImage"}
WEIGHTS = {".safetensors", ".sft", ".pth", ".pt", ".bin", ".ckpt"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN"}
AFTER_A_SEED = {"fixed", "randomize", "increment", "decrement"}


def page_form(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def api_form(name: str) -> dict:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def real_nodes(page: dict) -> list[dict]:
    return [node for node in page["nodes"] if node["type"] not in NOTES]


def as_api(page: dict, order: dict[str, list[str]]) -> dict:
    """The page form read as the page reads it; `order` names the inputs of each node id in their declared order."""
    sources = {link[0]: [str(link[1]), link[2]] for link in page["links"]}
    graph = {}
    for node in real_nodes(page):
        slots = {slot["name"]: slot for slot in node["inputs"]}
        values, inputs = iter(node["widgets_values"]), {}
        for name in order[str(node["id"])]:
            slot = slots.get(name)
            if slot is None or "widget" in slot:
                inputs[name] = next(values)
            if name in ("seed", "noise_seed"):
                assert next(values) in AFTER_A_SEED
            if slot is not None and slot["link"] is not None:
                inputs[name] = sources[slot["link"]]
        assert list(values) == [], f"{node['type']} has more widget values than inputs"
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


@pytest.fixture
def declared(extension, monkeypatch):
    """Node id -> class with its inputs readable; the lists of model files are empty without a host."""
    monkeypatch.setitem(sys.modules, "folder_paths", NO_FILES)
    return extension.NODE_CLASS_MAPPINGS


def without_titles(api: dict) -> dict:
    return {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in api.items()}


def test_there_are_workflows_and_every_one_has_its_api_form():
    assert NAMES
    assert sorted(path.stem for path in (FOLDER / "api").glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_page_and_api_say_the_same(name):
    api = api_form(name)
    order = {key: list(node["inputs"]) for key, node in api.items()}
    assert as_api(page_form(name), order) == without_titles(api)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_are_called_what_the_page_calls_them(name, extension):
    """A title of its own, the same in both forms, or else the name that the node has in the menu."""
    own = {str(node["id"]): node.get("title") for node in real_nodes(page_form(name))}
    for key, node in api_form(name).items():
        menu = extension.NODE_DISPLAY_NAME_MAPPINGS.get(node["class_type"])
        if menu or own[key]:
            assert node["_meta"]["title"] == (own[key] or menu), node["class_type"]


@pytest.mark.parametrize("name", NAMES)
def test_every_text_box_says_which_prompt_it_is(name):
    titles = [node.get("title", "") for node in page_form(name)["nodes"] if node["type"] == "PixArtTextEncode"]
    assert all("prompt" in title.lower() for title in titles) and len(set(titles)) == len(titles), titles


@pytest.mark.parametrize("name", NAMES)
def test_links_agree_at_both_ends(name):
    page = page_form(name)
    nodes = {node["id"]: node for node in page["nodes"]}
    assert len(nodes) == len(page["nodes"])
    ids = [link[0] for link in page["links"]]
    assert len(set(ids)) == len(ids) and max(ids) <= page["last_link_id"]
    assert max(nodes) <= page["last_node_id"]
    for number, source, out, target, into, kind in page["links"]:
        assert number in nodes[source]["outputs"][out]["links"]
        assert nodes[source]["outputs"][out]["type"] == kind
        assert nodes[target]["inputs"][into]["link"] == number
        assert nodes[target]["inputs"][into]["type"] == kind
    assert sorted(ids) == sorted(n for node in page["nodes"] for out in node["outputs"] for n in out["links"] or [])
    assert sorted(ids) == sorted(slot["link"] for node in page["nodes"] for slot in node["inputs"] if slot["link"])


@pytest.mark.parametrize("name", NAMES)
def test_only_own_and_stock_nodes_with_inputs_that_exist(name, declared):
    for node in api_form(name).values():
        kind, given = node["class_type"], node["inputs"]
        if kind not in declared:
            assert kind in STOCK
            continue
        inputs = declared[kind].INPUT_TYPES()
        known = inputs["required"] | inputs.get("optional", {})
        assert list(given) == [each for each in known if each in given], f"{kind}: unknown input or other order"
        assert set(inputs["required"]) <= set(given)
        assert {key for key, (of, *_) in known.items() if isinstance(of, list) or of in WIDGETS} <= set(given), (
            f"{kind}: the page adds the widgets that are not named, so name them")
        for key, value in given.items():
            if isinstance(known[key][0], list) and key != "file":
                assert value in known[key][0], f"{kind}: {key} has no choice {value!r}"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_the_nodes_declare(name, extension):
    for node in real_nodes(page_form(name)):
        owner = extension.NODE_CLASS_MAPPINGS.get(node["type"])
        if owner:
            assert [out["type"] for out in node["outputs"]] == list(owner.RETURN_TYPES)
            assert [out["name"] for out in node["outputs"]] == list(owner.RETURN_NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_note_names_every_file_the_workflow_loads_and_its_folder(name):
    (note,) = [node["widgets_values"][0] for node in page_form(name)["nodes"] if node["type"] in NOTES]
    loaded = [value for node in api_form(name).values() for key, value in node["inputs"].items()
              if key in ("file", "vae_name")]
    assert len(loaded) >= 3
    rows = [line for line in note.splitlines() if line.startswith("| `")]
    for file in loaded:
        (row,) = [line for line in rows if f"`{file}`" in line]
        assert re.search(r"\| (`models/\w+`|in the extension) \|$", row), row


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_the_note_is_no_wider_than_the_note(name):
    """The page breaks no word in code: 42 characters beside the name of a folder are what 460 pixels hold."""
    (note,) = [node for node in page_form(name)["nodes"] if node["type"] in NOTES]
    words = [word for line in note["widgets_values"][0].splitlines() if line.startswith("| ")
             for word in re.findall("`([^`]+)`", line)]
    assert note["size"][0] >= 460 and max(map(len, words)) <= 42


@pytest.mark.parametrize("name", NAMES)
def test_file_names_in_the_note_are_readable(name):
    """Nodes 2.0 write them in blue, unreadable on the brown that the page gives to notes. An empty background is that
    of all nodes, dark or light as the page is."""
    (note,) = [node for node in page_form(name)["nodes"] if node["type"] in NOTES]
    assert note["bgcolor"] == ""


@pytest.mark.parametrize("name", NAMES)
def test_nodes_stand_left_to_right_inside_the_groups(name):
    page = page_form(name)
    nodes = {node["id"]: node for node in page["nodes"]}
    for link in page["links"]:
        assert nodes[link[1]]["pos"][0] <= nodes[link[3]]["pos"][0]
    for node in real_nodes(page):
        (x, y), (width, height) = node["pos"], node["size"]
        assert any(left <= x and top <= y and x + width <= left + wide and y + height <= top + high
                   for left, top, wide, high in (group["bounding"] for group in page["groups"])), node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_nodes_leave_room_for_what_the_one_above_shows_on_itself(name):
    page = page_form(name)
    assert too_near(page["nodes"]) == [], "run python tests/workflows/spacing.py"
    for group in page["groups"]:
        bottom = group["bounding"][1] + group["bounding"][3]
        for node in page["nodes"]:
            assert not inside(group, node) or node["pos"][1] + node["size"][1] <= bottom, group["title"]


@pytest.mark.parametrize("name", NAMES)
def test_thumbnail_is_a_small_jpeg(name):
    """The page's template browser looks for a .jpg of the workflow's name."""
    data = (FOLDER / f"{name}.jpg").read_bytes()
    assert data[:3] == b"\xff\xd8\xff"
    assert len(data) < 100_000


def test_the_thumbnail_of_every_workflow_of_mini_can_be_made_anew():
    assert sorted([*SHOWN, *SIX, LIST]) == [name for name in NAMES if name.startswith("mini-")]
    for name, titles in SHOWN.items():
        assert len({node_titled(api_form(name), title) for title in titles}) == len(titles)
    for name in SIX:
        assert "text" in api_form(name)[node_titled(api_form(name), "Prompt")]["inputs"]


@pytest.mark.parametrize("name", NAMES)
def test_thumbnail_shows_what_it_generates_or_says_it_in_words(name):
    """Not the graph: the template browser makes thumbnails too small for it."""
    with Image.open(FOLDER / f"{name}.jpg") as image:
        corner, size = image.convert("RGB").getpixel((2, 2)), image.size
    if name.startswith("mini-") or name.endswith("-sketch"):
        assert name not in CARDS and max(size) <= 768
    else:
        wanted = ImageColor.getrgb(COLOURS[CARDS[name].family])
        assert size == (SIDE, SIDE) and all(abs(a - b) < 8 for a, b in zip(corner, wanted)), "run cards.py"


@pytest.mark.parametrize("name", NAMES)
def test_loaders_say_where_the_files_they_name_are_published(name):
    """The page offers what is missing from this; the table of `pixart download --list` is where it comes from."""
    page = page_form(name)
    for node in page["nodes"]:
        assert node["properties"] == with_entries(node)["properties"], "run python tests/workflows/model_entries.py"
        files = [value for value in node["widgets_values"] if isinstance(value, str) and Path(value).suffix in WEIGHTS]
        for file in files:
            assert (file in OF_FILE) != file.startswith("pixart-mini/"), f"{file} is neither published nor bundled"
