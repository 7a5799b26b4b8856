"""Validation while a training runs: images of fixed prompts from the averaged weights, on one sheet with captions."""
import logging
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config import PixArtConfig
from ..control.control_image import ControlImage
from ..control.images import fit, opaque
from ..files.atomic import replacing
from ..files.images import read_image, to_image
from ..generation.pipeline import Pipeline
from ..generation.request import Request, check_captions
from ..model.controlnet import PixArtControlNet
from ..model.transformer import PixArtTransformer
from ..text.encoded import Encoded
from ..text.quantized import Bits
from ..text.t5 import T5Encoder
from ..vae import decode, encode_images, load_vae
from .report import Record
from .settings import ValidateSettings

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

PreviewParts = Callable[[nn.Module], tuple[PixArtTransformer, PixArtControlNet | None]]
CAPTION_LINES, LINE = 3, 12          # under an image; pixels a line


@dataclass(frozen=True)
class Subject:
    """What the images show, encoded once. decode: scaled latents to images (B, 3, H, W) in 0..1.

    edges, for a ControlNet: the images (B, 3, H, W) in 0..1 to follow, a prompt each; hints: their latents, scaled.
    """

    request: Request
    caption: Encoded
    null: Encoded
    decode: Callable[[Tensor], Tensor]
    edges: Tensor | None = None
    hints: Tensor | None = None


def subject_from_files(settings: ValidateSettings, config: PixArtConfig, device: torch.device | str) -> Subject:
    """Encodes the prompts and frees T5; keeps the VAE. Raises what loading them raises."""
    if settings.t5 is None or settings.vae is None:
        raise ValueError("previews need t5 and vae, the files to encode prompts and decode images with")
    request = Request(settings.prompts, height=settings.height or config.resolution,
                      width=settings.width or config.resolution, sampler=settings.sampler, steps=settings.steps,
                      guidance=settings.guidance, seed=settings.seed)
    caption, null = encode_request(settings.t5, request, config.caption_tokens, config.cleans_captions, settings.bits,
                                   device)
    check_captions(caption, request, config)
    vae = load_vae(settings.vae, device)
    edges = hints = None
    if settings.hints:
        height, width = (8 * side for side in request.latent_shape)
        edges = torch.cat([fit(opaque(read_image(path)), width, height) for path in settings.hints])
        hints = encode_images(vae, edges, config.latent_scale)[0]
    return Subject(request, caption, null, lambda latents: decode(vae, latents, config.latent_scale), edges, hints)


def encode_request(t5: Path, request: Request, max_tokens: int, clean: bool, bits: Bits = 8,
                   device: torch.device | str = "cpu") -> tuple[Encoded, Encoded]:
    """Text features of a request's prompts and of its negative prompt; the encoder is freed before returning."""
    encoder = T5Encoder(t5, bits=bits, device=device)
    try:
        return (encoder.encode(list(request.prompts), max_tokens, clean),
                encoder.encode([request.negative], max_tokens, clean))
    finally:
        encoder.close()


class Preview:
    """Generates images of the subject every `every` steps and after the last one: {folder}/step-{number}.png.

    The noise comes from generators of its own, so a training with previews takes the same course as one without.
    """

    def __init__(self, subject: Subject, every: int, parts: PreviewParts, folder: Path,
                 show: Callable[[Record, "Image"], None] | None = None) -> None:
        """show: also called with every sheet."""
        self.subject, self.every, self.parts, self.folder, self.show = subject, every, parts, folder, show

    def __call__(self, record: Record, average: nn.Module) -> None:
        if record.step % self.every and record.step != record.steps:
            return
        path = self.folder / f"step-{record.step:07d}.png"
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            sheet = self.sheet(average)
        except FloatingPointError as error:     # a later one may be finite again: no reason to end a training
            logger.warning("no preview at step %d: %s", record.step, error)
            return
        with replacing(path) as beside:
            sheet.save(beside, format="PNG")
        logger.info("wrote %s", path)
        if self.show is not None:
            self.show(record, sheet)

    def sheet(self, average: nn.Module) -> "Image":
        """One column a prompt; hints, where there are any, above."""
        rows = [self.generate(average)]
        if self.subject.edges is not None:
            rows.insert(0, self.subject.edges)
        return preview_sheet(rows, self.subject.request.prompts)

    def generate(self, average: nn.Module) -> Tensor:
        """Images (B, 3, height, width) in 0..1 of all prompts."""
        subject, control = self.subject, None
        base, network = self.parts(average)
        if network is not None and subject.hints is not None and subject.edges is not None:
            control = ControlImage(subject.edges, latent=subject.hints)
        pipe, request = Pipeline.of(base, subject.decode, network), subject.request
        latents = pipe.sample(request, subject.caption, subject.null, control, batch=len(request.prompts))
        return pipe.decode(latents)[:, :, :request.height, :request.width]


def preview_sheet(rows: Sequence[Tensor], captions: Sequence[str], most: int = 512) -> "Image":
    """Rows of images (B, 3, H, W) in 0..1, one column a caption, which stands below; sides at most `most` pixels."""
    from PIL import Image, ImageDraw
    height, width = rows[0].shape[-2:]
    scale = min(1.0, most / max(height, width))
    width, height = round(width * scale), round(height * scale)
    sheet = Image.new("RGB", (len(captions) * width, len(rows) * height + CAPTION_LINES * LINE + 4), "white")
    pen = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        for row, images in enumerate(rows):
            sheet.paste(to_image(images[column]).resize((width, height)), (column * width, row * height))
        lines = textwrap.wrap(caption, max(8, width // 6))[:CAPTION_LINES]
        pen.multiline_text((column * width + 2, len(rows) * height + 2), "\n".join(lines), fill="black", spacing=1)
    return sheet
