"""quickstart.py without a network or a host: what it reads, decides and says."""
import argparse
import json
import re
import sys
from pathlib import Path

import pytest

import quickstart
from quickstart import Host, Problem

ROOT = Path(__file__).resolve().parents[1]


def arguments(*argv: str) -> argparse.Namespace:
    return quickstart.arguments(list(argv))


def fake_host(folder: Path) -> Path:
    """The two files that make a folder a ComfyUI for the search."""
    folder.mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text('__version__ = "9.8.7"\n')
    return folder


def test_host_requirements_and_registry_dependencies_are_the_same_lower_bounds():
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = (\[.*\])$", text, re.MULTILINE)[1]
    assert json.loads(listed) == quickstart.requirements()
    assert all(re.fullmatch(r"[a-z]+>=[\d.]+", spec) for spec in quickstart.requirements())


def test_every_requirement_gives_its_reason():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all("# " in line for line in lines if line.strip())


@pytest.mark.parametrize("name", ["standalone", "train", "test"])
def test_extras_are_read_as_lists_of_bounded_packages(name):
    assert all(re.fullmatch(r"[a-z0-9-]+>=[\d.]+", spec) for spec in quickstart.extra(name))


def test_unknown_extra_is_named():
    with pytest.raises(Problem, match="nothing-like-it"):
        quickstart.extra("nothing-like-it")


@pytest.mark.parametrize(("has", "bound", "answer"), [
    ("2.4.0", "2.4", False), ("2.13.0+cpu", "2.4", False), ("2.3.1", "2.4", True), ("5.23.0", "4.50", False),
    ("4.49.0", "4.50", True), ("0.4.10", "0.4.2", False), ("2.5.0a0+git1", "2.4", False)])
def test_versions_compare_as_numbers(has, bound, answer):
    assert quickstart.older(has, bound) is answer


@pytest.mark.parametrize("text", ["128", "0x0", "128x", "-128x128", "100x128", "128x8", "axb"])
def test_bad_size_is_refused_with_an_example(text, capsys):
    with pytest.raises(SystemExit):
        arguments(f"--size={text}")
    assert "128x128" in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["0", "9", "-1", "four", ""])
def test_bad_steps_are_refused_with_their_range(steps, capsys):
    with pytest.raises(SystemExit):
        arguments(f"--steps={steps}")
    assert "from 1 to 8" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["image.jpg", "folder/", "png"])
def test_output_that_is_no_png_is_refused(name, capsys):
    with pytest.raises(SystemExit):
        arguments(f"--output={name}")
    assert "ends in .png" in capsys.readouterr().err


def test_choices_reach_the_nodes_of_the_workflow():
    graph = json.loads(quickstart.WORKFLOW.read_text(encoding="utf-8"))
    filled = quickstart.fill(graph, arguments("a red ring", "--steps", "2", "--seed", "7", "--size", "160x96"))
    by_class = {node["class_type"]: node["inputs"] for node in filled.values()}
    assert by_class["PixArtTextEncode"]["text"] == "a red ring"
    assert (by_class["PixArtLCMSampler"]["steps"], by_class["PixArtLCMSampler"]["seed"]) == (2, 7)
    assert (by_class["EmptyLatentImage"]["width"], by_class["EmptyLatentImage"]["height"]) == (160, 96)
    size = next(key for key, node in filled.items() if node["class_type"] == "EmptyLatentImage")
    links = [value for inputs in by_class.values() for value in inputs.values() if isinstance(value, list)]
    assert [size, 0] in links
    assert not [link for link in links if link[0] == size and link[1] > 0], "the stock node has one output only"


def test_chosen_folder_without_comfyui_is_refused(tmp_path):
    with pytest.raises(Problem, match="main.py"):
        quickstart.host_folders(str(tmp_path))


def test_host_is_found_by_environment_before_the_usual_place(tmp_path, monkeypatch):
    named, usual = fake_host(tmp_path / "named"), fake_host(tmp_path / "comfy" / "ComfyUI")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert quickstart.host_folders(None) == [named, usual]


