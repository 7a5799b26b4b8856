"""Weights of few bits, layer by layer, in the formats of ComfyUI: made, read, and measured against the originals.

A format is a file of its own and an entry in `formats.FORMATS`; it packs a matrix and unpacks it, and knows no network.
"""
from .format import Format, Packed
from .formats import FORMATS, TARGETS, ConversionTarget

__all__ = ["FORMATS", "TARGETS", "Format", "Packed", "ConversionTarget"]
