"""Names of tensors in LoRA files: which weight a key belongs to, and what kind of tensor it is."""
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..families import FileFamily, recognise
from ..layouts import INNER, INNER_BACK, OUTER, OUTER_BACK, reference_module
from .changes import TABLE

DOWN, UP, MID, ALPHA, MAGNITUDE, DORA = "down", "up", "mid", "alpha", "magnitude", "dora"
RESHAPE, RESCALE, OFT_BLOCKS = "reshape_weight", "rescale", "oft_blocks"
DIFF, DIFF_BIAS, NORM, NORM_BIAS, SET = "diff", "diff_b", "w_norm", "b_norm", "set_weight"
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
GLORA = ("a1", "a2", "b1", "b2")
WHOLE = (ALPHA, RESHAPE, RESCALE, OFT_BLOCKS, DIFF, DIFF_BIAS, NORM, NORM_BIAS, SET, *LOHA, *LOKR)

# What follows a module's name in a key: peft, kohya and OneTrainer, older diffusers, LyCORIS, ComfyUI.
ENDINGS = (
    (r"\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down)(?:\.\w+)?\.weight|_lora\.down\.weight|\.lora_A", DOWN),
    (r"\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up)(?:\.\w+)?\.weight|_lora\.up\.weight|\.lora_B", UP),
    (r"\.lora_mid\.weight", MID),
    (r"\.lora_magnitude_vector(?:\.\w+)*", MAGNITUDE),
    (r"\.dora_scale", DORA),
    *((rf"\.{name}\.weight", name) for name in GLORA),
    *((rf"\.{name}", name) for name in WHOLE),
)
TENSOR_KINDS = [(re.compile(ending), kind) for ending, kind in ENDINGS]
ENDING = re.compile("(?P<module>.+?)(?P<ending>" + "|".join(ending for ending, _ in ENDINGS) + ")")
DOTTED = re.compile(r"^((base_model|model|module|unet|transformer|diffusion_model|net|_orig_mod)\.)*")
JOINED = ("lora_unet_transformer_", "lora_transformer_", "lora_unet_", "lycoris_", "lora_", "")
JOINED_BLOCK = re.compile(r"(transformer_blocks|blocks)_(\d{1,4})_(.+)")
TEXT_ENCODER = re.compile(r"lora_te\d?_|text_encoder(_\d)?\.|text_encoders\.|te\d?\.")

LORA_PREFIXES = (("unet.base_model.model.", "official trainer (unet.base_model.model)"), ("base_model.model.", "PEFT"),
                 ("transformer.", "diffusers"), ("diffusion_model.", "ComfyUI"), ("lora_transformer_", "OneTrainer"),
                 ("lycoris_", "LyCORIS"), ("lora_", "kohya"), ("", "plain"))

ONLY_OURS = (TABLE, "attn.sr", "attn.norm")              # modules of a block without a counterpart in diffusers
JOINED_OUTER = {name.replace(".", "_"): name for name in (*OUTER, *OUTER_BACK, f"final_layer.{TABLE}")}
JOINED_INNER = {"blocks": {name.replace(".", "_"): name for name in (*INNER, *ONLY_OURS)},
                "transformer_blocks": {name.replace(".", "_"): name for name in (*INNER_BACK, TABLE)}}

