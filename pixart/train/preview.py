"""Validation while a training runs: pictures of fixed prompts from the averaged weights, on one sheet with captions."""
import logging
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config import PixArtConfig
from ..control.pictures import fit
from ..model.controlnet import PixArtControlNet
from ..model.transformer import PixArtTransformer
from ..pipeline import Control, Guide, Request, check_captions, encode, sample
from ..vae import decode, load_vae
from ..vae import encode as encode_pictures
from .report import Record
from .settings import ValidateSettings

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

Parts = Callable[[nn.Module], tuple[PixArtTransformer, PixArtControlNet | None]]
CAPTION_LINES, LINE = 3, 12          # under a picture; pixels a line


class Preview:
    """Draws the prompts every `every` steps and after the last one: {folder}/step-{number}.png.

    The noise comes from generators of its own, so a training with previews takes the same course as one without.
    """

    def __init__(self, settings: ValidateSettings, config: PixArtConfig, parts: Parts, folder: Path,
                 device: torch.device | str) -> None:
        """Encodes the prompts and frees T5; keeps the VAE. Raises what loading them raises."""
        self.settings, self.config, self.parts, self.folder = settings, config, parts, folder
        self.request = Request(settings.prompts, height=settings.height or config.resolution,
                               width=settings.width or config.resolution, sampler=settings.sampler,
                               steps=settings.steps, guidance=settings.guidance, seed=settings.seed)
        self.caption, self.null = encode(settings.t5, self.request, config.caption_tokens, config.cleans_captions,
                                         settings.bits, device)
        check_captions(self.caption, self.request, config)
        self.vae = load_vae(settings.vae, device)
        self.edges = self._edges()
        self.hints = None if self.edges is None else encode_pictures(self.vae, self.edges, config.latent_scale)[0]

    def _edges(self) -> Tensor | None:
        """The hint pictures (B, 3, height, width) in 0..1 at the size of what is drawn."""
        if not self.settings.hints:
            return None
        height, width = (8 * side for side in self.request.latent_shape)
        return torch.cat([fit(read_picture(path), width, height) for path in self.settings.hints])

    def __call__(self, record: Record, average: nn.Module) -> None:
        if record.step % self.settings.every and record.step != record.steps:
            return
        path = self.folder / f"step-{record.step:07d}.png"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sheet(average).save(path)
        logger.info("drew %s", path)

    def sheet(self, average: nn.Module) -> "Image":
        """One column a prompt; hints, where there are any, above."""
        rows = [self.draw(average)]
        if self.edges is not None:
            rows.insert(0, self.edges)
        return contact_sheet(rows, self.settings.prompts)

    def draw(self, average: nn.Module) -> Tensor:
        """Pictures (B, 3, height, width) in 0..1 of all prompts."""
        base, network = self.parts(average)
        control = None
        if network is not None and self.hints is not None:
            control = Control(network, Guide(self.edges), self.hints)
        latents = sample(base, self.request, self.caption, self.null, control=control)
        pictures = decode(self.vae, latents, self.config.latent_scale)
        return pictures[:, :, :self.request.height, :self.request.width]


def read_picture(path: Path) -> Tensor:
    """(1, 3, H, W) in 0..1. Raises FileNotFoundError, ValueError for what is no picture."""
    from PIL import Image, UnidentifiedImageError
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture") from error
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(1, picture.height, picture.width, 3).permute(0, 3, 1, 2).float() / 255


def contact_sheet(rows: Sequence[Tensor], captions: Sequence[str], most: int = 512) -> "Image":
    """Rows of pictures (B, 3, H, W) in 0..1, one column a caption, which stands below; sides at most `most` pixels."""
    from PIL import Image, ImageDraw
    height, width = rows[0].shape[-2:]
    scale = min(1.0, most / max(height, width))
    width, height = round(width * scale), round(height * scale)
    sheet = Image.new("RGB", (len(captions) * width, len(rows) * height + CAPTION_LINES * LINE + 4), "white")
    pen = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        for row, pictures in enumerate(rows):
            array = (pictures[column] * 255).round().byte().permute(1, 2, 0).numpy()
            sheet.paste(Image.fromarray(array).resize((width, height)), (column * width, row * height))
        lines = textwrap.wrap(caption, max(8, width // 6))[:CAPTION_LINES]
        pen.multiline_text((column * width + 2, len(rows) * height + 2), "\n".join(lines), fill="black", spacing=1)
    return sheet
