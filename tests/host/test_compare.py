"""PixArt Compare against a real server: what ordinary nodes generate, kept and gone on with, refused in words."""
import asyncio
import io
import json
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from host import harness
from host.test_paths import ESCAPES
from PIL import Image

WORKFLOWS = harness.ROOT / "workflows" / "api"
MINI = json.loads((WORKFLOWS / "mini-compare.json").read_text(encoding="utf-8"))
(NODE,) = [key for key, entry in MINI.items() if entry["class_type"] == "PixArtCompare"]
(SHEET,) = [key for key, entry in MINI.items() if entry["class_type"] == "SaveImage"]


def graph(**changed: object) -> dict:
    made = json.loads(json.dumps(MINI))
    made[NODE]["inputs"].update(changed)
    return made


def run(server: harness.Server, prompt: dict, on_message: Callable | None = None) -> harness.Outcome:
    async def talk() -> harness.Outcome:
        async with harness.Session(server) as session:
            return await session.follow(session.queue(prompt), on_message)
    return asyncio.run(talk())


def image(server: harness.Server, outcome: harness.Outcome, name: str = SHEET) -> np.ndarray:
    assert outcome.end == "execution_success", outcome.messages[-1]
    (entry,) = outcome.images(name)
    data = server.get(f"/view?filename={entry['filename']}&subfolder={entry['subfolder']}&type={entry['type']}")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def kept(base, name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (base / "output" / "pixart-compare" / name).glob("*.png")}


def test_a_cell_is_what_ordinary_nodes_generate(server, base):
    words = "a large blue star in the centre on a white background"
    made = graph(name="one", prompt=words, columns="steps", column_values="2", rows="none", seed=4)
    sheet = image(server, run(server, made))
    ((_, cell),) = kept(base, "one").items()
    plain = json.loads((WORKFLOWS / "mini-lcm-4-steps.json").read_text(encoding="utf-8"))
    (saver,) = [key for key, entry in plain.items() if entry["class_type"] == "SaveImage"]
    for entry in plain.values():
        if entry["class_type"] == "PixArtLCMSampler":
            entry["inputs"].update(steps=2, seed=4)
        if entry["class_type"] == "PixArtTextEncode":
            entry["inputs"].update(text=words)
    drawn = image(server, run(server, plain), saver)
    cell = np.asarray(Image.open(io.BytesIO(cell)))
    difference = cell.astype(int) - drawn               # we round to 8 bits, Save Image rounds down
    assert 0 <= difference.min() <= difference.max() <= 1
    height, width, _ = drawn.shape
    assert np.array_equal(sheet[-height - 6:-6, -width - 6:-6], cell)


def test_an_interrupted_comparison_goes_on_where_it_was(server, base):
    wanted = {"columns": "steps", "column_values": "1..4", "rows": "seed", "row_values": "7, 8"}
    whole = image(server, run(server, graph(name="whole", **wanted)))
    steps = 0

    def stop(kind: str, data: dict) -> None:
        nonlocal steps
        steps += kind == "progress" and data["node"] == NODE
        if steps == 7:                              # within the fourth image: 1 + 2 + 3 steps before
            steps += 1
            server.post("/interrupt", {})
    outcome = run(server, graph(name="stopped", **wanted), stop)
    assert outcome.end == "execution_interrupted"
    before = kept(base, "stopped")
    assert 0 < len(before) < 8
    again = run(server, graph(name="stopped", **wanted))
    assert f"{8 - len(before)} generated, {len(before)} kept from before" in harness.texts(again, NODE)[-1]
    assert np.array_equal(image(server, again), whole)
    after = kept(base, "stopped")
    assert len(after) == 8 and before.items() <= after.items() and after == kept(base, "whole")
    more = run(server, graph(name="stopped", **{**wanted, "row_values": "7..9"}))
    assert "4 generated, 8 kept" in harness.texts(more, NODE)[-1]


def test_what_was_deleted_is_made_again(server, base):
    """The host took the result of the last run for it, and said success."""
    made = graph(name="twice", columns="steps", column_values="1", rows="none", seed=5)
    saving = json.loads((WORKFLOWS / "mini-save-prompt.json").read_text(encoding="utf-8"))
    (saved,) = [entry["inputs"] for entry in saving.values() if entry["class_type"] == "PixArtSavePrompt"]
    saved["name"] = "deleted"
    file = base / "models" / "pixart_prompts" / "deleted.safetensors"
    for _ in range(2):
        image(server, run(server, made))
        assert run(server, saving).end == "execution_success"
        assert len(kept(base, "twice")) == 1 and file.is_file()
        shutil.rmtree(base / "output" / "pixart-compare" / "twice")
        file.unlink()


def test_with_other_networks_images_are_generated_anew(server, base):
    wanted = {"name": "other", "columns": "seed", "column_values": "1", "rows": "none"}
    assert "1 generated, 0 kept" in harness.texts(run(server, graph(**wanted)), NODE)[-1]
    changed = graph(**wanted)
    for entry in changed.values():
        if entry["class_type"] == "PixArtLoader":
            entry["inputs"]["weight_dtype"] = "bf16"
    assert "1 generated, 0 kept" in harness.texts(run(server, changed), NODE)[-1]
    assert len(kept(base, "other")) == 2


@pytest.mark.parametrize("changed, finding", [
    ({"columns": "seed", "column_values": "1..40", "rows": "steps", "row_values": "1..8"},
     "320 images are asked for (40 x 8), at most 256 fit on a sheet"),
    ({"columns": "steps", "rows": "steps", "row_values": "1"}, "columns and rows are both steps"),
    ({"column_values": "2, four"}, "steps cannot be 'four'; write whole numbers from 1 to 200"),
    ({"column_values": " "}, "no values of steps are given"),
    ({"columns": "cfg", "column_values": "nan"}, "cfg cannot be 'nan'"),
    ({"columns": "method", "column_values": "tdm, best"}, "method cannot be 'best'"),
    ({"column_values": "4, 150"}, "(image steps 150"),
    ({"name": "../x"}, "'../x' cannot be the name of a folder"),
    ({"name": ".."}, "'..' cannot be the name of a folder"),
])
def test_what_cannot_be_compared_is_refused_before_anything_is_generated(server, base, changed, finding):
    before = sorted((base / "output").rglob("*"))
    outcome = run(server, graph(**{"name": "refused", **changed}))
    assert outcome.end == "execution_error" and finding in outcome.error
    assert sorted((base / "output").rglob("*")) == before


def test_no_name_of_a_comparison_leads_out_of_the_folders(server, base):
    before = sorted(base.parent.rglob("*.png"))
    for escape in ESCAPES:
        outcome = run(server, graph(name=escape.replace("{absolute}", str(base.parent))))
        assert "cannot be the name of a folder" in outcome.error, (escape, outcome.messages[-1])
    assert sorted(base.parent.rglob("*.png")) == before
