"""PixArt-mini: procedural pictures, their captions, and the small networks that are trained on them."""
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
