"""Which nodes take the place of ComfyUI_ExtraModels' PixArt nodes where a workflow names them and they are not there.

Where that extension is installed its nodes are used.
"""
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .guest import PACK

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeReplacement:
    """A node of that extension and the one that takes its place. `same`: new input -> old; `fixed`: input -> value."""

    old: str
    new: str
    widgets: tuple[str, ...]            # of the old node, in the order in which a workflow keeps their values
    same: dict[str, str]
    fixed: Mapping[str, object] = field(default_factory=dict)
    outputs: int = 1                    # the first ones, in the same order


LOADER_DEFAULTS = {"variant": "auto", "weight_dtype": "auto"}
SHARED_ID = "PixArtLoraLoader"
ENCODER_DEFAULTS = {"width": 0, "height": 0}
REPLACEMENTS = (
    NodeReplacement("PixArtCheckpointLoader", "PixArtLoader", ("ckpt_name", "model"), {"file": "ckpt_name"},
                LOADER_DEFAULTS),
    NodeReplacement("PixArtCheckpointLoaderSimple", "PixArtLoader", ("ckpt_name",), {"file": "ckpt_name"},
                LOADER_DEFAULTS),
    NodeReplacement("T5v11Loader", "PixArtT5Loader", ("t5v11_name", "t5v11_ver", "path_type", "device", "dtype"),
                {"file": "t5v11_name"}, {"bits": "8", "device": "auto"}),
    # As written and uncut the one, cleaned for alpha the other.
    NodeReplacement("T5TextEncode", "PixArtTextEncode", ("text",), {"clip": "T5", "text": "text"},
                {"family": "sigma", **ENCODER_DEFAULTS}),
    NodeReplacement("PixArtT5TextEncode", "PixArtTextEncode", ("text",), {"clip": "T5", "text": "text"},
                {"family": "alpha", **ENCODER_DEFAULTS}),
    NodeReplacement("PixArtResolutionSelect", "PixArtFormerSize", ("model", "ratio"),
                {"model": "model", "ratio": "ratio"}, outputs=2),
    NodeReplacement("PixArtResolutionCond", "PixArtFormerSizeCondition", ("width", "height"),
                {"cond": "cond", "width": "width", "height": "height"}),
)
BY_OLD = {each.old: each for each in REPLACEMENTS}


def register_former() -> None:
    """Tell the host: prompts are changed as they arrive, and newer hosts offer the same on the page.

    Their manager would change prompts too, but ends in an error where two of these nodes are linked (0.33).
    """
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    instance = getattr(server, "instance", None)            # None while the host is only inspected
    if hasattr(instance, "add_on_prompt_handler"):
        instance.add_on_prompt_handler(with_new_nodes)      # type: ignore[union-attr]
    manager = getattr(instance, "node_replace_manager", None)
    if manager is None:
        return
    from comfy_api.latest import io
    for each in REPLACEMENTS:
        manager.register(io.NodeReplace(
            new_node_id=each.new, old_node_id=each.old, old_widget_ids=list(each.widgets),
            input_mapping=[*({"new_id": new, "old_id": old} for new, old in each.same.items()),
                           *({"new_id": new, "set_value": value} for new, value in each.fixed.items())],
            output_mapping=[{"new_idx": slot, "old_idx": slot} for slot in range(each.outputs)]))


def with_new_nodes(request: dict) -> dict:
    """A request to /prompt with this pack's nodes for those of that extension that no installed pack has."""
    prompt = request.get("prompt")
    nodes = [node for node in prompt.values() if is_api_node(node)] if isinstance(prompt, dict) else []
    changed = {node["class_type"]: replace_node(node) for node in nodes if node["class_type"] in {SHARED_ID, *BY_OLD}}
    told = ", ".join(f"{old} is read as {new}" for old, new in sorted(changed.items()) if new)
    if told:
        logger.info("a workflow of ComfyUI_ExtraModels: %s", told)
    return request


def is_api_node(value: Any) -> bool:
    kinds = (("class_type", str), ("inputs", dict))
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds)


def replace_node(node: dict) -> str:
    """What the node became; "" where it stays. Inputs that are missing stay missing, and the host names them."""
    given, kind = node["inputs"], node["class_type"]
    owner = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(kind)
    ours = getattr(owner, "__module__", "").startswith(f"{PACK}.")
    if kind == SHARED_ID and ours and "lora_name" in given and "file" not in given:
        given["file"] = given.pop("lora_name")          # both have this id
        return f"{SHARED_ID} with its lora_name as file"
    if kind == SHARED_ID or owner is not None:
        return ""
    each = BY_OLD[kind]
    node["class_type"] = each.new
    node["inputs"] = {**{new: given[old] for new, old in each.same.items() if old in given}, **each.fixed}
    return each.new
