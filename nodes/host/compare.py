"""Images of a comparison, generated one by one in the host; each is saved in the output folder at once."""
import hashlib
import json
import logging
import math
import re
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...pixart import __version__
from ...pixart.compare import Axis, Cell, cell_grid, labelled_sheet
from ...pixart.files.images import read_image, save_image
from .node_text import show_text
from .sampling import check_latent, require_pixart, run
from .steps import chosen_preset, make_parts
from .text import encode_prompt, rules_of

logger = logging.getLogger(__name__)

COMPARE_FOLDER = "pixart-compare"           # in the host's output folder
PromptGraph = Mapping[str, Any]


@dataclass
class CellNetworks:
    """What every cell is generated with, and the prompts encoded so far."""

    model: Any
    clip: Any
    vae: Any
    latent: dict[str, Any]
    encoded: dict[str, list] = field(default_factory=dict)

    def conditioning(self, prompt: str) -> list:
        if prompt not in self.encoded:
            self.encoded[prompt] = encode_prompt(self.clip, prompt, rules_of(self.model), {}, emphasis=True)[0]
        return self.encoded[prompt]

    def generate(self, cell: Cell) -> Tensor:
        """(3, H, W) in 0..1. Raises the host's own exception when it is interrupted."""
        parts = make_parts(self.model, cell.method, cell.steps, cell.cfg, cell.denoise)
        positive, latent, cfg = self.conditioning(cell.prompt), self.latent, parts.preset.guidance
        if len(parts.sigmas):
            negative = self.conditioning(cell.negative) if cfg != 1 else positive
            latent = run(parts.model, positive, negative, latent, cell.seed, parts.sampler, parts.sigmas, cfg)
        return self.vae.decode(latent["samples"])[0, ..., :3].movedim(-1, 0).float().clamp(0, 1).cpu()


def compare(networks: CellNetworks, cell: Cell, columns: Axis, rows: Axis, name: str, graph: PromptGraph | None,
            node: str | None) -> tuple[Tensor, Tensor, str]:
    """The sheet IMAGE (1, H, W, 3), the images IMAGE (cells, H, W, 3) row by row, and a report.

    Images that an earlier run with the same settings and nodes left in the folder are taken from there. ValueError,
    before any work, for what some cell cannot be generated with.
    """
    cells = cell_grid(cell, columns, rows)
    check_cells(networks, cells, columns, rows)
    folder = folder_of(name)
    source = origin_of(graph, node, ("model", "clip", "vae", "latent"))
    paths = [[folder / f"{cell_key(each, source)}.png" for each in row] for row in cells]
    wanted = {path: each for line, row in zip(paths, cells) for path, each in zip(line, row)}
    missing = {path: each for path, each in wanted.items() if not path.is_file()}
    generate_missing(networks, missing, len(wanted))
    batch = images_batch([path for line in paths for path in line])
    images = batch.movedim(-1, 1).unflatten(0, (len(paths), -1))
    sheet = labelled_sheet([list(row) for row in images], columns.labels, rows.labels,
                           cell_title(cell, columns, rows))
    report = (f"{len(missing)} generated, {len(wanted) - len(missing)} kept from before, in "
              f"output/{COMPARE_FOLDER}/{name}")
    show_text(report)
    return sheet_image(sheet), batch, report


def check_cells(networks: CellNetworks, cells: Sequence[Sequence[Cell]], columns: Axis, rows: Axis) -> None:
    """Refuse before the first image what the last one could not be generated with."""
    require_pixart(networks.model)
    check_latent(networks.model, networks.latent)
    if networks.latent["samples"].shape[0] != 1:
        raise ValueError(f"the latent has {networks.latent['samples'].shape[0]} images; a cell shows one: set "
                         "batch_size to 1")
    for row, line in zip(rows.labels, cells):
        for column, cell in zip(columns.labels, line):
            try:
                found = chosen_preset(networks.model, cell.method, cell.steps, cell.cfg)
                if cell.denoise != 1 and found.sampler == "dmd":
                    raise ValueError("one-step DMD starts from pure noise: denoise must be 1")
            except ValueError as error:
                raise ValueError(f"{error} (image {', '.join(filter(None, (column, row)))})") from error


