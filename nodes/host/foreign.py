"""Patches of the host that need parts which PixArt does not have: refused, because they would silently do nothing."""
from collections.abc import Mapping

from .attention_patch import UNET_MIDDLE

UNDERSTOOD = {"patches": ("double_block",), "patches_replace": ("dit", "attn1")}
# Which nodes of the host attach a patch, for the message.
MADE_BY = {"attn1_patch": "HyperTile or ToMe",
           "attn1_output_patch": "NAG, HyperTile or ToMe", "attn2_patch": "a hypernetwork",
           "output_block_patch": "FreeU", "input_block_patch": "PatchModelAddDownscale",
           "input_block_patch_after_skip": "PatchModelAddDownscale", "middle_patch": "GLIGEN",
           "rope_options": "ScaleROPE"}
INSTEAD = {"attn1_output_patch": " For a negative prompt without guidance use PixArt Negative Prompt (NAG)."}


def refuse_foreign(options: Mapping, blocks: int) -> None:
    """Raises ValueError where `transformer_options` asks for what a model of so many blocks cannot do."""
    for place, understood in UNDERSTOOD.items():
        for name, entries in options.get(place, {}).items():
            if entries and name not in understood:
                raise ValueError(needs(name))
    if options.get("rope_options"):
        raise ValueError(needs("rope_options"))
    elsewhere = [place for place in options.get("patches_replace", {}).get("attn1", {}) if place[:2] != UNET_MIDDLE]
    if elsewhere:
        place = f"{elsewhere[0][0]} {elsewhere[0][1]}"
        raise ValueError(f"a node changes self-attention in U-Net block {place}; PixArt has the middle one only. Set "
                         "that node to middle 0.")
    replaced = options.get("patches_replace", {}).get("dit", {})
    if replaced and not any(name[0] == "double_block" and name[1] < blocks for name in replaced):
        places = ", ".join(f"{name[0]} {name[1]}" for name in list(replaced)[:4])
        raise ValueError(f"a node replaces blocks that this model does not have ({places}); it has double_block 0 to "
                         f"{blocks - 1}. Set the layers of that node accordingly.")


def needs(name: str) -> str:
    node = f" of {MADE_BY[name]}" if name in MADE_BY else ""
    return (f"PixArt has no place for the patch {name}{node}. Take that node out of the workflow: PixArt is a "
            "transformer without U-Net blocks or rotary positions, and the patch would do nothing."
            f"{INSTEAD.get(name, '')}")


# Entries of a conditioning that only networks of other families read, and what puts them there.
CONDITIONS = {"unclip_conditioning": "unCLIPConditioning", "reference_latents": "ReferenceLatent",
              "gligen": "GLIGENTextBoxApply"}


def refuse_conditions(given: Mapping) -> None:
    """Raises ValueError where a conditioning carries an image or a place that PixArt cannot read."""
    for name, node in CONDITIONS.items():
        if given.get(name) not in (None, [], ()):       # an empty list asks for nothing
            raise ValueError(f"PixArt cannot read what {node} adds to the prompt ({name}). Take that node out of the "
                             "workflow, or use a PixArt ControlNet to steer by an image.")
    if given.get("concat_latent_image") is not None and given.get("concat_mask") is None:
        raise ValueError("PixArt cannot read what InstructPixToPixConditioning adds to the prompt. Take that node out "
                         "of the workflow: PixArt has no input for a second image.")
