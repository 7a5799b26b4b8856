"""Workflows as the server runs them (API format): read, given values by node and input, given seeds."""
import copy
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .errors import ClientError

Graph = dict[str, dict[str, Any]]       # node id -> {"class_type", "inputs", "_meta": {"title"}}
SEEDS = ("seed", "noise_seed")
# Inputs through which conditioning reaches a sampler, and those of nodes that pass it on.
PROMPTS = {"prompt": ("positive", "conditioning"), "negative": ("negative",)}
PASSED_ON = ("positive", "negative", "conditioning", "conditioning_1", "conditioning_to")
MOST_SEEDS = 100_000
SEED_DIGITS = 20                        # of a number below 2^64; Python refuses to read thousands
FRACTION = re.compile(r"[+-]?\d*\.\d+")


def read_workflow(path: str | Path) -> Graph:
    """The workflow in a file of API format. ClientError for everything else, with what to do."""
    path = Path(path)
    if not path.is_file():
        raise ClientError(f"there is no workflow file at this place; give one in API format: {path}")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ClientError(f"this is no workflow, its JSON is nested too deeply: {path}") from None
    except ValueError as error:                 # of JSON, of UTF-8, of numbers without end
        raise ClientError(f"this is no workflow, its JSON cannot be read ({str(error)[:160]}): {path}") from error
    if isinstance(found, dict) and isinstance(found.get("nodes"), list):
        raise ClientError(f"this workflow is in the page's format, the server takes API format. {advice(path)}: {path}")
    if isinstance(found, dict) and isinstance(found.get("prompt"), dict):       # the body of a request
        found = found["prompt"]
    if not isinstance(found, dict) or not found or not all(map(is_node, found.values())):
        raise ClientError(f"this is no workflow: expected nodes with class_type and inputs: {path}")
    return found


def advice(path: Path) -> str:
    """How to come by the API format of a page workflow."""
    beside = path.parent / "api" / path.name
    if beside.is_file():
        return f"Use {beside} instead"
    return "Open it on the page and choose Workflow > Export (API)"


def is_node(entry: object) -> bool:
    return (isinstance(entry, dict) and isinstance(entry.get("class_type"), str)
            and isinstance(entry.get("inputs"), dict) and isinstance(entry.get("_meta", {}), dict))


def is_link(value: object) -> bool:
    """[source id, output number]"""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def title_of(node: dict[str, Any]) -> str:
    return str(node.get("_meta", {}).get("title") or node["class_type"])


def node_label(graph: Graph, key: str) -> str:
    """A node as a person finds it: `7 "PixArt LCM Sampler" (PixArtLCMSampler)`."""
    node = graph.get(key)
    return f'{key} "{title_of(node)}" ({node["class_type"]})' if node is not None else key


def with_value(graph: Graph, name: str, value: Any, kind_of: Callable[[str, str], str] | None = None) -> Graph:
    """A copy with one input changed.

    name: `prompt` or `negative` (the text that reaches a sampler), `NODE.input` with the node's id, title or class,
    or `input` alone where only one node has it. value: a text is read as the kind of value that it replaces. kind_of:
    type of an input by the class of its node and its own name, asked (`Server.input_kind`) where a fraction is to
    replace a whole number: the page writes the cfg 8.0 as 8. ClientError where the name fits no input or several, with
    the choices.
    """
    key, entry = the_input(graph, name)
    changed = copy.deepcopy(graph)
    present = changed[key]["inputs"][entry]
    if isinstance(value, str):
        asked = partial(kind_of, graph[key]["class_type"], entry) if kind_of is not None else lambda: ""
        value = converted(value, present, name, asked)
    for place, said in [(key, entry), *(said_again(graph, key, present) if name in PROMPTS else ())]:
        changed[place]["inputs"][said] = value
    return changed


def said_again(graph: Graph, key: str, text: str) -> list[tuple[str, str]]:
    """Inputs that repeat the text of the node `key` and are fed by it: as ReNO's rewards and saved prompts have it."""
    return [(other, entry) for other, node in graph.items() for entry in ("prompt", "text")
            if other != key and node["inputs"].get(entry) == text
            and key in {found for way in PASSED_ON if is_link(node["inputs"].get(way))
                        for found in text_nodes(graph, node["inputs"][way][0], way, set())}]


