"""From prompt to image without ComfyUI: the parts of the library wired together.

Every file is opened once and read when it is first needed. Where memory is short the text encoder is freed before the
transformer is read, so that the two are never in memory at the same time.
"""
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..checkpoint import load_control
from ..config import PixArtConfig
from ..control.control_image import ControlImage
from ..control.images import fit
from ..device import checked_device, memory_advice
from ..mini import SHIPPED, is_mini
from ..model.compiled import compile_blocks
from ..model.controlnet import PixArtControlNet
from ..model.cpu_dtype import fitting_dtype
from ..model.nag import NAG
from ..model.policy import Policy
from ..model.transformer import PixArtTransformer
from ..progress import Progress
from ..resolution import size_notice
from ..sampling.preset import Preset, found_in
from ..sampling.samplers import sampler as sampler_of
from ..text.encoded import Encoded, join_encoded
from ..text.long import encode_long
from ..text.on_demand import T5OnDemand
from ..text.quantized import Bits, usual_bits
from ..vae import Autoencoder, decode, encode_images, load_vae
from .facts import image_facts_of
from .image_to_image import Origin, StartImage, output_size, start_image
from .pipeline_files import AnyPath, PipelineFiles, parts_in, require_files
from .request import Request, check_captions, check_given, check_negative, check_origin
from .result import Images
from .sample import AppliedControl, sample

logger = logging.getLogger(__name__)

Decoder = Callable[[Tensor], Tensor]
Network = TypeVar("Network", bound=nn.Module)
NOT_FINITE = ("{} gave values that are not finite (NaN or infinite), which would be a black image; use dtype float32 "
              "or bfloat16, and if that does not help, other weights")


