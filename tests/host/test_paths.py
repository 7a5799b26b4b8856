"""Every input that becomes a path, and 42 ways out of the host's folders: nothing outside is read or written."""
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import harness
from host.test_server import node, require_packages, run
from host.test_training import graph as training

LEAVES = ("outside/model.safetensors", "secret.safetensors")
WAYS = ("../{}", "../../{}", "../../../{}", "./../{}", "..\\{}", "..\\..\\{}", "a/../../{}", "a\\..\\..\\{}",
        "....//....//{}", "..//..//{}", "%2e%2e/{}", "..%2f..%2f{}", "/{}", "//{}", "{absolute}/{}", "file://{absolute}/{}",
        "~/{}", "$HOME/{}", "C:\\{}", "\\\\?\\C:\\{}", "{}\x00.safetensors")
ESCAPES = [way.replace("{}", leaf) for way in WAYS for leaf in LEAVES]

MODEL = {"model": node("PixArtLoader", file="alpha-1024.safetensors", variant="auto", weight_dtype="fp32")}


def checked(**inputs: list) -> dict:
    return node("PixArtCheck", width=128, height=128, batch_size=1, **inputs)


def graphs(name: str) -> dict[str, dict]:
    """For every input that names a file, a prompt that uses it with this name."""
    blank = {"empty": node("EmptyImage", width=64, height=64, batch_size=1, color=0)}
    return {
        "PixArtLoader": {"at": node("PixArtLoader", file=name, variant="auto", weight_dtype="fp32"),
                         "end": checked(model=["at", 0])},
        "PixArtT5Loader": {"at": node("PixArtT5Loader", file=name, bits="16", device="auto"),
                           "end": checked(clip=["at", 0])},
        "PixArtControlNetLoader": {"at": node("PixArtControlNetLoader", file=name, weight_dtype="auto"),
                                   "end": checked(control_net=["at", 0])},
        "PixArtDeltaLoraLoader": {**MODEL, "at": node("PixArtDeltaLoraLoader", model=["model", 0], file=name,
                                                      strength=1.0), "end": checked(model=["at", 0])},
        "PixArtFeedback": {**MODEL, "at": node("PixArtFeedback", model=["model", 0], file=name, start=0.0, end=1.0),
                           "end": checked(model=["at", 0])},
        "PixArtCache": {**MODEL, "at": node("PixArtCache", model=["model", 0], method="ecad", budget=2.0, start=0.0,
                                            end=1.0, schedule=name), "end": checked(model=["at", 0])},
        "PixArtHED": {**blank, "at": node("PixArtHED", image=["empty", 0], file=name, width=64, height=64),
                      "end": node("PreviewImage", images=["at", 0])},
        "PixArtLoadPrompt": {"at": node("PixArtLoadPrompt", file=name),
                             "end": node("SaveImage", images=["empty", 0], filename_prefix=["at", 1]), **blank},
        "PixArtPromptList": {**blank, "at": node("PixArtPromptList", file=name, start=1, count=1, seed=0, width=64,
                                                   height=64),
                             "end": node("SaveImage", images=["empty", 0], filename_prefix=["at", 0])},
    }


@pytest.fixture(scope="module")
def outside(server) -> Iterator[Path]:
    """What must not be reached: right files beside the host's folder."""
    folder = Path(server.folder)
    model = folder / "models" / "diffusion_models" / "alpha-1024.safetensors"
    placed = [folder.parent / "outside" / "model.safetensors", folder.parent / "secret.safetensors"]
    for path in placed:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(model, path)
    yield folder.parent
    for path in placed:
        path.unlink()


def around(server: harness.Server) -> set[Path]:
    """All files near the host's folder, but those in it."""
    home = Path(server.folder)
    return {path for path in home.parent.rglob("*") if home not in path.parents}


@pytest.mark.parametrize("kind", graphs(""))
def test_no_name_of_a_file_leads_out_of_the_folders(server, outside, kind):
    assert len(ESCAPES) >= 40
    before = around(server)
    for escape in ESCAPES:
        name = escape.replace("{absolute}", str(outside))
        status, answer = server.post("/prompt", {"prompt": graphs(name)[kind], "client_id": "paths"})
        assert status == 400, (name, answer)
        said = str(answer["node_errors"]["at"]["errors"])
        assert str(outside) not in said.replace(name, ""), (name, said)
    assert around(server) == before


def test_no_name_of_a_saved_prompt_leads_out_of_the_folders(server, outside):
    before = around(server)
    graph = {"clip": node("PixArtT5Loader", file="tiny-t5", bits="16", device="auto"),
             "prompt": node("CLIPTextEncode", clip=["clip", 0], text="a cat")}
    for escape in ESCAPES:
        name = escape.replace("{absolute}", str(outside))
        kept = {**graph, "at": node("PixArtSavePrompt", conditioning=["prompt", 0], name=name, text="")}
        (outcome,) = run(server, kept)
        assert "cannot be the name of a file" in outcome.error, (name, outcome.messages[-1])
    assert around(server) == before


def test_no_name_of_a_training_leads_out_of_the_folders(server, host, outside):
    require_packages(host, training("any", 1))
    before, names = around(server), [escape.replace("{absolute}", str(outside)) for escape in ESCAPES]
    for outcome, name in zip(run(server, *[training(name, 1) for name in names]), names):
        assert "cannot be the name of a file" in outcome.error, (name, outcome.messages[-1])
    assert around(server) == before
