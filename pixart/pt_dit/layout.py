"""Names of a PT-DiT's tensors: its own ones, those of the published text-to-image file, and the way between them."""
import re
from collections.abc import Iterable, Mapping

from ..checkpoint.layouts import INNER, OUTER, file_name
from .config import PTDiTConfig

PUBLISHED_MARK, OWN_MARK = "transformer_blocks.0.pvisual_attn2.to_q.weight", "blocks.0.visual_attn.q_linear.weight"
PUBLISHED_POSITIONS = "pos_embed.pos_embed"      # a computed table (1, 1, N, D) in the published file; never loaded
PT_DIT_BLOCK = re.compile(r"blocks\.(\d{1,9})\.(.+)")

PUBLISHED_OUTER = {
    **{name: OUTER[name] for name in ("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "t_block.1",
                                      "final_layer.linear")},
    "y_proj.fc1": "caption_projection.linear_1", "y_proj.fc2": "caption_projection.linear_2"}
PUBLISHED_TABLES = {"scale_shift_table": "scale_shift_table", "shifted_scale_shift_table": "proxy_scale_shift_table"}


def attention_names(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    """Names of self-attention, whose query, key and value are separate in the published file."""
    return {f"{ours}.qkv": tuple(f"{theirs}.to_{part}" for part in "qkv"), f"{ours}.proj": (f"{theirs}.to_out.0",)}


PUBLISHED_INNER: dict[str, tuple[str, ...]] = {
    **{name: INNER[name] for name in ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear",
                                      "cross_attn.proj", "mlp.fc1", "mlp.fc2")},
    **attention_names("proxy_attn", "proxy_attn1"), **attention_names("shifted_attn", "attn3"),
    "visual_attn.q_linear": ("pvisual_attn2.to_q",),
    "visual_attn.kv_linear": ("pvisual_attn2.to_k", "pvisual_attn2.to_v"),
    "visual_attn.proj": ("pvisual_attn2.to_out.0",),
    "visual_linear": ("linear_1_visual",), "shifted_linear": ("linear_2",),
}


def published_names(name: str) -> tuple[str, ...]:
    """The tensors of the published file whose rows make up one of ours, in order. KeyError for an unknown name."""
    match = PT_DIT_BLOCK.fullmatch(name)
    if match is None:
        if name == "final_layer.scale_shift_table":
            return ("scale_shift_table",)
        module, _, kind = name.rpartition(".")
        return (f"{PUBLISHED_OUTER[module]}.{kind}",)
    if match[2] in PUBLISHED_TABLES:
        return (f"transformer_blocks.{match[1]}.{PUBLISHED_TABLES[match[2]]}",)
    module, _, kind = match[2].rpartition(".")
    return tuple(f"transformer_blocks.{match[1]}.{part}.{kind}" for part in PUBLISHED_INNER[module])


def pt_dit_shapes(config: PTDiTConfig) -> Mapping[str, tuple[int, ...]]:
    """Every tensor of a model with this configuration, under our names, as files have them."""
    from .transformer import PTDiT
    model = PTDiT(config, device="meta")
    return {file_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def published_pt_dit_shapes(config: PTDiTConfig) -> dict[str, tuple[int, ...]]:
    """The same under the names of the published file, whose parts have equal numbers of rows."""
    shapes = {}
    for name, (rows, *others) in pt_dit_shapes(config).items():
        parts = published_names(name)
        shapes.update({part: (rows // len(parts), *others) for part in parts})
    return shapes


def pt_dit_mark(names: Iterable[str]) -> tuple[str, str] | None:
    """(prefix of the names, mark) of the PT-DiT among tensors; None where there is none."""
    for name in names:
        for mark in (PUBLISHED_MARK, OWN_MARK):
            if name == mark or name.endswith(f".{mark}"):
                return name[:-len(mark)], mark
    return None
