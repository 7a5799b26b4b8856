"""Subgraph blueprints: one node each on the page, with the parts of a workflow inside."""
import json
from pathlib import Path

import pytest
from workflows.model_entries import with_entries

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "subgraphs").glob("*.json"))
# The workflow whose nodes a blueprint has, without images in and out.
SAME_AS = {"PixArt Text to Image (delta, 4 steps)": "delta-1024-lcm-8bit-t5",
           "PixArt Text to Image (alpha, CFG)": "alpha-1024",
           "PixArt Edges to Image (delta, ControlNet)": "delta-1024-control-hed-lcm"}
OUTSIDE = {"LoadImage", "PreviewImage", "SaveImage"}
INPUTS, OUTPUTS = -10, -20
AFTER_A_SEED = "randomize"


def blueprint(name: str) -> tuple[dict, dict]:
    """The node on the page, and what is in it."""
    page = json.loads((ROOT / "subgraphs" / f"{name}.json").read_text(encoding="utf-8"))
    ((node,), (inside,)) = page["nodes"], page["definitions"]["subgraphs"]
    assert node["type"] == inside["id"] and node["title"] == inside["name"] == name
    return node, inside


def as_api(inside: dict) -> dict:
    """Nodes with their widgets and the links between them; what comes from outside keeps its widget's value."""
    links = {link["id"]: link for link in inside["links"]}
    graph = {}
    for node in inside["nodes"]:
        values, inputs = iter(node["widgets_values"]), {}
        for slot in node["inputs"]:
            if "widget" in slot:
                inputs[slot["name"]] = next(values)
            if slot["name"] == "seed":
                assert next(values) == AFTER_A_SEED
            link = links.get(slot["link"])
            if link is not None and link["origin_id"] != INPUTS:
                inputs[slot["name"]] = [str(link["origin_id"]), link["origin_slot"]]
        assert list(values) == []
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def test_there_are_four():
    assert len(NAMES) == 4 and SAME_AS.keys() < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_links_agree_at_both_ends(name):
    _, inside = blueprint(name)
    nodes = {node["id"]: node for node in inside["nodes"]}
    for link in inside["links"]:
        source = (inside["inputs"][link["origin_slot"]] if link["origin_id"] == INPUTS
                  else nodes[link["origin_id"]]["outputs"][link["origin_slot"]])
        target = (inside["outputs"][link["target_slot"]] if link["target_id"] == OUTPUTS
                  else nodes[link["target_id"]]["inputs"][link["target_slot"]])
        assert source["type"] == target["type"] == link["type"]
        assert link["id"] in (source.get("linkIds") or source["links"])
        assert link["id"] in target.get("linkIds", [target.get("link")])
    ends = [slot["link"] for node in inside["nodes"] for slot in node["inputs"] if slot["link"] is not None]
    assert sorted([*ends, *inside["outputs"][0]["linkIds"]]) == sorted(link["id"] for link in inside["links"])


@pytest.mark.parametrize("name", NAMES)
def test_what_the_node_shows_is_inside(name):
    node, inside = blueprint(name)
    assert [slot["name"] for slot in node["inputs"]] == [slot["name"] for slot in inside["inputs"]]
    targets = {link["origin_slot"]: link for link in inside["links"] if link["origin_id"] == INPUTS}
    nodes = {each["id"]: each for each in inside["nodes"]}
    shown = [[str(link["target_id"]), nodes[link["target_id"]]["inputs"][link["target_slot"]]["name"]]
             for slot, link in sorted(targets.items()) if "widget" in node["inputs"][slot]]
    assert node["properties"]["proxyWidgets"] == shown and len(targets) == len(node["inputs"])
    assert inside["category"] == "PixArt" and len(inside["description"]) > 40


@pytest.mark.parametrize("name", NAMES)
def test_loaders_say_where_the_files_they_name_are_published(name):
    nodes = blueprint(name)[1]["nodes"]
    assert nodes == [with_entries(node) for node in nodes], "run python tests/workflows/model_entries.py"
    assert sum("models" in node["properties"] for node in nodes) >= 3


@pytest.mark.parametrize("name", SAME_AS)
def test_the_nodes_are_those_of_the_workflow(name):
    api = json.loads((ROOT / "workflows" / "api" / f"{SAME_AS[name]}.json").read_text(encoding="utf-8"))
    outside = {key for key, node in api.items() if node["class_type"] in OUTSIDE}
    wanted = {key: {"class_type": node["class_type"],
                    "inputs": {name: value for name, value in node["inputs"].items()
                               if not (isinstance(value, list) and value[0] in outside)}}
              for key, node in api.items() if key not in outside}
    made = as_api(blueprint(name)[1])
    assert made.keys() == wanted.keys()
    for key, node in wanted.items():
        assert made[key]["class_type"] == node["class_type"] and node["inputs"].items() == made[key]["inputs"].items()