class Pipeline:
    """A model with its text encoder and VAE. Create it once with `Pipeline.open(...)`, then call it for images."""

    def __init__(self, files: PipelineFiles | None, t5: T5OnDemand | None, device: torch.device,
                 dtype: torch.dtype | None = None, keep_t5: bool | None = None) -> None:
        """Use `open` or `of` instead. Reads nothing."""
        self.files, self.t5, self.device, self.dtype, self.keep_t5 = files, t5, device, dtype, keep_t5
        self._said: set[str] = set()          # what has been logged already

    @classmethod
    def open(cls, model: AnyPath | None = None, vae: AnyPath | None = None, t5: AnyPath | None = None,
             device: str | torch.device | None = None, dtype: torch.dtype | None = None, *, variant: str = "auto",
             bits: Bits | None = None, loras: Sequence[tuple[AnyPath, float]] = (), controlnet: AnyPath | None = None,
             keep_t5: bool | None = None, compile: bool = False) -> "Pipeline":
        """Check all files. Their weights are read on first use.

        model: transformer, a file or folder; without it the included PixArt-mini with all its parts.
        vae, t5: files or folders; they must be those the model was trained with. By default those in the folder, if
            model is that of a diffusers pipeline.
        device: by default the best available.
        dtype: of the transformer; by default bfloat16 on a GPU, on a CPU whichever is faster.
        variant: a key of VARIANTS, if the weights do not determine it.
        bits: of T5: 16, 8, 4, "int8" (see T5Encoder), or "auto" for the best that fits into free memory; by default 8,
            or 16 for PixArt-mini's T5 and on Apple GPUs.
        loras: (file or folder, strength) pairs, merged into the weights; strength 1 is as trained.
        controlnet: file or folder, for calls with a control image.
        keep_t5: keep T5 in memory next to the transformer; by default if free memory exceeds its size.
        compile: run the blocks through torch.compile, with one graph for all blocks. The first image of a size takes
            longer, later ones less. Without a compiler this is logged and nothing is compiled.
        Raises ValueError or FileNotFoundError, with the file and what to do.
        """
        if any(isinstance(given, (str, Path)) for given in loras):
            raise ValueError("loras are files with their strengths; write [(file, 1.0)] for one as it was trained")
        vae, t5 = parts_in(model, vae, t5)
        require_files(model, vae, t5, [("controlnet", controlnet), *(("loras", path) for path, _ in loras)])
        place = checked_device(device)
        files = PipelineFiles.open(model, vae, controlnet, loras, variant, compile)
        usual = 16 if t5 is None else usual_bits(place)
        return cls(files, T5OnDemand(t5 or SHIPPED.t5, bits or usual, place), place, dtype, keep_t5)

    @classmethod
    def of(cls, transformer: PixArtTransformer, decoder: Decoder | None = None,
           controlnet: PixArtControlNet | None = None) -> "Pipeline":
        """A pipeline of networks in memory, which are not copied or moved.

        decoder: scaled latents (B, C, h, w) -> images (B, 3, 8 h, 8 w) in 0..1; without one only `sample` works.
        The pipeline has no text encoder: pass encoded prompts, and for a control image also its latent.
        """
        pipe = cls(None, None, transformer.x_embedder.proj.weight.device)
        pipe.transformer = transformer
        if decoder is not None:
            pipe.decoder = decoder
        if controlnet is not None:
            pipe.controlnet = controlnet
        return pipe

    @property
    def config(self) -> PixArtConfig:
        """Configuration of the transformer, available before its weights are read."""
        return self.transformer.config if self.files is None else self.files.checkpoint.config

    @cached_property
    def preset(self) -> Preset:
        """How the checkpoint with its LoRAs should be sampled: the meaning of sampler "auto"."""
        usual = 2.5 if is_mini(self.config) else 4.5
        if self.files is None:                  # networks in memory say nothing
            return found_in([], usual)
        return self.files.preset(usual)

    @cached_property
    def transformer(self) -> PixArtTransformer:
        """With the LoRAs merged, in evaluation mode; read on first use."""
        assert self.files is not None           # `of` sets the transformer itself
        dtype = self.dtype or fitting_dtype(self.device, self.config.hidden)
        return self._compiled(self.files.read_transformer(dtype, self.device))

    @cached_property
    def controlnet(self) -> PixArtControlNet:
        """In the dtype of the transformer; read on first use. ValueError if the pipeline has none."""
        if self.files is None or self.files.controlnet is None:
            raise ValueError("a control image needs a ControlNet; open the pipeline with controlnet, one made for this "
                             "model")
        dtype = self.transformer.x_embedder.proj.weight.dtype
        return self._compiled(load_control(self.files.controlnet, dtype, self.device))

    @cached_property
    def vae(self) -> Autoencoder:
        """Read on first use."""
        if self.files is None:
            raise ValueError("this pipeline was made of networks in memory and has no autoencoder: give Pipeline.of a "
                             "decoder, a control image its latent, and give a start image to `sample`, as an Origin")
        return load_vae(self.files.vae, self.device)

    @cached_property
    def decoder(self) -> Decoder:
        """Scaled latents -> images in 0..1, with the autoencoder in slices or tiles by free memory."""
        return partial(decode, self.vae, latent_scale=self.config.latent_scale)

    def _compiled(self, network: Network) -> Network:
        if self.files is not None and self.files.compile:
            compile_blocks([network], self.device)
        return network

    def encode(self, prompts: str | Sequence[str], progress: Progress | None = None, long: str = "truncate",
               inner_ends: bool = False) -> Encoded:
        """Encoded prompts, which calls accept instead of text. The last 64 prompts are cached in any case.

        long: how to handle prompts longer than the training captions: truncate, whole or segments, see `encode_long`.
        """
        if self.t5 is None:
            raise ValueError("this pipeline was made of networks in memory and has no text encoder; give it features "
                             "of T5Encoder.encode in place of prompts")
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        reading = progress and partial(progress, "reading T5")
        clean, encoder = self.config.cleans_captions, self.t5
        with memory_advice(self.device, "encoding the prompt", "use T5 in fewer bits, encode on the CPU, or give "
                           "features that were encoded before"):
            encoded = encode_long(lambda some, limit: encoder.encode(some, limit, clean, reading), texts,
                                  self.config.caption_tokens, long, inner_ends)
        tell(progress, "encoding", 1, 1)
        return encoded

    def __call__(self, prompts: str | Sequence[str] | Encoded, negative: str | Encoded = "", *,
                 steps: int | None = None, seed: int = 0, width: int | None = None, height: int | None = None,
                 sampler: str = "auto", guidance: float | None = None, rule: str | None = None,
                 control: ControlImage | None = None, policies: Sequence[Policy] = (), batch: int = 4,
                 progress: Progress | None = None, noise: Tensor | None = None, nag: float = 1.0,
                 image: Tensor | None = None, denoise: float | None = None, mask: Tensor | None = None) -> Images:
        """Generate an image for each prompt. Image i uses the seed seed + i and does not depend on the others.

        prompts: texts, or the result of `encode`.
        negative: what to avoid, for guided samplers, for all others with nag.
        steps: by default the usual number of the sampler.
        width, height: in pixels; by default the training resolution, or the size of `image`.
        sampler: a key of SAMPLERS, or "auto": as the checkpoint's file or name says (`preset`), else dpm.
        guidance: scale of guided samplers, 1 for none; by default 4.5 or, with "auto", the preset's.
        rule: rule for the sampler's timesteps.
        control: an edge map to follow.
        policies: caches or feedback, see PixArtTransformer.forward.
        batch: images at once.
        progress: called with (stage, done, total); may raise to stop.
        noise: (B, C, height / 8, width / 8) initial noise, as saved by `pixart reno`.
        nag: scale of normalized attention guidance, 1 for none, see `NAG`.
        image, denoise, mask: a start image, (1 or B, 3, H, W) in 0..1; how much of it is regenerated, above 0 to 1,
            all; where, (1 or B, 1, H, W): 1 regenerated, 0 keeps the pixels as they are. See `StartImage`.
        Raises ValueError for impossible requests, if possible before anything is read; MemoryError with advice;
        FloatingPointError for an image that is not finite.
        """
        start, wanted = start_image(image, denoise, mask), self.wanted(sampler, steps, guidance, rule)
        sampler, chosen = wanted.sampler, sampler_of(wanted.sampler)
        height, width = output_size(start, height, width, self.config.resolution)
        request = Request(texts_of(prompts), texts_of(negative)[0], height, width, sampler, wanted.steps,
                          wanted.guidance, wanted.rule, seed, 1.0 if start is None else start.denoise)
        start = None if start is None else start.fitted(request)
        if request.negative and not request.guided and nag == 1:
            because = "guidance 1" if chosen.guided else f"sampler {sampler}, which works without guidance"
            raise ValueError(f"a negative prompt has no effect with {because}; leave it out, or give nag=5")
        check_given(control, noise, request, self.config)
        caption = self._features(prompts, progress)
        null = self._features(negative, progress) if request.guided or nag != 1 else caption
        facts = image_facts_of(request, self.files, nag=nag, control=control, policies=policies,
                               own_noise=noise is not None, start=start)
        if nag != 1:
            check_negative(null, self.config)
            policies = [*policies, NAG(self.config, null.context[:, null.mask[0]], nag)]
        origin = None if start is None else self._origin(start)
        latents = self.sample(request, caption, null, control, policies, batch, progress, noise, origin)
        pixels = self.decode(latents, progress)[:, :, :request.height, :request.width]
        return Images(pixels if start is None else start.pasted(pixels), caption.reports,
                      [seed + i for i in range(len(pixels))], facts)

    def sample(self, request: Request, caption: Encoded, null: Encoded, control: ControlImage | None = None,
               policies: Sequence[Policy] = (), batch: int = 4, progress: Progress | None = None,
               noise: Tensor | None = None, origin: Origin | None = None) -> Tensor:
        """Latents (B, C, h, w) of a request, scaled as the transformer sees them, on its device.

        caption: encoded prompts of the request; null: its encoded negative prompt, for guided samplers; origin: the
        latent to start from. The other arguments are those of a call, which consists of this and `decode`.
        """
        check_given(control, noise, request, self.config)
        check_origin(origin, request, self.config)
        check_captions(caption, request, self.config)
        if request.guided:
            check_negative(null, self.config)
        if (notice := size_notice(request.height, request.width, self.config.resolution)) is not None:
            logger.warning(notice)
        if self.t5 is not None:
            self.t5.make_room(self.keep_t5)
        with memory_advice(self.device, "sampling", "generate fewer images at once (batch), smaller ones, or in "
                           "16 bits"):
            return torch.cat([self._sample(rows, request, caption, null, control, policies, progress, noise, origin)
                              for rows in torch.arange(len(request.prompts)).split(max(1, batch))])

    def decode(self, latents: Tensor, progress: Progress | None = None) -> Tensor:
        """Scaled latents (B, C, h, w) -> images (B, 3, 8 h, 8 w) in 0..1; FloatingPointError where not finite."""
        tell(progress, "decoding", 0, len(latents))
        with memory_advice(self.device, "decoding", "generate a smaller image, or on the CPU"):
            pixels = self.decoder(latents)
        require_finite(pixels, "the VAE")
        tell(progress, "decoding", len(latents), len(latents))
        return pixels

    def wanted(self, sampler: str, steps: int | None = None, guidance: float | None = None,
               rule: str | None = None) -> Preset:
        """The preset that a call with these arguments samples by: None replaced by defaults, "auto" looked up."""
        if sampler == "auto":
            usual = self.preset
            self._say(logging.INFO, usual.line)
        else:
            usual = Preset("as chosen", sampler, sampler_of(sampler).steps, guidance=4.5)
            self._say(logging.WARNING, self.preset.mismatch(sampler))
        return replace(usual, steps=usual.steps if steps is None else steps, rule=rule or usual.rule,
                       guidance=usual.guidance if guidance is None else guidance)

    def _say(self, level: int, text: str | None) -> None:
        """Log a sentence the first time it is true."""
        if text is not None and text not in self._said:
            self._said.add(text)
            logger.log(level, text)

    def _features(self, given: str | Sequence[str] | Encoded, progress: Progress | None) -> Encoded:
        return given if isinstance(given, Encoded) else self.encode(given, progress)

    def _sample(self, rows: Tensor, request: Request, caption: Encoded, null: Encoded, control: ControlImage | None,
                policies: Sequence[Policy], progress: Progress | None, noise: Tensor | None = None,
                origin: Origin | None = None) -> Tensor:
        """Latents of the request's images numbered by `rows`."""
        first, numbers, total = int(rows[0]), rows.tolist(), len(request.prompts)
        part = replace(request, prompts=tuple(request.prompts[i] for i in numbers), seed=request.seed + first)
        if control is not None:
            control = control.rows(rows)
        passes = len(request.times)
        done, every = first * passes, total * passes
        latents = sample(self.transformer, part, join_encoded([caption.one(i) for i in numbers]), null,
                         lambda step, x, x0: tell(progress, "sampling", done + (step + 1) * len(numbers), every),
                         None if control is None else self._control(control, part), policies,
                         None if noise is None else noise[rows], None if origin is None else origin.rows(rows))
        require_finite(latents, "the transformer")
        return latents

    def _origin(self, start: StartImage) -> Origin:
        """A fitted start image, encoded; the text encoder makes room first, as for the transformer."""
        if self.t5 is not None:
            self.t5.make_room(self.keep_t5)
        with memory_advice(self.device, "encoding the image", "generate a smaller image, or on the CPU"):
            origin = start.origin(self.vae, self.config.latent_scale)
        require_finite(origin.latent, "the VAE")
        return origin

    def _control(self, control: ControlImage, request: Request) -> AppliedControl:
        """The ControlNet with the edge map encoded at the size of the image."""
        if control.latent is not None:
            return AppliedControl(self.controlnet, control, control.latent)
        height, width = (8 * side for side in request.latent_shape)
        edges = fit(control.edges, width, height).expand(-1, 3, -1, -1)
        return AppliedControl(self.controlnet, control, encode_images(self.vae, edges, self.config.latent_scale)[0])


def texts_of(prompts: str | Sequence[str] | Encoded) -> tuple[str, ...]:
    """The prompts themselves."""
    if isinstance(prompts, Encoded):
        return tuple(report.prompt for report in prompts.reports)
    return (prompts,) if isinstance(prompts, str) else tuple(prompts)


def tell(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(stage, done, total)


def require_finite(values: Tensor, who: str) -> None:
    if not torch.isfinite(values).all():
        raise FloatingPointError(NOT_FINITE.format(who))
