"""From facts to a configuration: what weights tell, what config.json and the user say, and a guess that is logged."""
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..config import VARIANTS, KVCompression, PixArtConfig
from ..weights.errors import CheckpointError
from .detect import Facts
from .folder import TRAINED_TOKENS
from .mup import named_mup

logger = logging.getLogger(__name__)

PUBLISHED_SCALES = {(config.base_size, config.position_scale) for config in VARIANTS.values()}
HEAD_WIDTH = 72
NO_HEADS = "Pass a PixArtConfig as variant, or write the file with pixart.save_checkpoint, which stores it."


@dataclass(frozen=True)
class ChosenConfig:
    """A complete configuration; `guessed` when part of it rests on the file's name or on defaults."""

    config: PixArtConfig
    guessed: bool
    against: str = ""            # what in the file contradicts the chosen variant


def configure(facts: Facts, variant: str | PixArtConfig, header: PixArtConfig | None, settings: Mapping[str, Any],
              path: Path) -> ChosenConfig:
    """Combine all sources. What the user says wins wherever the network itself allows it, and a notice is logged.

    variant: "auto", a key of VARIANTS, or a PixArtConfig. header: that of this package's files. settings: config.json.
    Raises CheckpointError naming both sides where the tensors rule the choice out.
    """
    if isinstance(variant, PixArtConfig):
        return ChosenConfig(_agree(variant, facts, "the given configuration", path), False)
    if variant != "auto" and variant not in VARIANTS:
        raise CheckpointError(path, f"unknown variant {variant[:40]!r}", f"auto, {', '.join(VARIANTS)}")
    against = ""
    if variant != "auto":
        _refuse_mismatch(variant, facts, path)
        against = _notice(variant, facts, header, path)
    if header is not None:
        config = _agree(header, facts, "the configuration in its header", path)
        return ChosenConfig(config if variant == "auto" else _trained_as(config, VARIANTS[variant]), False, against)
    facts = _believable(facts, path)
    if variant != "auto":
        fixed = replace(facts, base_size=None, position_scale=None)
        return ChosenConfig(_complete(VARIANTS[variant], fixed, settings, path), False, against)
    return _choose(facts, settings, path)


def _trained_as(config: PixArtConfig, variant: PixArtConfig) -> PixArtConfig:
    """The same network, used as a variant was trained."""
    return replace(config, latent_space=variant.latent_space, base_size=variant.base_size,
                   position_scale=variant.position_scale)


def _believable(facts: Facts, path: Path) -> Facts:
    """The facts, without base size and scale if no published training has that pair.

    OneTrainer's converter writes one of 64 x 64 at scale 1 into files of every variant.
    """
    base, scale = facts.base_size, facts.position_scale
    if base is None or (base, scale) in PUBLISHED_SCALES or scale == base / 32:
        return facts
    logger.warning("%s: its pos_embed, of %d px at scale %g, is of no published training and is ignored", path.name,
                   base * facts.patch * 8, scale)
    return replace(facts, base_size=None, position_scale=None)


def _notice(variant: str, facts: Facts, header: PixArtConfig | None, path: Path) -> str:
    """What in a file contradicts the chosen variant, which wins; logged too."""
    config, said = VARIANTS[variant], []
    tokens = facts.caption_tokens
    if tokens in TRAINED_TOKENS and tokens != config.caption_tokens:
        said.append(f"its y_embedding has {tokens} tokens, not {config.caption_tokens}")
    for source, where in ((facts, "pos_embed"), (header, "header")):
        if source is not None and source.base_size not in (None, config.base_size):
            said.append(f"its {where} is of a {source.base_size * facts.patch * 8} px model")
        elif source is not None and source.position_scale not in (None, config.position_scale):
            said.append(f"its {where} has scale {source.position_scale:g}, not {config.position_scale:g}")
    if header is not None and header.latent_space != config.latent_space:
        said.append(f"its header says {header.latent_space} latents")
    if said:
        logger.warning("%s: used as %s, as chosen, although %s", path.name, variant, "; ".join(said))
    return "; ".join(said)


def _agree(config: PixArtConfig, facts: Facts, source: str, path: Path) -> PixArtConfig:
    """A configuration from outside, unless the weights contradict it; position tables are not compared."""
    for entry in fields(facts):
        weights, given = getattr(facts, entry.name), getattr(config, entry.name)
        if entry.name in ("base_size", "position_scale"):
            continue
        if weights != given and not (weights is None and _leaves_no_trace(given)):
            raise CheckpointError(path, f"{entry.name} is {weights} by its weights, but {given} by {source}",
                                  "both to agree", "Choose the configuration that belongs to this file.")
    return config


def _leaves_no_trace(value: object) -> bool:
    """Whether a setting may be right although the weights do not show it; key/value compression shows in one mode."""
    return not (isinstance(value, KVCompression) and value.mode == "conv")


def _refuse_mismatch(variant: str, facts: Facts, path: Path) -> None:
    """Refuse a variant that disagrees with the tensors about size conditioning, which no choice can change."""
    if facts.micro_conditioning == VARIANTS[variant].micro_conditioning:
        return
    has = "has" if facts.micro_conditioning else "has no"
    fitting = [name for name, config in VARIANTS.items() if config.micro_conditioning == facts.micro_conditioning]
    raise CheckpointError(path, f"variant {variant} was chosen, but the file {has} size conditioning (ar_embedder)",
                          f"variant {' or '.join(['auto', *fitting])}")


