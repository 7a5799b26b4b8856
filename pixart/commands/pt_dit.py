"""What `generate` does with a PT-DiT: rectified flow in place of the samplers of PixArt."""
import argparse
from typing import TYPE_CHECKING

from ..dtypes import dtype_or_auto
from ..sampling.flow import FLOW_GUIDANCE, FLOW_STEPS
from ..text.long import check_mode
from .arguments import embeddings_of, negative_of, refuse_missing_negative, refuse_silent_negative

if TYPE_CHECKING:
    import torch

    from ..pt_dit.config import PTDiTConfig
    from ..pt_dit.load import OpenPTDiT
    from ..text.encoded import Encoded

# Options of `generate` that have no effect here, and their defaults.
WITHOUT_EFFECT: dict[str, object] = {
    "control": None, "controlnet": None, "cache": None, "budget": None, "ecad": None, "feedback": None, "lora": [],
    "rule": None, "noise": None, "input_bits": None, "pooled_blocks": None, "compile": False, "variant": "auto",
    "nag": 1.0, "image": None, "denoise": None, "mask": None}


def pt_dit_in(args: argparse.Namespace) -> "OpenPTDiT | None":
    """The PT-DiT that --model names, None where it is something else. Raises what opening a checkpoint raises."""
    if args.model is None:
        return None
    from ..checkpoint.read import open_network
    from ..pt_dit.load import is_pt_dit, recognise_pt_dit
    weights = open_network(args.model)
    return recognise_pt_dit(weights) if is_pt_dit(weights.tensors) else None


def generate_with_pt_dit(args: argparse.Namespace, opened: "OpenPTDiT") -> None:
    """Generate and save images, a batch at a time; print what became of the prompt and where the images lie."""
    from ..device import checked_device
    from ..generation.facts import ImageFacts, sampling_facts
    from ..generation.pipeline import require_finite
    from ..generation.result import Images
    from ..model.cpu_dtype import fitting_dtype
    from ..pt_dit.sample import sample_latents
    from ..text.encoded import join_encoded
    from ..vae import decode, load_vae, require_scale, require_vae
    check_pt_dit_options(args)
    require_vae(args.vae)
    device = checked_device(args.device)
    config = opened.config
    require_scale(args.vae, config.latent_scale, f"the model {args.model.name}")
    caption, null = encode_prompts(args, config, device)
    print(caption.reports[0].summary, *caption.reports[0].notes, sep="\n")
    model = opened.load(dtype_or_auto(args.dtype) or fitting_dtype(device, config.hidden), device)
    vae = load_vae(args.vae, device)
    width, height = args.size or (config.resolution, config.resolution)
    steps, negative = args.steps or FLOW_STEPS, null.reports[0].prompt if guidance_of(args) != 1 else ""
    for first in range(0, args.count, args.batch):
        count = min(args.batch, args.count - first)
        latents = sample_latents(model, join_encoded([caption] * count), null, height, width, steps,
                                 guidance_of(args), args.seed + first)
        require_finite(latents, "the transformer")
        pixels = decode(vae, latents, config.latent_scale)[:, :, :height, :width]
        require_finite(pixels, "the VAE")
        facts = [ImageFacts(caption.reports[0].prompt, negative, sampling_facts(
                     steps, "flow", guidance_of(args), args.seed + first + number, width, height, args.model))
                 for number in range(count)]
        for path in Images(pixels, [], [], facts).save(args.out, first, args.metadata):
            print(path, flush=True)


def guidance_of(args: argparse.Namespace) -> float:
    return FLOW_GUIDANCE if args.guidance is None else args.guidance


def check_pt_dit_options(args: argparse.Namespace) -> None:
    """Refuse options that would do nothing, and parts that are missing."""
    given = [name for name, unset in WITHOUT_EFFECT.items() if getattr(args, name) != unset]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} has no effect on a PT-DiT; leave it out")
    if args.sampler != "auto":
        raise ValueError(f"--sampler {args.sampler} is for PixArt; a PT-DiT has a sampler of its own, leave it out")
    for name, there in (("--vae", args.vae), ("a T5: --t5 or --embeddings", args.t5 or args.embeddings)):
        if not there:
            raise ValueError(f"--model needs {name}: those of PixArt-mini only fit PixArt-mini")
    check_mode(args.long, args.inner_ends)
    refuse_silent_negative(args)
    if guidance_of(args) != 1:
        refuse_missing_negative(args, "guidance (not --guidance 1)")
    if args.embeddings and args.long != "truncate":
        raise ValueError(f"--long {args.long} has no effect with --embeddings; give it to `encode`, which makes these")


def encode_prompts(args: argparse.Namespace, config: "PTDiTConfig",
                   device: "torch.device") -> "tuple[Encoded, Encoded]":
    """Features of the prompt and of the negative one; the encoder is freed before this returns."""
    from ..text.long import encode_long
    from ..text.on_demand import T5OnDemand
    from ..text.quantized import usual_bits
    negative = negative_of(args)
    if args.embeddings:
        caption = embeddings_of(args)
        return caption, caption if isinstance(negative, str) else negative
    encoder = T5OnDemand(args.t5, args.bits or usual_bits(device), device)

    def encode(some: list[str], limit: int) -> "Encoded":
        return encoder.encode(some, limit, config.cleans_captions)
    caption = encode_long(encode, [args.prompt], config.caption_tokens, args.long, args.inner_ends)
    null = encode([negative], config.caption_tokens) if isinstance(negative, str) else negative
    encoder.make_room(False)
    return caption, null