def test_host_python_without_our_packages_is_told_the_exact_command(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "requirements", lambda: ["no-such-package>=1.0"])
    host = quickstart.inspect_host(fake_host(tmp_path / "ComfyUI"))
    assert host.version == "9.8.7" and host.missing[0] == "no-such-package"
    assert f'"{sys.executable}" -m pip install -r "{ROOT / "requirements.txt"}"' in host.remedy


def test_host_that_ends_at_start_shows_its_log(tmp_path):
    folder = fake_host(tmp_path / "ComfyUI")
    (folder / "main.py").write_text("raise SystemExit('the reason it cannot start')")
    host = Host(folder, sys.executable, "9.8.7", gpu=False, missing=())
    (tmp_path / "base").mkdir()
    with pytest.raises(Problem, match="the reason it cannot start"), quickstart.running(host, tmp_path / "base"):
        pass


def test_host_that_ends_at_work_shows_its_log(tmp_path):
    """With too little memory the system ends it; that was a traceback."""
    folder = fake_host(tmp_path / "ComfyUI")
    (folder / "main.py").write_text("""
import http.server, os, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/history"):
            print("the last words", flush=True)
            os._exit(9)
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"system": {}, "x": 1}')
    def do_POST(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"prompt_id": "1"}')
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answers).serve_forever()
""")
    host = Host(folder, sys.executable, "9.8.7", gpu=False, missing=())
    (tmp_path / "base").mkdir()
    with pytest.raises(Problem, match=r"(?s)ended with exit code 9.*the last words"), \
            quickstart.running(host, tmp_path / "base") as address:
        quickstart.render(address, {})


def test_folder_of_the_image_that_cannot_be_made_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert quickstart.main(["--output", str(tmp_path / "file" / "x.png")]) == 1
    assert "--output: the folder cannot be made" in capsys.readouterr().err


def test_refused_prompt_names_node_and_error():
    answer = {"error": {}, "node_errors": {"1": {"class_type": "VAELoader", "errors": [
        {"message": "Value not in list", "details": "vae_name: 'x' not in []"}]}}}
    assert quickstart.refusal(answer) == "VAELoader: Value not in list: vae_name: 'x' not in []"


def image(folder: Path) -> Path:
    from PIL import Image
    path = folder / "drawing.png"
    Image.effect_noise((64, 48), 50).save(path)
    return path


def test_control_goes_into_its_workflow(tmp_path):
    options = arguments("a red circle", "--control", str(image(tmp_path)), "--edges", "invert", "--strength", "0.5",
                        "--size", "144x112")
    graph = quickstart.fill(json.loads(quickstart.CONTROL_WORKFLOW.read_text(encoding="utf-8")), options)
    (edges,) = [node["inputs"] for node in graph.values() if node["class_type"] == "PixArtEdges"]
    (apply,) = [node["inputs"] for node in graph.values() if node["class_type"] == "PixArtControlNetApply"]
    joined = graph[edges["image"][0]]
    assert joined["class_type"] == "JoinImageWithAlpha", "what is transparent stays so"
    loaded, mask = joined["inputs"]["image"], joined["inputs"]["alpha"]
    assert graph[loaded[0]] == {"class_type": "LoadImage", "inputs": {"image": "drawing.png"}}
    assert (loaded[1], mask) == (0, [loaded[0], 1])
    assert (edges["method"], edges["width"], edges["height"], apply["strength"]) == ("invert", 144, 112, 0.5)
    assert graph[apply["image"][0]]["class_type"] == "PixArtEdges"


def test_missing_image_and_impossible_strength_are_refused(tmp_path, capsys):
    for given, said in ((("none.png",), "there is no file"), ((str(image(tmp_path)), "--strength", "-1"), "0 to 10")):
        with pytest.raises(SystemExit):
            arguments("x", "--control", *given)
        assert said in capsys.readouterr().err


def test_what_is_no_whole_image_is_refused_before_anything_starts(tmp_path, monkeypatch):
    whole = image(tmp_path)
    quickstart.check_image(sys.executable, whole)
    monkeypatch.setattr(quickstart, "running", lambda *_: pytest.fail("the host was started"))
    host = Host(tmp_path, sys.executable, "9.8.7", gpu=False, missing=())
    for name, content in (("words.png", b"not an image"), ("half.png", whole.read_bytes()[:1000])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Problem, match=name):
            quickstart.image_with_host(host, arguments("x", "--control", str(tmp_path / name)))
