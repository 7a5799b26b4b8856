"""The PixArt family as a plain Python library. Every name is loaded on first use.

`Pipeline` generates images; `load`, `T5Encoder`, the samplers and `decode` are its parts. See docs/python.md.
"""
from typing import TYPE_CHECKING

from .config import LATENT_SCALE, VARIANTS, KVCompression, PixArtConfig
from .lazy import lazy_attribute

if TYPE_CHECKING:
    from .checkpoint import Checkpoint as Checkpoint
    from .checkpoint import CheckpointError as CheckpointError
    from .checkpoint import load as load
    from .checkpoint import load_control as load_control
    from .checkpoint import read_checkpoint as read_checkpoint
    from .checkpoint import save_checkpoint as save_checkpoint
    from .checkpoint.merged import load_lora as load_lora
    from .control.control_image import ControlImage as ControlImage
    from .control.edges import edge_maps as edge_maps
    from .files.images import read_image as read_image
    from .files.images import save_image as save_image
    from .generation.pipeline import Pipeline as Pipeline
    from .generation.request import Request as Request
    from .generation.result import Images as Images
    from .generation.sample import sample as sample
    from .model.controlnet import PixArtControlNet as PixArtControlNet
    from .model.transformer import PixArtTransformer as PixArtTransformer
    from .sampling.dmd import dmd as dmd
    from .sampling.dpm_solver import dpm_solver_pp as dpm_solver_pp
    from .sampling.guidance import guided as guided
    from .sampling.lcm import lcm as lcm
    from .sampling.lcm import lcm_timesteps as lcm_timesteps
    from .sampling.noise import ImageNoise as ImageNoise
    from .sampling.samplers import SAMPLERS as SAMPLERS
    from .text.encoded import Encoded as Encoded
    from .text.encoded import load_embeddings as load_embeddings
    from .text.encoded import save_embeddings as save_embeddings
    from .text.t5 import T5Encoder as T5Encoder
    from .vae import decode as decode
    from .vae import load_vae as load_vae

__version__ = "0.1.0"

# Name -> module; the imports above tell the same to type checkers, and a test compares the two.
_LAZY = {
    "Checkpoint": "checkpoint", "CheckpointError": "checkpoint", "load": "checkpoint", "load_control": "checkpoint",
    "read_checkpoint": "checkpoint", "save_checkpoint": "checkpoint", "load_lora": "checkpoint.merged",
    "edge_maps": "control.edges", "ControlImage": "control.control_image", "Request": "generation.request",
    "sample": "generation.sample", "PixArtControlNet": "model.controlnet", "PixArtTransformer": "model.transformer",
    "read_image": "files.images", "save_image": "files.images", "Images": "generation.result",
    "Pipeline": "generation.pipeline", "dmd": "sampling.dmd", "dpm_solver_pp": "sampling.dpm_solver",
    "guided": "sampling.guidance", "lcm": "sampling.lcm", "lcm_timesteps": "sampling.lcm",
    "ImageNoise": "sampling.noise", "SAMPLERS": "sampling.samplers", "Encoded": "text.encoded",
    "load_embeddings": "text.encoded", "save_embeddings": "text.encoded", "T5Encoder": "text.t5", "decode": "vae",
    "load_vae": "vae",
}

__all__ = ["LATENT_SCALE", "VARIANTS", "KVCompression", "PixArtConfig", "__version__",
           "Checkpoint", "CheckpointError", "ControlImage", "Encoded", "Images", "ImageNoise", "Pipeline",
           "PixArtControlNet", "PixArtTransformer", "Request", "SAMPLERS", "T5Encoder", "decode", "dmd",
           "dpm_solver_pp", "edge_maps", "guided", "lcm", "lcm_timesteps", "load", "load_control", "load_embeddings",
           "load_lora", "load_vae", "read_checkpoint", "read_image", "sample", "save_checkpoint", "save_embeddings",
           "save_image"]


def __getattr__(name: str) -> object:
    globals()[name] = value = lazy_attribute(__name__, _LAZY, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