def _complete(base: PixArtConfig, facts: Facts, settings: Mapping[str, Any], path: Path) -> PixArtConfig:
    """A variant with everything that the weights determine filled in."""
    known = {entry.name: getattr(facts, entry.name) for entry in fields(facts)
             if getattr(facts, entry.name) is not None}
    try:
        return replace(base, heads=heads_of(facts.hidden, settings, path), **known)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(path, str(error), "the sizes of a PixArt model") from error


def heads_of(hidden: int, settings: Mapping[str, Any], path: Path) -> int:
    """Number of attention heads, which no shape shows: from config.json, else by the head width of all releases."""
    heads = settings.get("num_attention_heads")
    if heads:
        return int(heads)
    if hidden % HEAD_WIDTH:
        raise CheckpointError(path, f"width {hidden} and an unknown number of attention heads",
                              f"a width divisible by {HEAD_WIDTH}, or a configuration", NO_HEADS)
    if hidden != 1152:
        logger.warning("%s: took %d attention heads of %d for width %d; files cannot tell", path.name,
                       hidden // HEAD_WIDTH, HEAD_WIDTH, hidden)
    return hidden // HEAD_WIDTH


def _choose(facts: Facts, settings: Mapping[str, Any], path: Path) -> ChosenConfig:
    """The variant that weights and config.json determine, completed by a guess where they do not."""
    space = _latent_space(facts, settings)
    base, scale = facts.base_size, facts.position_scale
    if base is None:
        base, scale = _size_from_settings(facts, settings)
    if base is None and facts.micro_conditioning:
        base, scale = VARIANTS["alpha-1024"].base_size, VARIANTS["alpha-1024"].position_scale
    guessed = None in (space, base)
    variant = guess_variant(facts, space, base, scale, path)
    choice = VARIANTS[variant]
    if guessed:
        logger.warning("%s: taken for %s, which its weights cannot tell; choose variant if that is wrong (%s)",
                       path.name, variant, ", ".join(VARIANTS))
    config = replace(choice, latent_space=space or choice.latent_space, base_size=base or choice.base_size,
                     position_scale=scale or choice.position_scale)
    if settings.get("tokens") in TRAINED_TOKENS:
        config = replace(config, caption_tokens=settings["tokens"])
    return ChosenConfig(_complete(config, facts, settings, path), guessed)


def _latent_space(facts: Facts, settings: Mapping[str, Any]) -> str | None:
    """"sd" for alpha and delta, "sdxl" for Sigma, None where neither weights nor the pipeline say."""
    if facts.micro_conditioning:
        return "sd"
    factor = settings.get("vae_scaling_factor")
    if isinstance(factor, (int, float)):
        return "sd" if factor > 0.15 else "sdxl"
    pipeline = str(settings.get("pipeline_class", ""))
    if "PixArt" in pipeline:
        return "sdxl" if "Sigma" in pipeline else "sd"
    return TRAINED_TOKENS.get(facts.caption_tokens or 0) or TRAINED_TOKENS.get(settings.get("tokens") or 0)


def _size_from_settings(facts: Facts, settings: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """Base size and position scale of a diffusers config.json, with the class's own default for the scale."""
    side = settings.get("sample_size")
    if not isinstance(side, int) or side < facts.patch:
        return None, None
    scale = settings.get("interpolation_scale")
    return side // facts.patch, float(scale) if scale else float(max(side // 64, 1))


def guess_variant(facts: Facts, space: str | None, base: int | None, scale: float | None, path: Path) -> str:
    """The variant nearest to what is known, with hints from file and folder names for the rest."""
    if facts.micro_conditioning:
        return "alpha-1024"
    family, side = name_hints(path)
    if facts.depth == 42 and family is None:
        family, side = "sigma", side or 1024                 # the 900M models
    if space is not None:
        family = "alpha" if space == "sd" else "sigma"
    if base is not None:
        side = base * facts.patch * 8
    if family is None:
        family = "alpha" if side in (256, 512) and scale != 0.5 else "sigma"
    side = side or (512 if family == "alpha" else 1024)
    if family == "alpha" and side > 512:                     # without size conditioning it is not alpha-1024
        family, side = ("alpha", 512) if space == "sd" else ("sigma", side)
    sides = [256, 512] if family == "alpha" else [256, 512, 1024, 2048]
    nearest = min(sides, key=lambda known: abs(known - side))
    return f"{family}-{'2k' if nearest == 2048 else nearest}"


def name_hints(path: Path) -> tuple[str | None, int | None]:
    """Family and training side that the name of the file, or of the nearest folder named after PixArt, suggests."""
    folders = [part for part in reversed(path.parts[:-1]) if "pixart" in part.lower()]
    family, side = None, None
    for name in (path.name, *folders[:1]):
        text = name.lower().replace("pixart-alpha--", "")    # the publisher's name, also of Sigma files in a cache
        if family is None and ("sigma" in text or "900m" in text):
            family = "sigma"
        elif family is None and re.search(r"alpha|delta|lcm|dmd|pixart-xl|\bsam\b", text):
            family = "alpha"
        found = re.search(r"(?<!\d)(256|512|1024|2048|2k)(?!\d)", text)
        if side is None and found:
            side = 2048 if found[1] == "2k" else int(found[1])
        elif side is None and ("dmd" in text or "900m" in text):
            side = 512 if "dmd" in text else 1024
    if named_mup(path):
        return family or "alpha", side or 256
    return family, side
