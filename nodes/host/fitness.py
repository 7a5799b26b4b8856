"""What MODEL, CLIP, VAE and CONTROL_NET are, whether they fit together, and the memory they need, in words."""
from dataclasses import dataclass, field
from typing import Any

import torch

from ...pixart.config import PixArtConfig
from ...pixart.device import memory_text
from ...pixart.mini import is_mini
from .pt_dit import holds_pt_dit
from .stock_tokens import HOST_KEY, other_encoders
from .text import HostTextEncoder, MovableTextEncoder, is_ours

FAMILY = {"sd": "alpha and delta", "sdxl": "Sigma"}
VAE_FILES = {"sd": "vae-ft-ema-560000-ema-pruned.safetensors", "sdxl": "sdxl_vae.safetensors"}
ENCODING_STAGE = "encoding the prompt"
FACTOR = 8              # pixels per latent pixel, in both directions


@dataclass
class FitReport:
    """facts: a line for each part. problems: what will not work. needs: name of a stage -> bytes at its peak."""

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    needs: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        verdict = [f"PROBLEM: {problem}" for problem in self.problems] or ["No problem was found."]
        return "\n".join([*verdict, *self.facts])


def examine(model: Any, clip: Any, vae: Any, control: Any, height: int, width: int, images: int) -> FitReport:
    """All that can be said of the parts that are given, without running them."""
    found = FitReport()
    if model is clip is vae is control is None:
        found.problems.append("nothing is connected; connect a MODEL, CLIP, VAE or CONTROL_NET")
        return found
    latents = (images, 4, -(-height // FACTOR), -(-width // FACTOR))
    config = of_model(found, model, latents, height, width) if model is not None else None
    if clip is not None:
        of_clip(found, clip, config)
    if vae is not None:
        of_vae(found, vae, config, latents)
    if control is not None:
        of_control(found, control, model)
    of_memory(found, model, clip)
    return found


def of_model(found: FitReport, model: Any, latents: tuple[int, ...], height: int, width: int) -> PixArtConfig | None:
    """Its configuration; None where it is not of this pack's loader."""
    size = model.model_size()
    found.needs["sampling"] = size + model.model.memory_required([2 * latents[0], *latents[1:]])
    if not (is_ours(model) or holds_pt_dit(model)):
        found.facts.append(f"MODEL: {type(model.model).__name__} of a stock loader, {memory_text(size)}")
        found.problems.append(foreign(model))
        return None
    described, config = model.model.model_config.description, model.model.model_config.pixart
    dtype = str(model.model.get_dtype()).removeprefix("torch.")
    found.facts.append(f"MODEL: {described}; {memory_text(size)} in {dtype}; trained at {config.resolution} px, "
                       f"prompts up to {config.caption_tokens} tokens")
    from ...pixart.resolution import size_notice
    notice = size_notice(height, width, config.resolution)
    if notice is not None:
        found.facts.append(f"Notice: {notice}")
    return config


def foreign(model: Any) -> str:
    """Why a MODEL of another loader is not what it should be."""
    from comfy import model_base
    if isinstance(model.model, model_base.PixArt):
        return ("this PixArt model was loaded by a stock node, which ignores ControlNets and masks of prompts; load it "
                "with Load PixArt")
    return f"this MODEL is not of the PixArt family ({type(model.model).__name__}); load a PixArt file with Load PixArt"


def of_clip(found: FitReport, clip: Any, config: PixArtConfig | None) -> None:
    network = clip.cond_stage_model
    if isinstance(network, HostTextEncoder):
        width, size, how = network.width, network.bytes, f"{network.bits} bits, of Load T5 for PixArt"
    else:
        width, size = width_of(network), clip.patcher.model_size()
        how = "of a stock loader"
    found.needs[ENCODING_STAGE] = float(size)
    if width is None:
        found.facts.append(f"CLIP: {type(network).__name__}, not a T5, {memory_text(size)}")
        found.problems.append("this CLIP is not a T5 text encoder; PixArt takes T5-XXL, as of Load T5 for PixArt, or "
                              "of CLIPLoader with type pixart")
        return
    found.facts.append(f"CLIP: T5 that gives {width} numbers a token, {how}, {memory_text(size)}")
    if not isinstance(network, HostTextEncoder) and set(tokens := clip.tokenize("")) != {HOST_KEY}:
        found.problems.append(other_encoders(tokens))
    if config is not None and config.caption_width != width:
        wanted = "pixart-mini/t5" if is_mini(config) else "T5-XXL (t5-v1_1-xxl)"
        found.problems.append(f"the text encoder gives {width} numbers a token, the model takes "
                              f"{config.caption_width}; load {wanted}")


def width_of(network: torch.nn.Module) -> int | None:
    """Of the embeddings of a stock T5; None for other encoders."""
    tables = [tensor for name, tensor in network.named_parameters() if name.endswith("transformer.shared.weight")]
    return tables[0].shape[1] if len(tables) == 1 else None


def of_vae(found: FitReport, vae: Any, config: PixArtConfig | None, latents: tuple[int, ...]) -> None:
    size = sum(tensor.nbytes for tensor in vae.first_stage_model.parameters())
    found.facts.append(f"VAE: {type(vae.first_stage_model).__name__} of {vae.latent_channels} channels, "
                       f"{memory_text(size)}")
    found.needs["decoding"] = size + vae.memory_used_decode(latents, vae.vae_dtype)
    if vae.latent_channels != latents[1]:
        found.problems.append(f"this VAE has latents of {vae.latent_channels} channels, PixArt has {latents[1]}; load "
                              f"{VAE_FILES[config.latent_space if config else 'sd']}")
    elif config is not None and not is_mini(config):
        found.facts.append(f"(the VAEs of {FAMILY['sd']} and of {FAMILY['sdxl']} have the same shapes; this model is "
                           f"{FAMILY[config.latent_space]}, whose VAE is {VAE_FILES[config.latent_space]})")


def of_control(found: FitReport, control: Any, model: Any) -> None:
    from .control import HostControlNet, check_fits, network_of
    network = getattr(control, "control_model", None)
    if not isinstance(network, HostControlNet):
        found.facts.append(f"CONTROL_NET: {type(control).__name__} of another loader")
        found.problems.append("this ControlNet is not one of PixArt; load one with Load PixArt ControlNet")
        return
    size = sum(tensor.nbytes for tensor in network.parameters())
    found.facts.append(f"CONTROL_NET: {control.description}, {memory_text(size)}")
    if "sampling" in found.needs:
        found.needs["sampling"] += size
    if model is not None and holds_pt_dit(model):
        found.problems.append("a PT-DiT has no place for a ControlNet; load a PixArt model, or take the ControlNet out")
    if model is None or not is_ours(model):
        return
    try:
        check_fits(network, network_of(model.model), control.latent_space)
    except ValueError as error:
        found.problems.append(str(error))


def of_memory(found: FitReport, model: Any, clip: Any) -> None:
    """The stages need memory one after the other: the host unloads what a stage does not use."""
    from comfy import model_management
    device = model.load_device if model is not None else model_management.get_torch_device()
    apart = clip is not None and clip.patcher.load_device != device
    elsewhere = {ENCODING_STAGE: f" (on {clip.patcher.load_device})"} if apart else {}
    free = model_management.get_free_memory(device)
    stages = ", ".join(f"{name} {memory_text(size)}{elsewhere.get(name, '')}" for name, size in found.needs.items())
    if not stages:
        return
    found.facts.append(f"Memory, about, one after the other: {stages}; {memory_text(free)} are free on {device}")
    found.facts.extend(f"{name} needs more than is free: {what_then(name, clip)}" for name, size in found.needs.items()
                       if size > free and name not in elsewhere)


def what_then(stage: str, clip: Any) -> str:
    """What happens where a stage needs more memory than is free."""
    network = getattr(clip, "cond_stage_model", None)
    if stage == ENCODING_STAGE and isinstance(network, HostTextEncoder) and not isinstance(network, MovableTextEncoder):
        return ("the host will unload other models; this T5 is on the device as a whole, so where that is not enough "
                "load it with bits int8, or with device cpu")
    return "the host will unload other models, or keep a part in main memory and be slower"
