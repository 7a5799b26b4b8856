"""All formats: by the names that files have, and as targets to convert to."""
from dataclasses import dataclass

from torch import Tensor

from .asym_w4a8 import AsymW4A8
from .convrot_w4a4 import ConvRotW4A4
from .float8 import Float8E4M3, Float8E5M2
from .format import Format, Options, Packed
from .int8 import Int8, RotatedInt8
from .mxfp8 import MXFP8
from .nvfp4 import NVFP4

FORMATS: dict[str, Format] = {each.name: each for each in (
    Float8E4M3(), Float8E5M2(), Int8(), NVFP4(), MXFP8(), ConvRotW4A4(), AsymW4A8())}


@dataclass(frozen=True)
class Target:
    """A format to convert to, and one line about it."""

    format: Format
    about: str

    def pack(self, weight: Tensor, further: Options | None = None) -> Packed:
        """weight (N, K) float, finite; further: settings for the host. ValueError where the sizes do not fit."""
        rows, columns = weight.shape
        if (reason := self.format.why_not((rows, columns))):
            raise ValueError(f"a weight of shape {(rows, columns)} cannot be packed as {self.format.name}: {reason}")
        options = self.format.options_for((rows, columns))
        return Packed(self.format, self.format.pack(weight.float(), options), {**options, **(further or {})})


TARGETS: dict[str, Target] = {
    "float8_e4m3fn": Target(FORMATS["float8_e4m3fn"], "8 bits, one scale a layer; fast from NVIDIA's 40 series on"),
    "float8_e5m2": Target(FORMATS["float8_e5m2"], "8 bits, coarser, for cards whose kernels want it"),
    "int8_tensorwise": Target(FORMATS["int8_tensorwise"], "8 bits, one scale a row; fast from NVIDIA's 20 series on"),
    "int8_convrot": Target(RotatedInt8(), "the same, rotated: int8_tensorwise in files"),
    "mxfp8": Target(FORMATS["mxfp8"], "8.25 bits, a scale for 32 columns; fast on NVIDIA's 50 series"),
    "nvfp4": Target(FORMATS["nvfp4"], "4.5 bits, a scale for 16 columns; fast on NVIDIA's 50 series"),
    "convrot_w4a4": Target(FORMATS["convrot_w4a4"], "4 bits, rotated; the host rounds inputs to 4 bits too"),
    "asym_w4a8_int8": Target(FORMATS["asym_w4a8_int8"], "4.5 bits, rotated, a table of 16 values a layer"),
}
