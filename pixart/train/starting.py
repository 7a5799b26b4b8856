"""The weights a training starts from, and whether its data belong to them."""
from typing import Any

from ..checkpoint import load
from ..config import PixArtConfig
from ..dtypes import dtype_named
from ..model.attention import Attend, matmul_attention, sdpa
from ..model.flexdit import FlexDiT
from ..model.transformer import PixArtTransformer
from .data import PreparedFolder
from .initialize import initialize
from .mup import initialize_mup
from .settings import ModelSettings


def check_fit(config: PixArtConfig, data: PreparedFolder, images: bool = True) -> None:
    """Refuse data of another family; with `images` also data that are captions alone."""
    if images and data.captions_only:
        raise ValueError(f"only captions are prepared in {data.folder}, this method learns from images; prepare "
                         "images, or train tdm")
    if data.caption_width != config.caption_width:
        raise ValueError(f"the text features in {data.folder} have width {data.caption_width}, the model reads "
                         f"{config.caption_width}; prepare the images with the text encoder that belongs to it")
    if data.latent_space not in (None, config.latent_space):
        raise ValueError(f"the latents in {data.folder} are {data.latent_space}, the model reads "
                         f"{config.latent_space}; prepare the images with the VAE that belongs to it")


def attention(settings: ModelSettings) -> Attend:
    return {"sdpa": sdpa, "matmul": matmul_attention}[settings.attention]


def attend_of(base: Any) -> Attend:
    """The attention kernel that a network was made with."""
    return base.blocks[0].cross_attn.attend


def load_base(settings: ModelSettings, dtype: str, flexdit: bool = False) -> PixArtTransformer:
    """flexdit: whether it may be a FlexDiT."""
    if settings.base is None:
        raise ValueError("model.base is missing, the transformer to start from")
    model = load(settings.base, settings.variant, dtype=dtype_named(dtype), attend=attention(settings))
    if isinstance(model, FlexDiT) and not flexdit:
        raise ValueError(f"model.base is a FlexDiT, which flexdit and lcm train, and no other method: {settings.base}")
    return model


def new_model(settings: ModelSettings, data: PreparedFolder, mup_base_width: int = 0) -> PixArtTransformer:
    """Starting weights, with the data's null caption stored as the model's own. mup_base_width 0: not muP's."""
    if settings.new is None:
        raise ValueError("model.new is missing, the kind of model to train from scratch")
    model = PixArtTransformer(settings.new, attend=attention(settings))
    if mup_base_width:
        initialize_mup(model, settings.seed, mup_base_width)
    else:
        initialize(model, settings.seed)
    return with_null_caption(model, data)


def with_null_caption(model: PixArtTransformer, data: PreparedFolder) -> PixArtTransformer:
    """Store the null caption as `y_embedding`, in place. Attention to n equal rows is attention to one."""
    check_fit(model.config, data)
    null: Any = model.y_embedder.y_embedding
    null.copy_(data.null_context[:1].expand_as(null))
    return model
