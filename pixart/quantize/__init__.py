"""Quantised weights, layer by layer, in ComfyUI's formats: writing, reading, and errors against the originals.

A format is a file of its own and an entry in `formats.FORMATS`; it quantises a matrix and dequantises it, and knows no
network.
"""
from .format import Format, Quantized
from .formats import FORMATS, TARGETS, ConversionTarget

__all__ = ["FORMATS", "TARGETS", "Format", "Quantized", "ConversionTarget"]
