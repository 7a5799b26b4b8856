"""The PixArt family as a plain library: what a user of `import pixart` needs, loaded when first touched."""
import importlib

from .config import LATENT_SCALE, VARIANTS, KVCompression, PixArtConfig

_LAZY = {"load": "checkpoint", "read_checkpoint": "checkpoint", "save_checkpoint": "checkpoint",
         "Checkpoint": "checkpoint", "CheckpointError": "checkpoint", "PixArtTransformer": "model.transformer"}

__all__ = ["LATENT_SCALE", "VARIANTS", "KVCompression", "PixArtConfig", *_LAZY]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