def the_input(graph: Graph, name: str) -> tuple[str, str]:
    """(node id, input) that a name stands for."""
    found = inputs_named(graph, name)
    places = ", ".join(f"{node_label(graph, key)}.{entry}" for key, entry in found)
    if len(found) > 1:
        raise ClientError(f"{name!r} is ambiguous; write NODE.input with an id or title of: {places}")
    if not found:
        raise ClientError(f"no input is named {name!r}; {possible(graph, name)}")
    (key, entry), = found
    if is_link(graph[key]["inputs"][entry]):
        source = graph[key]["inputs"][entry][0]
        raise ClientError(f"{name!r} comes from another node; set an input of {node_label(graph, source)} instead")
    return key, entry


def inputs_named(graph: Graph, name: str) -> list[tuple[str, str]]:
    """All that a name may mean."""
    node, dot, entry = name.rpartition(".")
    if dot:
        return [(key, entry) for key in nodes_named(graph, node) if entry in graph[key]["inputs"]]
    texts = list(dict.fromkeys(prompt_nodes(graph, PROMPTS.get(name, ()))))
    if texts:
        return [(key, "text") for key in texts]
    return [(key, name) for key, node in graph.items() if name in node["inputs"] and not is_link(node["inputs"][name])]


def nodes_named(graph: Graph, name: str) -> list[str]:
    """Ids of the nodes of this id, else of this title, else of this class."""
    if name in graph:
        return [name]
    wanted = name.casefold()
    titled = [key for key, node in graph.items() if title_of(node).casefold() == wanted]
    return titled or [key for key, node in graph.items() if node["class_type"].casefold() == wanted]


def prompt_nodes(graph: Graph, entries: tuple[str, ...]) -> Iterator[str]:
    """Ids of the text nodes from which some node takes its `positive` (or `negative`) input."""
    for node in graph.values():
        for entry in entries:
            if is_link(node["inputs"].get(entry)):
                yield from text_nodes(graph, node["inputs"][entry][0], entry, set())


def text_nodes(graph: Graph, key: str, entry: str, seen: set[str]) -> Iterator[str]:
    """From this node on, up through nodes that pass conditioning on."""
    node = graph.get(key)
    if node is None or key in seen:
        return
    seen.add(key)
    passes = any(is_link(node["inputs"].get(way)) for way in PASSED_ON)
    if "text" in node["inputs"] and not passes:
        yield key
        return
    ways = [entry] if entry in node["inputs"] else [way for way in PASSED_ON if way in node["inputs"]]
    for way in ways:
        if is_link(node["inputs"][way]):
            yield from text_nodes(graph, node["inputs"][way][0], entry, seen)


def possible(graph: Graph, name: str) -> str:
    """What could have been meant."""
    node, dot, _ = name.rpartition(".")
    keys = nodes_named(graph, node) if dot else []
    if keys:
        free = [entry for entry, value in graph[keys[0]]["inputs"].items() if not is_link(value)]
        return f"{node_label(graph, keys[0])} has {', '.join(free) or 'none that can be set'}"
    return "the nodes are " + ", ".join(node_label(graph, key) for key in graph)


def converted(text: str, present: Any, name: str, asked: Callable[[], str]) -> Any:
    """The text as the kind of value that is there now; asked() names the type of the input."""
    kind = next((kind for kind in (bool, int, float) if isinstance(present, kind)), None)
    if kind is None:
        return text
    if kind is int and FRACTION.fullmatch(text.strip()) and asked() == "FLOAT":
        kind = float
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ClientError(f"{name} is {text!r}; expected {expected}, as the {present} that is there now") from None


def with_seed(graph: Graph, seed: int) -> Graph:
    """A copy whose nodes all have this seed, those that have one. ClientError where none has."""
    places = [(key, entry) for key, node in graph.items() for entry in SEEDS
              if entry in node["inputs"] and not is_link(node["inputs"][entry])]
    if not places:
        raise ClientError(f"no node has a seed; the nodes are {', '.join(node_label(graph, key) for key in graph)}")
    changed = copy.deepcopy(graph)
    for key, entry in places:
        changed[key]["inputs"][entry] = seed
    return changed


def seeds_of(text: str) -> list[int]:
    """"1..4,9" -> [1, 2, 3, 4, 9]; each once, in this order. ClientError for anything else."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        if not first.isdecimal() or (dots and not last.isdecimal()) or max(len(first), len(last)) > SEED_DIGITS:
            raise ClientError(f"{text[:60]!r} are no seeds; write 7, 1..8, or 1,5,9, numbers below 2^64")
        numbers = range(int(first), int(last if dots else first) + 1)
        if not numbers or numbers[-1] >= 2 ** 64 or len(numbers) + len(seeds) > MOST_SEEDS:
            raise ClientError(f"{text!r} are no seeds; expected rising numbers below 2^64, at most {MOST_SEEDS}")
        seeds.update(dict.fromkeys(numbers))
    return list(seeds)
