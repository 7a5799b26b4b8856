"""Control images: edge maps as the ControlNet was trained on, from an image or a drawing."""
from .edges import EDGE_METHODS, canny, drawing, edge_maps, soft_edges
from .hed import HED, hed_edges, load_hed
from .images import fit, grey, opaque

__all__ = ["HED", "EDGE_METHODS", "canny", "drawing", "edge_maps", "fit", "grey", "hed_edges", "load_hed", "opaque",
           "soft_edges"]