def generate_missing(networks: CellNetworks, missing: Mapping[Path, Cell], total: int) -> None:
    """Each file is complete or absent, so that a run goes on where it was stopped."""
    started, kept = time.monotonic(), total - len(missing)
    for number, (path, cell) in enumerate(missing.items()):
        text = f"image {kept + number + 1} of {total}"
        if number:
            text += f", about {(time.monotonic() - started) / number * (len(missing) - number):.0f} s left"
        show_text(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(path, networks.generate(cell))


def cell_key(cell: Cell, source: str) -> str:
    """Name of a cell's file, which is the same for the same settings, networks and version of this extension."""
    settings = json.dumps([asdict(cell), source, __version__], sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:24]


def origin_of(graph: PromptGraph | None, node: str | None, inputs: Sequence[str]) -> str:
    """A digest of everything upstream of these inputs of a node in a prompt: nodes, values, and changes of their files.

    Without a prompt, and where a node reports that it changes every time, a new one each time.
    """
    if graph is None or node is None or node not in graph:
        return uuid.uuid4().hex
    own, seen = graph[node]["inputs"], dict[str, Any]()

    def visit(key: str) -> None:
        if key in seen:
            return
        if key not in graph:                    # made by another node while the prompt runs
            seen[key] = uuid.uuid4().hex
            return
        entry = graph[key]
        seen[key] = [entry["class_type"], entry["inputs"], file_changes(entry)]
        for value in entry["inputs"].values():
            if is_prompt_link(value):
                visit(value[0])
    links = {name: own.get(name) for name in inputs}
    for value in links.values():
        if is_prompt_link(value):
            visit(value[0])
    return hashlib.sha256(json.dumps([links, seen], sort_keys=True, default=repr).encode()).hexdigest()


def is_prompt_link(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str)


def file_changes(entry: Mapping[str, Any]) -> Any:
    """The result of IS_CHANGED of a node of a prompt; NaN means "always"."""
    said = entry["is_changed"] if "is_changed" in entry else asked(entry)
    every = said if isinstance(said, list) else [said]
    always = any(isinstance(each, float) and math.isnan(each) for each in every)
    return uuid.uuid4().hex if always else said


def asked(entry: Mapping[str, Any]) -> Any:
    """IS_CHANGED, called here: the host keeps its result in the prompt, but has none where it keeps no results of nodes
    (--cache-none). As the host does, it passes constants only, and takes an error for "always"."""
    kind: Any = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(entry["class_type"])
    if hasattr(kind, "define_schema"):
        from comfy_api.internal import first_real_override
        return math.nan if first_real_override(kind, "fingerprint_inputs") else None
    if not hasattr(kind, "IS_CHANGED"):
        return None
    given = {name: None if is_prompt_link(value) else value for name, value in entry["inputs"].items()}
    try:
        return [kind.IS_CHANGED(**given)]
    except Exception as error:      # of any pack
        logger.warning("IS_CHANGED of %s: %s", entry["class_type"], error)
        return math.nan


def folder_of(name: str) -> Path:
    """Where the images of a comparison lie: one folder below the host's output folder, whatever the name says."""
    import folder_paths
    if not re.fullmatch(r"\w[\w .+-]{0,99}", name) or name.endswith((".", " ")):
        raise ValueError(f"{name[:40]!r} cannot be the name of a folder; use letters, digits, spaces and . + - _")
    return Path(folder_paths.get_output_directory()) / COMPARE_FOLDER / name


def cell_title(cell: Cell, columns: Axis, rows: Axis) -> str:
    """What all images have in common."""
    varied = {columns.name, rows.name}
    said = {"seed": f"seed {cell.seed}", "method": f"method {cell.method}" if cell.method != "auto" else "",
            "steps": f"steps {cell.steps}" if cell.steps else "", "cfg": f"cfg {cell.cfg:g}" if cell.cfg else "",
            "denoise": f"denoise {cell.denoise:g}" if cell.denoise != 1 else "", "prompt": cell.prompt}
    return ", ".join(text for name, text in said.items() if text and name not in varied)


def sheet_image(sheet: Any) -> Tensor:
    """A Pillow image as IMAGE."""
    import numpy as np
    import torch
    return torch.from_numpy(np.asarray(sheet).copy())[None] / 255


def images_batch(paths: Sequence[Path]) -> Tensor:
    """IMAGE of image files of one size; nothing but the batch is held in memory."""
    first = read_image(paths[0])[0, :3].movedim(0, -1)
    batch = first.new_empty(len(paths), *first.shape)
    for number, path in enumerate(paths):
        batch[number] = read_image(path)[0, :3].movedim(0, -1)
    return batch
