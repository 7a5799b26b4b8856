"""Every name of the host that this pack uses is there: what a newer host took away is listed, each with its place."""
import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

NODES = Path(__file__).resolve().parents[3] / "nodes"
HOST = ("comfy", "comfy_extras", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server", "execution",
        "latent_preview", "node_helpers", "app", "protocol")


def guarded(tree: ast.Module) -> set[int]:
    """Lines inside of `try`, where a missing name is expected."""
    return {inner.lineno for item in ast.walk(tree) if isinstance(item, ast.Try) for part in item.body
            for inner in ast.walk(part) if hasattr(inner, "lineno")}


def used() -> Iterator[tuple[str, str, str]]:
    """(module, name or "", file:line) of each import of the host; of `import a.b`, also the attributes a.b.c."""
    for path in sorted(NODES.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        expected, aliases = guarded(tree), {}
        for item in ast.walk(tree):
            place = f"{path.relative_to(NODES.parent)}:{getattr(item, 'lineno', 0)}"
            if isinstance(item, ast.ImportFrom) and item.level == 0 and item.lineno not in expected:
                names = item.names if item.module.split(".")[0] in HOST else []
                yield from ((item.module, alias.name, place) for alias in names)
                aliases.update({alias.asname or alias.name: f"{item.module}.{alias.name}" for alias in names})
            elif isinstance(item, ast.Import) and item.lineno not in expected:
                yield from ((alias.name, "", place) for alias in item.names if alias.name.split(".")[0] in HOST)
        for item in ast.walk(tree):
            if (isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name) and item.value.id in aliases
                    and item.lineno not in expected and isinstance(item.ctx, ast.Load)):
                yield aliases[item.value.id], item.attr, f"{path.relative_to(NODES.parent)}:{item.lineno}"


def is_there(module: str, name: str) -> bool:
    """As an attribute of the module (or of a class in it), or as a module below it."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        outer, _, inner = module.rpartition(".")
        try:
            found = getattr(importlib.import_module(outer), inner)
        except (ImportError, AttributeError, ValueError):
            return False
        if not isinstance(found, type):
            return True         # a value: what it has is not known before it runs
    if not name or hasattr(found, name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


def test_every_name_of_the_host_that_is_used_is_there():
    found = list(used())
    assert len(found) > 50
    assert not is_there("comfy.sd", "no_such_name") and not is_there("comfy.no_such_module", "")
    gone = sorted({f"{place}: {module}.{name}" for module, name, place in found if not is_there(module, name)})
    assert gone == [], "\n".join(gone)
