"""What every node promises to people and to saved workflows; needs no host."""
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Saved workflows depend on ids, on the order of widgets and on output slots: this table only ever grows.
PROMISED = {
    "PixArtLoader": (["file", "variant", "weight_dtype"], ["MODEL", "STRING"]),
    "PixArtPromptList": (["file", "start", "count", "seed", "width", "height"],
                         ["STRING", "INT", "INT", "INT", "STRING"]),
    "PixArtCheck": (["width", "height", "batch_size", "model", "clip", "vae", "control_net"], ["STRING", "BOOLEAN"]),
    "PixArtDeltaLoraLoader": (["model", "file", "strength", "alpha"], ["MODEL", "STRING"]),
    "PixArtLoraLoader": (["model", "file", "strength", "alpha"], ["MODEL", "STRING"]),
    "PixArtT5Loader": (["file", "bits", "device"], ["CLIP"]),
    "PixArtTextEncode": (["clip", "text", "family", "width", "height", "model", "null_caption", "long_prompt",
                          "inner_ends"],
                         ["CONDITIONING", "STRING"]),
    "PixArtSavePrompt": (["conditioning", "name", "text"], ["CONDITIONING", "STRING"]),
    "PixArtLoadPrompt": (["file"], ["CONDITIONING", "STRING"]),
    "PixArtEmptyLatent": (["resolution", "ratio", "batch_size"], ["LATENT", "INT", "INT"]),
    "PixArtControlNetLoader": (["file", "weight_dtype"], ["CONTROL_NET", "STRING"]),
    "PixArtControlNetApply": (["positive", "control_net", "image", "vae", "strength", "start_percent", "end_percent",
                               "fade", "blocks", "negative"], ["CONDITIONING", "CONDITIONING"]),
    "PixArtSketch": (["width", "height", "sketch"], ["IMAGE"]),
    "PixArtEdges": (["image", "method", "low", "high", "blur", "strength", "width", "height"], ["IMAGE"]),
    "PixArtHED": (["image", "file", "width", "height"], ["IMAGE"]),
    "PixArtCache": (["model", "method", "budget", "start", "end", "schedule", "vae"], ["MODEL"]),
    "PixArtNAG": (["model", "negative", "scale", "tau", "alpha", "start", "end"], ["MODEL"]),
    "PixArtLCMSampler": (["model", "positive", "latent", "seed", "steps", "rule", "denoise", "negative", "cfg"],
                         ["LATENT"]),
    "PixArtLCMSigmas": (["model", "steps", "rule", "denoise"], ["MODEL", "SAMPLER", "SIGMAS"]),
    "PixArtDMDSampler": (["model", "positive", "latent", "seed"], ["LATENT"]),
    "PixArtSteps": (["model", "method", "steps", "cfg", "denoise"],
                    ["MODEL", "SAMPLER", "SIGMAS", "INT", "FLOAT", "STRING"]),
    "PixArtCompare": (["model", "clip", "vae", "latent", "prompt", "columns", "column_values", "rows", "row_values",
                       "name", "seed", "method", "steps", "cfg", "denoise", "negative"], ["IMAGE", "IMAGE", "STRING"]),
    "PixArtFeedback": (["model", "file", "start", "end"], ["MODEL", "STRING"]),
    "PixArtTrain": (["model", "method", "name", "steps", "batch", "learning_rate", "rank", "blocks", "guidance",
                     "edges", "resolution", "save_memory", "start_seed", "preview_prompt", "preview_every", "images",
                     "clip", "vae", "captions", "folder"], ["MODEL", "CONTROL_NET", "IMAGE", "STRING"]),
    "PixArtReNO": (["model", "positive", "vae", "latent", "prompt", "seed", "sampler", "steps", "rule", "iterations",
                    "rate", "clip", "regularisation", "judge", "clip_score", "pickscore", "hpsv2", "imagereward",
                    "save_memory"], ["IMAGE", "NOISE", "LATENT", "STRING", "IMAGE"]),
    "PixArtFormerSize": (["model", "ratio"], ["INT", "INT"]),
    "PixArtFormerSizeCondition": (["cond", "width", "height"], ["CONDITIONING"]),
}
# Ids of the host and of an older extension, which a second owner would break.
TAKEN = {"PixArtCheckpointLoader", "PixArtCheckpointLoaderSimple", "PixArtResolutionSelect", "PixArtT5TextEncode",
         "PixArtResolutionCond", "PixArtControlNetCond", "PixArtT5FromSD3CLIP", "CLIPTextEncodePixArtAlpha"}


