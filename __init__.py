"""ComfyUI entry point: the nodes and the folder of their help pages."""
from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from .nodes.host.folders import register_bundled
from .nodes.host.former import register_former
from .nodes.host.guest import refused_as_second_copy

if refused_as_second_copy():
    NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = {}, {}
else:
    register_bundled()
    register_former()

WEB_DIRECTORY = "./web"
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
