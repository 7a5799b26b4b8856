"""PT-DiT, the proxy-token diffusion transformer (Qihoo-T2X, arXiv 2409.04005): a separate architecture."""
from .config import PTDiTConfig
from .load import is_pt_dit, load_pt_dit, save_pt_dit
from .transformer import PTDiT

__all__ = ["PTDiT", "PTDiTConfig", "is_pt_dit", "load_pt_dit", "save_pt_dit"]
