"""What users get from the registry: the archive and its metadata."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
ROOT = Path(__file__).resolve().parents[1]
ACCELERATORS = {"GPU :: NVIDIA CUDA", "GPU :: AMD ROCm", "GPU :: Intel Arc", "NPU :: Huawei Ascend",
                "GPU :: Apple Metal"}         # those that the registry knows
MOST_BYTES = 45_000_000


@pytest.fixture(scope="module")
def archive() -> list[str]:
    """Files that comfy-cli packs: what git tracks, without the patterns of .comfyignore."""
    pathspec = pytest.importorskip("pathspec", reason="pathspec, which reads .comfyignore, is not installed")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("this is no git checkout")
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    left_out = pathspec.PathSpec.from_lines("gitwildmatch", lines)
    return [name for name in tracked.stdout.split("\0") if name and not left_out.match_file(name)]


def test_the_archive_has_what_runs_and_nothing_else(archive):
    top = {name.split("/")[0] for name in archive}
    assert {"__init__.py", "nodes", "pixart", "web", "workflows", "locales", "subgraphs", "requirements.txt",
            "pyproject.toml", "LICENSE", "README.md"} <= top
    assert not top & {"tests", "benchmarks", "quickstart.py", ".ci", ".gitignore"}
    assert sum((ROOT / name).stat().st_size for name in archive) < MOST_BYTES


def test_every_module_that_is_imported_is_in_the_archive(archive):
    modules = {name for name in archive if name.endswith(".py")}
    assert {path.relative_to(ROOT).as_posix() for folder in ("nodes", "pixart")
            for path in (ROOT / folder).rglob("*.py")} <= modules


def test_the_archive_alone_is_a_pack_that_writes_nothing(archive, tmp_path):
    """Unpacked into a folder of its own, as ComfyUI-Manager does it; removing the folder removes everything."""
    folder = tmp_path / "custom_nodes" / "pixart-delta"
    for name in archive:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(ROOT / name)
    before = sorted(tmp_path.rglob("*"))
    code = ("import importlib.util as util, sys; "
            f"spec = util.spec_from_file_location('p', {str(folder / '__init__.py')!r}, "
            f"submodule_search_locations=[{str(folder)!r}]); "
            "module = sys.modules['p'] = util.module_from_spec(spec); spec.loader.exec_module(module); "
            "module.NODE_CLASS_MAPPINGS['PixArtLoader'].INPUT_TYPES(); print(len(module.NODE_CLASS_MAPPINGS))")
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 15, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_the_metadata_is_what_the_registry_takes():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = settings["project"], settings["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9_.-]{0,99}", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert (ROOT / project["license"]["file"]).is_file() and comfy["PublisherId"] and comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    named = {entry.removeprefix("Environment :: ") for entry in project["classifiers"]
             if entry.startswith("Environment :: ")}
    assert named and named <= ACCELERATORS
    assert "Operating System :: OS Independent" in project["classifiers"]


def test_the_security_checks_of_the_registry_find_nothing():
    """exec, eval, two statements in a line: what `comfy node validate` looks for."""
    command = [sys.executable, "-m", "ruff", "check", ".", "-q", "--no-cache", "--select", "S102,S307,E702"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "" and done.returncode == 0, done.stdout + done.stderr