@pytest.fixture(params=sorted(PROMISED))
def node(request, extension) -> type:
    return extension.NODE_CLASS_MAPPINGS[request.param]


def inputs(node: type) -> dict[str, tuple]:
    groups = node.INPUT_TYPES()
    return {**groups["required"], **groups.get("optional", {})}


def test_ids_are_ours_and_titled(extension):
    ids = set(extension.NODE_CLASS_MAPPINGS)
    assert set(PROMISED) <= ids and not ids & TAKEN
    assert all(name.startswith("PixArt") for name in ids)
    titles = extension.NODE_DISPLAY_NAME_MAPPINGS
    assert set(titles) == ids and len(set(titles.values())) == len(titles)


def test_inputs_and_outputs_are_as_promised(node):
    names, outputs = PROMISED[node.__name__]
    assert list(inputs(node))[:len(names)] == names
    assert list(node.RETURN_TYPES)[:len(outputs)] == outputs


def test_every_input_has_a_tooltip(node):
    for name, (_, *options) in inputs(node).items():
        assert options and len(options[0]["tooltip"]) > 8, name


def test_every_output_has_name_and_tooltip(node):
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    assert all(node.OUTPUT_TOOLTIPS)


def test_nodes_are_described_and_filed_together(node):
    assert len(node.DESCRIPTION) > 40 and node.CATEGORY.split("/")[0] == "PixArt"


def test_numbers_have_ranges_and_defaults_inside(node):
    for name, (kind, *options) in inputs(node).items():
        if kind in ("INT", "FLOAT"):
            assert options[0]["min"] <= options[0]["default"] <= options[0]["max"], name


def test_combos_are_lists_with_their_default_inside(node):
    for name, (kind, *options) in inputs(node).items():
        if isinstance(kind, (list, tuple)):
            assert isinstance(kind, list) and kind, name
            assert options[0].get("default", kind[0]) in kind, name


def test_the_method_takes_exactly_the_inputs(node):
    parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
    hidden = node.INPUT_TYPES().get("hidden", {})
    assert list(parameters)[1:] == [*inputs(node), *hidden]
    optional = node.INPUT_TYPES().get("optional", {})
    assert all((parameters[name].default is not inspect.Parameter.empty) == (name in optional) for name in inputs(node))


def test_what_reaches_the_method_is_checked(node):
    """See nodes/arguments.py; its decorator also gives errors the names that the page can show."""
    assert hasattr(getattr(node, node.FUNCTION), "__wrapped__")


def test_nodes_keep_no_state(node):
    assert "__init__" not in vars(node)


def test_every_node_has_a_help_page_that_names_its_inputs(node):
    page = (ROOT / "web" / "docs" / node.__name__ / "en.md").read_text(encoding="utf-8")
    assert [name for name in inputs(node) if not re.search(rf"`{name}`", page)] == []


def test_every_weight_dtype_of_the_loader_is_one_of_torch(extension):
    from pixart_extension.pixart.dtypes import dtype_named
    offered = inputs(extension.NODE_CLASS_MAPPINGS["PixArtLoader"])["weight_dtype"][0]
    assert offered[0] == "auto" and len({dtype_named(name) for name in offered[1:]}) == len(offered) - 1 >= 5


def test_the_negative_prompt_begins_with_the_settings_of_the_library(extension):
    """The node cannot import them: nothing slow is imported when the host starts."""
    from pixart.model.nag import NAG_ALPHA, NAG_SCALE, NAG_TAU
    given = inputs(extension.NODE_CLASS_MAPPINGS["PixArtNAG"])
    assert [given[name][1]["default"] for name in ("scale", "tau", "alpha")] == [NAG_SCALE, NAG_TAU, NAG_ALPHA]


def test_the_help_of_the_empty_latent_says_every_size_in_pixels():
    from pixart.resolution import ASPECT_RATIOS, LABELS
    page = (ROOT / "web" / "docs" / "PixArtEmptyLatent" / "en.md").read_text(encoding="utf-8")
    for label, ratio in LABELS.items():
        height, width = ASPECT_RATIOS[1024][ratio]
        assert f"| `{label}` | {width} x {height} |" in page
