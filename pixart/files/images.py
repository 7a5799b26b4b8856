"""Image files: opened upright whatever their format, with a reason if that fails; and saved."""
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .atomic import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

PARAMETERS_KEY = "parameters"       # of a PNG's text; not ComfyUI's `prompt` or `workflow`, which hold graphs
MOST_JPEG_EXIF = 65533              # bytes
_ORIENTATION, _EXIF_FOLDER, _USER_COMMENT = 0x0112, 0x8769, 0x9286      # entries of EXIF
# Value of the EXIF orientation entry -> Pillow's name of the transposition that sets the image upright.
_UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
            7: "TRANSVERSE", 8: "ROTATE_90"}


class BrokenImage(ValueError):
    """Why an image cannot be used, as a sentence about it."""


def read_image(path: str | Path) -> Tensor:
    """RGB and opacity (1, 4, H, W) in 0..1 of an image file, upright.

    Raises FileNotFoundError, and ValueError for a file that is no image, is truncated, or exceeds Pillow's size limit.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no image file at this place: {path}")
    try:
        with path.open("rb") as file, open_image(file) as image:
            return pixels_of(image)
    except (BrokenImage, IsADirectoryError) as error:
        raise ValueError(f"this image cannot be used, {error}: {path}") from error


def pixels_of(image: "Image") -> Tensor:
    """RGB and opacity (1, 4, H, W) in 0..1 of an opened image, upright. Raises BrokenImage."""
    whole = upright(image)
    if whole.mode.startswith(("I", "F")):
        whole = plain_colours(whole)
    return torch.from_numpy(np.array(whole.convert("RGBA"))).permute(2, 0, 1)[None] / 255


def save_image(path: str | Path, image: Tensor, parameters: str | None = None) -> Path:
    """Write (3, H, W) in 0..1 in the format of the file extension; an existing file is replaced atomically.

    parameters: how it was made, see `ImageFacts`; PNG, JPEG and WebP carry it.
    """
    path, kind = Path(path), format_of(path)
    with replacing(path) as beside:
        write_image(beside, image, kind, parameters)
    return path


def write_image(file: Path | BinaryIO, image: Tensor, kind: str, parameters: str | None = None) -> None:
    """Write (3, H, W) in 0..1 in a format by Pillow's name; the same arguments give the same bytes."""
    to_image(image).save(file, format=kind, **({} if parameters is None else metadata_options(kind, parameters)))


def metadata_options(kind: str, parameters: str) -> dict[str, Any]:
    """Options of Pillow's `save` that put a text into a file: PNG's entry `parameters`, or EXIF's UserComment."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    parameters = parameters.encode("utf-8", "replace").decode("utf-8")     # half a surrogate pair cannot be written
    if kind == "PNG":
        entries = PngInfo()
        if parameters.isascii():
            entries.add_text(PARAMETERS_KEY, parameters)
        else:                       # UTF-8: readers differ in how they read the Latin-1 of the other kind of entry
            entries.add_itxt(PARAMETERS_KEY, parameters)
        return {"pnginfo": entries}
    if kind not in ("JPEG", "WEBP"):
        return {}
    exif = Image.Exif()
    exif[_EXIF_FOLDER] = {_USER_COMMENT: b"UNICODE\0" + parameters.encode("utf-16-be")}
    if kind == "JPEG" and len(exif.tobytes()) > MOST_JPEG_EXIF:
        logger.warning("the prompt is too long for the metadata of a JPEG, which is saved without; use .png")
        return {}
    return {"exif": exif}


def to_image(image: Tensor) -> "Image":
    """(3, H, W) in 0..1 as an 8-bit Pillow image."""
    from PIL import Image

    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def format_of(path: str | Path) -> str:
    """Pillow's name for the format of a file extension. ValueError if Pillow cannot write it."""
    from PIL import Image

    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"no image can be written under the ending {Path(path).suffix!r}; use .png, .jpg or .webp: "
                         f"{path}")
    return kind


def open_image(file: BinaryIO, formats: tuple[str, ...] | None = None) -> "Image":
    """An image of which only the header is read yet; formats: those accepted, by Pillow's names. Raises BrokenImage."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        file.seek(0)
        expected = f"a {' or '.join(formats)}" if formats else "an image"
        raise BrokenImage(f"it is not {expected}" if file.read(1) else "it is empty") from error
    except Exception as error:          # DecompressionBombError, and whatever damaged headers lead to
        raise BrokenImage(f"it cannot be opened: {error}") from error


def upright(image: "Image") -> "Image":
    """The image, fully decoded and turned as its metadata say."""
    from PIL import Image

    try:
        image.load()                  # already turns a TIFF, and removes the entry
        turn = _UPRIGHT.get(orientation(image) or 1)
        return image.transpose(Image.Transpose[turn]) if turn else image
    except BrokenImage:
        raise
    except Exception as error:          # decoders raise OSError, SyntaxError, struct.error, ... for damaged files
        raise BrokenImage(f"it is damaged or cut off: {error}") from error


def orientation(image: "Image") -> int | None:
    """From the metadata before the pixels; Pillow's own method decodes a whole PNG to find some after them."""
    from PIL import Image

    try:
        return Image.Image.getexif(image).get(_ORIENTATION)
    except Exception as error:          # the parser of damaged metadata raises whatever it stumbles over
        raise BrokenImage(f"its metadata is damaged: {error}") from error


def plain_colours(image: "Image") -> "Image":
    """8-bit red, green and blue, from every mode: palettes, CMYK, 16-bit grey; transparency is blended with white."""
    from PIL import Image

    if image.mode == "F":
        raise BrokenImage("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):            # 16-bit grey, which some files store as 32-bit integers
        values = np.asarray(image).astype(np.float64)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise BrokenImage("its pixels are beyond the range of 16 bits")
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")
