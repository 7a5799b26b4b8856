"""From settings to reward fine-tuning: captions encoded, rewards opened and reweighted, the objective of both."""
from pathlib import Path

from ..config import PixArtConfig
from ..mini import SHIPPED, shipped_for
from ..reward.embedding import reweight_all
from ..reward.table import RewardChoice, open_rewards
from ..text.t5 import T5Encoder
from ..vae import load_vae
from .ascent import RewardAscent
from .caption_list import CaptionList, read_captions
from .method_settings import RewardLoraMethod


def ascent_of(method: RewardLoraMethod, captions: Path, config: PixArtConfig) -> RewardAscent:
    """The objective with its data. Raises what reading the files raises, ValueError for parts that are missing."""
    texts = read_captions(captions)
    vae, t5 = vae_and_t5(method, config)
    reward = open_rewards([RewardChoice.parse(text) for text in method.rewards], method.folder, method.tokenizer)
    if method.relevance != 1:
        reweight_all(reward, method.relevance, texts if method.common == "captions" else None)
    data = encoded(texts, captions, t5, method, config)
    return RewardAscent(data, reward, load_vae(vae), config.latent_scale, method.sampler, method.steps, method.rule,
                        method.gradient_steps, method.relevance, method.common)


def vae_and_t5(method: RewardLoraMethod, config: PixArtConfig) -> tuple[Path, Path]:
    """VAE and T5: those of PixArt-mini where the model is one of its."""
    shipped = shipped_for(config)
    vae, t5 = method.vae or (shipped.vae if shipped else None), method.t5 or (shipped.t5 if shipped else None)
    if vae is None or t5 is None:
        raise ValueError("rewards look at images: method.vae and method.t5 are needed, the files to decode with and to "
                         "encode the captions with")
    return vae, t5


def encoded(texts: list[str], source: Path, t5: Path, method: RewardLoraMethod, config: PixArtConfig) -> CaptionList:
    """All captions through T5 once, on the GPU where this process trains on one; T5 is freed then."""
    from accelerate import PartialState
    device = PartialState().device
    encoder = T5Encoder(t5, 16 if t5 == SHIPPED.t5 else method.bits, device if device.type == "cuda" else "cpu")
    try:
        captions = [encoder.encode([text], config.caption_tokens, config.cleans_captions) for text in ["", *texts]]
    finally:
        encoder.close()
    side = method.size or config.resolution
    return CaptionList(source, captions[1:], captions[0], config.channels, side, side)
