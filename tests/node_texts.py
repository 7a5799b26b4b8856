"""What nodes say to people, as ComfyUI's page reads it: locales and help pages.

    python tests/node_texts.py      writes the English texts from the nodes themselves

English needs no hand: `locales/en/nodeDefs.json` is what the nodes say, and `web/docs/<id>.md`, which the page takes
for languages without a page of their own, is `web/docs/<id>/en.md` again. Chinese is written by hand.
"""
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
LOCALES, DOCS = ROOT / "locales", ROOT / "web" / "docs"
LANGUAGES = ("en", "zh")
# What the host's module of model folders says when there is no file in any of them.
NO_FILES = SimpleNamespace(
    get_filename_list=lambda category: [], get_folder_paths=lambda category: [], models_dir="models",
    folder_names_and_paths={}, get_input_directory=lambda: "input", add_model_folder_path=lambda category, path: None)


def inputs(node: type) -> dict[str, tuple]:
    groups = node.INPUT_TYPES()
    return {**groups["required"], **groups.get("optional", {})}


def english(node: type, title: str) -> dict:
    """Of one node, in the form of nodeDefs.json."""
    return {
        "display_name": title,
        "description": node.DESCRIPTION,
        "inputs": {name: {"name": name, "tooltip": options[0]["tooltip"]}
                   for name, (_, *options) in inputs(node).items()},
        "outputs": {str(slot): {"name": name, "tooltip": tooltip}
                    for slot, (name, tooltip) in enumerate(zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS))},
    }


def all_english(extension: ModuleType) -> dict:
    titles = extension.NODE_DISPLAY_NAME_MAPPINGS
    return {name: english(node, titles[name]) for name, node in sorted(extension.NODE_CLASS_MAPPINGS.items())}


def read(language: str, name: str) -> dict:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def as_file(data: dict) -> str:
    return json.dumps(data, ensure_ascii=False, indent=2) + "\n"


def without_host() -> ModuleType:
    """This checkout imported as the host imports it; the lists of model files are empty."""
    sys.modules["folder_paths"] = NO_FILES              # type: ignore[assignment]
    spec = importlib.util.spec_from_file_location("pixart_extension", ROOT / "__init__.py",
                                                  submodule_search_locations=[str(ROOT)])
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    (LOCALES / "en" / "nodeDefs.json").write_text(as_file(all_english(without_host())), encoding="utf-8")
    for page in DOCS.glob("*/en.md"):
        page.parent.with_suffix(".md").write_text(page.read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
