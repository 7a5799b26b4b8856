"""What may import what, and how cheaply."""
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOST = {"comfy", "comfy_extras", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server", "execution",
        "latent_preview", "node_helpers"}
SLOW = {"transformers", "bitsandbytes", "diffusers", "accelerate", "ftfy", "bs4", "torchvision", "kornia",
        "controlnet_aux", "peft"}
LIBRARY = sorted((ROOT / "pixart").rglob("*.py"))
INTERFACES = {"logger", "__all__", "run", "add_options", "add_parser"}     # what files of a kind have in common
NODE_FILES = sorted((ROOT / "nodes").glob("*.py"))
ADAPTERS = sorted((ROOT / "nodes" / "host").rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """(top-level module, relative, inside a function) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [item for item in ast.walk(tree) if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inner = {id(item) for function in functions for item in ast.walk(function)}
    for item in ast.walk(tree):
        if isinstance(item, ast.Import):
            yield from ((alias.name.split(".")[0], False, id(item) in inner) for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            yield (item.module or "").split(".")[0], item.level > 0, id(item) in inner


def names_of(path: Path) -> Iterator[str]:
    """What a file defines at its top level, other than private names."""
    for item in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found = [item.name]
        else:
            targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
            found = [each.id for target in targets if target is not None
                     for each in ast.walk(target) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]
        yield from (name for name in found if not name.startswith("_"))


def test_a_top_level_name_is_defined_once():
    """One noun, one meaning: the same idea lies in one file, and another idea has another name."""
    files: dict[str, list[str]] = {}
    for path in (*LIBRARY, *NODE_FILES, *ADAPTERS):
        for name in sorted(set(names_of(path)) - INTERFACES):
            files.setdefault(name, []).append(name_of(path))
    twins = [f"{name} is defined in {' and in '.join(paths)}" for name, paths in files.items() if len(paths) > 1]
    assert not twins, "; ".join(twins)


def test_files_and_functions_are_short():
    files, functions = [], []
    for path in (*LIBRARY, *NODE_FILES, *ADAPTERS):
        text = path.read_text(encoding="utf-8")
        files += [f"{name_of(path)}: {lines} lines" for lines in [len(text.splitlines())] if lines > 350]
        functions += [f"{name_of(path)}: {item.name}" for item in ast.walk(ast.parse(text))
                      if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))
                      and (item.end_lineno or 0) - item.lineno >= 60]
    assert not files + functions, "; ".join(files + functions)


def test_the_architecture_page_names_what_is_there():
    """All files and folders that it names, and every package of the library among them."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+)`", page))
    gone = [name for name in named if not (ROOT / name).exists() and not any((ROOT / "pixart").rglob(name.rstrip("/")))]
    packages = {f"{path.parent.name}/" for path in (ROOT / "pixart").glob("*/__init__.py")}
    assert not gone and packages <= named, (gone, packages - named)


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_the_library_knows_no_host(path):
    assert not [module for module, relative, _ in imports(path) if not relative and module in HOST]


@pytest.mark.parametrize("path", NODE_FILES, ids=name_of)
def test_only_adapters_touch_the_host(path):
    assert not [module for module, relative, _ in imports(path) if not relative and module in HOST]


@pytest.mark.parametrize("path", ADAPTERS, ids=name_of)
def test_adapters_import_the_host_inside_functions(path):
    assert not [module for module, relative, inside in imports(path)
                if not relative and module in HOST and not inside]


@pytest.mark.parametrize("path", LIBRARY + NODE_FILES + ADAPTERS, ids=name_of)
def test_inside_the_package_imports_are_relative(path):
    assert not [module for module, relative, _ in imports(path) if not relative and module == "pixart"]


@pytest.mark.parametrize("path", NODE_FILES + ADAPTERS, ids=name_of)
def test_slow_packages_are_imported_inside_functions(path):
    assert not [module for module, _, inside in imports(path) if module in SLOW and not inside]


def test_images_are_generated_through_the_pipeline():
    """Commands, previews, evaluation and benchmarks are its callers; `sample` stays for people's own loops."""
    free = {"pixart/__init__.py", "pixart/generation/pipeline.py"}
    found = [name_of(path) for path in [*LIBRARY, *(ROOT / "benchmarks").rglob("*.py"), *NODE_FILES, *ADAPTERS]
             for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(item, ast.ImportFrom)
             and (item.module or "").rpartition(".")[2] in ("sample", "pipeline")
             and any(a.name == "sample" for a in item.names)]
    assert set(found) <= free


def test_importing_the_pack_loads_nothing_slow():
    """Measured in a process of its own, with torch there already as in the host."""
    program = (
        "import sys, time, importlib.util as u, torch, safetensors.torch\n"
        f"s = u.spec_from_file_location('p', {str(ROOT / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(ROOT)!r}])\n"
        "m = sys.modules['p'] = u.module_from_spec(s)\n"
        "before = set(sys.modules); t = time.process_time(); s.loader.exec_module(m); t = time.process_time() - t\n"
        f"print(t, *({{n.split('.')[0] for n in set(sys.modules) - before}} & {SLOW!r}))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    seconds, *slow = done.stdout.split()
    assert slow == [] and float(seconds) < 0.2
