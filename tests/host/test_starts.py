"""The rows of docs/compatibility.md about start options: the host started with them runs PixArt-mini over HTTP.

Options that do not exclude each other share a start, so that a version takes some ten starts and not forty.
"""
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from host import harness
from host.test_server import run
from PIL import Image

from pixart.model.cpu_dtype import has_matrix_units

GRAPH = json.loads((harness.ROOT / "workflows" / "api" / "mini-lcm-4-steps.json").read_text(encoding="utf-8"))
ROWS = [row for row in json.loads(Path(__file__).with_name("compatibility.json").read_text(encoding="utf-8"))
        if "options" in row]
OF_PROCESSOR = ("--fp32-unet", "--fp64-unet", "--bf16-unet")
# Of processors without matrix units alone, where sums may differ with where weights begin in memory: a dozen values of
# the image by one step of 255. With matrix units images are the same to the bit.
ROUNDING = 1e-6
ALONE, FAR, FLAT = "alone", 0.05, 0.1        # mean difference of another image's pixels; deviation of no image


@dataclass(frozen=True)
class Start:
    """Options that one host is started with; same: whether its image is that of a start without any."""

    options: tuple[str, ...]
    same: bool
    close: bool = True          # whether it is at least nearly that

    @property
    def title(self) -> str:
        return " ".join(self.options)


def column(version: str) -> str:
    return "0.3.64" if version.startswith("0.3.") else "0.33.0"


def outcome_of(row: dict, version: str) -> str:
    """As in the table, which was made on a processor where weight_dtype auto is bfloat16; on others it is float32."""
    found = row["outcome"][column(version)]
    if row["options"][0] in OF_PROCESSOR and not has_matrix_units():
        return {"works": "same", "same": "works"}.get(found, found)
    return found


def starts(version: str) -> Iterator[Start]:
    """As few as the rows that work or have no effect on this version need: one of each kind of options in each."""
    for outcome in ("works", "same"):
        rows = [row for row in ROWS if outcome_of(row, version) == outcome]
        yield from (Start(tuple(row["options"]), outcome == "same", close=False) for row in rows
                    if row["kind"] == ALONE)
        kinds: dict[str, list[list[str]]] = {}
        for row in rows:
            if row["kind"] != ALONE:
                kinds.setdefault(row["kind"], []).append(row["options"])
        for number in range(max(map(len, kinds.values()), default=0)):
            chosen = [options[number] for options in kinds.values() if number < len(options)]
            yield Start(tuple(word for options in chosen for word in options), outcome == "same")


def drawn(server: harness.Server) -> np.ndarray:
    """Pixels in 0..1 of the image that the server generates."""
    (outcome,) = run(server, GRAPH)
    assert outcome.end == "execution_success", f"{outcome.messages[-1]}\n{server.log[-3000:]}"
    (entry,) = outcome.images("8")
    data = server.get(f"/view?filename={entry['filename']}&subfolder={entry['subfolder']}&type={entry['type']}")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) / 255


@pytest.fixture(scope="session")
def plain(server: harness.Server) -> np.ndarray:
    """The image of a start without options, which is there anyway."""
    return drawn(server)


def check(host: harness.Host, folder: Path, start: Start, plain: np.ndarray) -> None:
    harness.link_pack(folder / "custom_nodes")
    with harness.Server(host, folder, start.options) as server:
        found = drawn(server)
    difference = float(np.abs(found - plain).mean())
    if start.same:
        assert difference == 0 or (difference < ROUNDING and not has_matrix_units()), start.title
        return
    assert difference > 0 and found.std() > FLAT, start.title
    assert difference < FAR or not start.close, f"{start.title}: {difference:.3f}"


def test_a_start_with_one_option_of_each_kind_generates_an_image(host, tmp_path, plain):
    check(host, tmp_path, next(start for start in starts(host.version) if start.close), plain)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(max(len(list(starts(version))) for version in ("0.3.64", "0.33.0"))))
def test_every_start_option_does_what_the_table_says(host, tmp_path, plain, number):
    needed = list(starts(host.version))
    if number >= len(needed):
        pytest.skip(f"{host.version} needs {len(needed)} starts only")
    check(host, tmp_path, needed[number], plain)


@pytest.mark.parametrize("version", ["0.3.64", "0.33.0"])
def test_every_row_is_in_a_start_or_needs_what_is_not_there(version):
    tried = {word for start in starts(version) for word in start.options}
    for row in ROWS:
        assert (row["options"][0] in tried) == (row["outcome"][version] in ("works", "same")), row["name"]
