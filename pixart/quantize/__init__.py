"""Quantised weights, layer by layer, in ComfyUI's formats: writing, reading, and errors against the originals.

A format is a file of its own and an entry in `formats.FORMATS`; it packs a matrix and unpacks it, and knows no network.
"""
from .format import Format, Packed
from .formats import FORMATS, TARGETS, ConversionTarget

__all__ = ["FORMATS", "TARGETS", "Format", "Packed", "ConversionTarget"]
