"""Other kinds of weight files by their tensor names, so that an error can say what was chosen by mistake."""
from collections.abc import Iterable
from dataclasses import dataclass

LORA_MARKS = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", "lora_magnitude_vector", ".hada_w1", ".lokr_w1",
              ".lora.down.", ".lora.up.")


@dataclass(frozen=True)
class FileFamily:
    """A kind of file. It matches when all parts of one of `marks` occur in names and none of `without` does."""

    name: str
    marks: tuple[tuple[str, ...], ...]
    without: tuple[str, ...] = ()
    todo: str = ""


# Models whose files hold PixArt's own marker tensors. Allegro is not here: all its names are PixArt's, see `detect`.
RELATIVES = (
    FileFamily("PT-DiT", ((".pvisual_attn2.",), (".visual_attn.q_linear.", ".proxy_attn.")),
               todo="Open it with pixart.pt_dit.load_pt_dit, in ComfyUI with Load PixArt; train and sample "
                    "as docs/pt-dit.md says."),
    FileFamily("Latte (video)", (("temporal_transformer_blocks.",),)),
    FileFamily("Open-Sora (video)", ((".attn_temp.",), ("temporal_blocks.",), ("temporal_block.",))),
    FileFamily("Sana", ((".mlp.inverted_conv.",), ("attention_y_norm.",))),
    FileFamily("LTX-Video", (("patchify_proj.",),)),
)

OTHER_FAMILIES = (
    *RELATIVES,
    FileFamily("PixArt ControlNet without its base model",
               (("controlnet.0.copied_block.",), ("controlnet_blocks.0.transformer_block.",)),
               todo="Load it with the ControlNet loader, and a PixArt model here."),
    FileFamily("LTX-Video", (("proj_in.weight", "time_embed.emb.timestep_embedder.", "attn1.norm_q."),)),
    FileFamily("Sana", (("patch_embed.proj.", "time_embed.emb.timestep_embedder.", "ff.conv_inverted."),)),
    FileFamily("HunyuanDiT", (("text_embedding_padding",),)),
    FileFamily("HunyuanVideo", (("token_refiner.",),)),
    FileFamily("Flux", (("double_blocks.0.img_attn",), ("single_transformer_blocks.0.", "time_text_embed.")),
               ("token_refiner.", "joint_transformer_blocks.")),
    FileFamily("Stable Diffusion 3", (("joint_blocks.0.context_block.",),
                                      ("pos_embed.proj.", "context_embedder.", "time_text_embed."))),
    FileFamily("AuraFlow", (("joint_transformer_blocks.",), ("double_layers.0.",))),
    FileFamily("Stable Diffusion ControlNet", (("controlnet_cond_embedding.",), ("input_hint_block.",))),
    FileFamily("SDXL UNet", (("input_blocks.0.0.", "label_emb.0.0."), ("down_blocks.0.resnets.", "add_embedding.")),
               ("controlnet_cond_embedding.", "input_hint_block.")),
    FileFamily("Stable Diffusion 1 or 2 UNet", (("input_blocks.0.0.",), ("down_blocks.0.resnets.", "time_emb_proj.")),
               ("label_emb.0.0.", "add_embedding.", "controlnet_cond_embedding.", "input_hint_block.")),
    FileFamily("DiT", (("embedding_table.",),)),
    FileFamily("Wan (video)", (("patch_embedding.", "condition_embedder."), ("patch_embedding.", "head.modulation"))),
    FileFamily("CogVideoX", (("patch_embed.text_proj.",),)),
    FileFamily("Mochi (video)", (("time_embed.pooler.",), ("t5_y_embedder.",))),
    FileFamily("Lumina", (("noise_refiner.0.",), ("cap_embedder.0.",))),
    FileFamily("Qwen-Image", (("img_in.", "txt_norm."),)),
    FileFamily("VAE", (("decoder.conv_in.", "decoder.conv_out."), ("encoder.layers.0.", "decoder.layers.0."),
                       ("taesd_decoder.",)),
               ("input_blocks.", "joint_blocks.", "double_blocks."), "Load it with the VAE loader."),
    FileFamily("T5 text encoder", (("block.0.layer.0.SelfAttention.",),),
               ("input_blocks.", "joint_blocks.", "double_blocks."), "Load it with the T5 loader."),
    FileFamily("CLIP text encoder", (("text_model.encoder.layers.0.",), ("transformer.resblocks.0.",)),
               ("input_blocks.", "joint_blocks.", "double_blocks.", "SelfAttention.")),
    FileFamily("HED edge network", (("block1.convs.0.",),)),
)


def is_lora(names: Iterable[str]) -> bool:
    """Whether the tensors are a low-rank change of some model."""
    return any(mark in name for name in names for mark in LORA_MARKS)


def matches(family: FileFamily, names: Iterable[str]) -> bool:
    """Whether tensor names look like a family's."""
    text = "\n".join(names)
    return any(all(part in text for part in parts) for parts in family.marks) and not any(
        part in text for part in family.without)


def recognise(names: Iterable[str], families: tuple[FileFamily, ...] = OTHER_FAMILIES) -> FileFamily | None:
    """The family that tensor names belong to, None where none fits."""
    names = list(names)
    return next((family for family in families if matches(family, names)), None)