# LoRAs of other models, some of which share names with PixArt's. Checked before anything is used.
OTHER_LORAS = (
    FileFamily("a Flux or Hunyuan LoRA", (("single_transformer_blocks",), ("double_blocks",), ("single_blocks",))),
    FileFamily("a Stable Diffusion 3 LoRA", (("attn.add_k_proj",), ("attn_add_k_proj",), ("joint_blocks",))),
    FileFamily("an SDXL LoRA", (("lora_te2_",), ("text_encoder_2.",), ("input_blocks_4_1_transformer_blocks_1",),
                                ("down_blocks.1.attentions.0.transformer_blocks.1",),
                                ("down_blocks_1_attentions_0_transformer_blocks_1",))),
    FileFamily("a Stable Diffusion 1 or 2 LoRA", (("down_blocks",), ("up_blocks",), ("input_blocks",), ("mid_block",))),
    FileFamily("a Sana LoRA", (("conv_inverted",),)),
    FileFamily("an LTX-Video LoRA", (("patchify_proj",),)),
    FileFamily("a video model's LoRA", (("temporal_transformer_blocks",), ("temporal_blocks",))),
    FileFamily("a Wan (video) LoRA", (("self_attn.q", "cross_attn.k"), ("self_attn_q", "cross_attn_k"))),
    FileFamily("a Qwen-Image LoRA", (("img_mlp.net", "txt_mlp.net"),)),
)
# Methods that neither ComfyUI nor this package knows; by parts of their names.
OTHER_METHODS = {".vera_lambda": "VeRA", ".lora_E": "AdaLoRA", ".ia3_": "IA3", ".on_input": "IA3 of LyCORIS",
                 ".oft_r": "OFT of peft", ".oft_R": "OFT of peft", ".boft_": "BOFT of peft", ".hra_u": "HRA",
                 ".lora_embedding_": "embeddings", ".oft_diag": "an older OFT of LyCORIS", ".vblora_": "VB-LoRA",
                 ".fourierft_": "FourierFT"}


@dataclass(frozen=True)
class WeightSlice:
    """Where a key belongs: slice `part` of `parts` of a reference module's weight."""

    module: str
    part: int
    parts: int


def split_key(key: str) -> tuple[str, str] | None:
    """(name of the module as it is in the file, kind of tensor); None for any other tensor."""
    match = ENDING.fullmatch(key)
    if match is None:
        return None
    return match["module"], next(kind for ending, kind in TENSOR_KINDS if ending.fullmatch(match["ending"]))


def weight_slice(module: str) -> WeightSlice | None:
    """The place of a module by its name in a file, whatever prefix it has; None where PixArt has no such module."""
    if TEXT_ENCODER.match(module):
        return None
    bare = DOTTED.sub("", module, count=1)
    names = [bare] if "." in bare else [dotted(bare[len(start):]) for start in JOINED if bare.startswith(start)]
    return next((place for place in map(known, names) if place is not None), None)


def known(name: str) -> WeightSlice | None:
    """The place of a bare diffusers or reference module."""
    place = reference_module(name)
    if place is not None:
        return WeightSlice(*place)
    if name in OUTER or name == f"final_layer.{TABLE}":
        return WeightSlice(name, 0, 1)
    if name == TABLE:                                   # as diffusers names the one of the last layer
        return WeightSlice(f"final_layer.{TABLE}", 0, 1)
    match = re.fullmatch(r"(transformer_)?blocks\.(\d{1,4})\.(.+)", name)
    if match is None or (match[1] and match[3] != TABLE) or match[3] not in (*INNER, *ONLY_OURS):
        return None
    return WeightSlice(f"blocks.{match[2]}.{match[3]}", 0, 1)


def dotted(joined: str) -> str:
    """"transformer_blocks_0_attn1_to_q" -> "transformer_blocks.0.attn1.to_q"; unknown names stay as they are."""
    match = JOINED_BLOCK.fullmatch(joined)
    if match:
        inner = JOINED_INNER[match[1]].get(match[3])
        return f"{match[1]}.{match[2]}.{inner}" if inner else joined
    return JOINED_OUTER.get(joined, joined)


def layout_of(module: str) -> str:
    """The usual name of a key layout, by the prefix of a module."""
    return next(name for prefix, name in LORA_PREFIXES if module.startswith(prefix))


def stranger(keys: Iterable[str]) -> str | None:
    """For an error: which other model a LoRA is for, or which unsupported method it uses, if its names tell."""
    keys = list(keys)
    family = recognise(keys, OTHER_LORAS)
    if family is not None:
        return f"it looks like {family.name}"
    method = next((name for mark, name in OTHER_METHODS.items() if any(mark in key for key in keys)), None)
    return f"it is made by a method that is not supported, {method}" if method else None
