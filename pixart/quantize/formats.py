"""All formats: by the names that files have, and as targets to convert to."""
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..config import PixArtConfig
from .asym_w4a8 import AsymW4A8
from .convrot_w4a4 import ConvRotW4A4
from .float8 import Float8E4M3, Float8E5M2
from .format import Format, FormatOptions, Quantized
from .fp4 import FLOAT, FP4
from .int8 import Int8, RotatedInt8
from .mxfp8 import MXFP8
from .nvfp4 import NVFP4

FORMATS: dict[str, Format] = {each.name: each for each in (
    Float8E4M3(), Float8E5M2(), Int8(), NVFP4(), MXFP8(), ConvRotW4A4(), AsymW4A8(), FP4())}


def same_for_all_layers(layer: str, config: PixArtConfig) -> FormatOptions:
    """No layer has settings of its own."""
    return {}


def mixed(layer: str, config: PixArtConfig) -> FormatOptions:
    """Which float of 4 bits FP4DiT takes for a layer: E3M0 before GELU, else E2M1 for alpha, E1M2 for Sigma."""
    if layer.endswith("mlp.fc1"):
        return {FLOAT: "e3m0"}
    return {FLOAT: "e2m1" if config.latent_space == "sd" else "e1m2"}


@dataclass(frozen=True)
class ConversionTarget:
    """A format to convert to, and one line about it."""

    format: Format
    about: str
    settings: Callable[[str, PixArtConfig],
                       FormatOptions] = same_for_all_layers  # (layer, model) -> settings of its own

    def options(self, shape: tuple[int, int], further: FormatOptions | None = None) -> FormatOptions:
        """All settings for a weight (N, K). ValueError where they, or its sizes, do not fit."""
        if (reason := self.format.why_not(shape)):
            raise ValueError(f"a weight of shape {shape} cannot be quantised as {self.format.name}: {reason}")
        options = {**self.format.options_for(shape), **(further or {})}
        if (reason := self.format.options_problem(options, shape)):
            raise ValueError(f"a weight of shape {shape} cannot be quantised as {self.format.name}: {reason}")
        return options

    def quantize(self, weight: Tensor, further: FormatOptions | None = None) -> Quantized:
        """weight (N, K) float, finite; further: settings of the format or for the host. ValueError as `options`."""
        options = self.options((weight.shape[0], weight.shape[1]), further)
        return Quantized(self.format, self.format.quantize(weight.float(), options), options)


TARGETS: dict[str, ConversionTarget] = {
    "float8_e4m3fn": ConversionTarget(FORMATS["float8_e4m3fn"],
                                      "8 bits, one scale a layer; fast from NVIDIA's 40 series on"),
    "float8_e5m2": ConversionTarget(FORMATS["float8_e5m2"], "8 bits, coarser, for cards whose kernels need it"),
    "int8_tensorwise": ConversionTarget(FORMATS["int8_tensorwise"],
                                        "8 bits, one scale a row; fast from NVIDIA's 20 series on"),
    "int8_convrot": ConversionTarget(RotatedInt8(), "the same, rotated: int8_tensorwise in files"),
    "mxfp8": ConversionTarget(FORMATS["mxfp8"], "8.25 bits, a scale for 32 columns; fast on NVIDIA's 50 series"),
    "nvfp4": ConversionTarget(FORMATS["nvfp4"], "4.5 bits, a scale for 16 columns; fast on NVIDIA's 50 series"),
    "convrot_w4a4": ConversionTarget(FORMATS["convrot_w4a4"], "4 bits, rotated; ComfyUI rounds inputs to 4 bits too"),
    "asym_w4a8_int8": ConversionTarget(FORMATS["asym_w4a8_int8"], "4.5 bits, rotated, a table of 16 values a layer"),
    "fp4": ConversionTarget(FORMATS["pixart_fp4"],
                            "4.13 bits, mixed floats of 4 bits (FP4DiT); a small file, ComfyUI dequantises it "
                            "as it loads", mixed),
}
