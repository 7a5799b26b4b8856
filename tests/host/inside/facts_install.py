"""Where the pack lies: folders of any name, and a second copy beside the first."""
import importlib.util
import logging
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from support import pack

import nodes

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("ComfyUI-PixArt-Delta", "pixart.delta.v1.0", "a folder with spaces", "Ordner-äöü", "pixart_delta (copy)")


def imported(folder: Path) -> ModuleType:
    """As the host does it: the whole path is the name, dots become _x_."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def linked(name: str) -> Path:
    folder = Path(tempfile.mkdtemp()) / name
    folder.symlink_to(ROOT, target_is_directory=True)
    return folder


def test_a_folder_of_any_name_works():
    for name in NAMES:
        module = imported(linked(name))
        assert set(module.NODE_CLASS_MAPPINGS) == set(pack().NODE_CLASS_MAPPINGS), name
        assert module.NODE_CLASS_MAPPINGS["PixArtEmptyLatent"]().make("128", "1:1", 1)[1:] == (128, 128)


def test_a_second_copy_leaves_the_nodes_to_the_first_and_says_so():
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    before = dict(nodes.NODE_CLASS_MAPPINGS)
    first, second = linked("first.copy"), linked("second copy")
    logging.getLogger().addHandler(handler)
    try:
        nodes.NODE_CLASS_MAPPINGS.update(imported(first).NODE_CLASS_MAPPINGS)
        module = imported(second)
        (warning,) = [line for line in said if "installed twice" in line]
        assert module.NODE_CLASS_MAPPINGS == {} == module.NODE_DISPLAY_NAME_MAPPINGS
        assert f"nodes of {first} are used" in warning and warning.endswith(str(second))
        assert imported(first).NODE_CLASS_MAPPINGS        # imported again, as after an update, it keeps them
    finally:
        logging.getLogger().removeHandler(handler)
        nodes.NODE_CLASS_MAPPINGS.clear()
        nodes.NODE_CLASS_MAPPINGS.update(before)
