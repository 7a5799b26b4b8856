"""Seeded damage to files of every kind: each opens with finite weights or ends in one clear error, soon and small.

    pytest tests/weights/test_fuzz.py             60 damaged files
    pytest tests/weights/test_fuzz.py -m slow     2,000, and 500 of the newer kinds
"""
import collections
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from weights.mutations import CONFIG, KINDS, LORAS, NEWER, QUANTIZED_KINDS, TRANSFORMERS, mutate, random_model

from pixart.accelerate import read_ecad
from pixart.checkpoint import load, load_control
from pixart.checkpoint.feedback import load_feedback
from pixart.checkpoint.lora import merge_lora, read_lora
from pixart.quantize.layer import QuantizedLinear
from pixart.text.files import T5Files
from pixart.text.t5 import _config, _load
from pixart.weights.values import is_finite

SECONDS = 5.0                # of processor time for one file
ROOM = 200 << 20             # bytes of memory beside twice the file
LONGEST = 1200               # characters of a message, its path included


def opened(kind: str, path: Path) -> object:
    """What a user of such a file does."""
    if kind in QUANTIZED_KINDS:
        kept = load(path, quantized=True)
        for name, module in kept.named_modules():
            assert not isinstance(module, QuantizedLinear) or is_finite(module.dequantized()), f"{name} is not finite"
        return load(path)
    if kind == "feedback":
        return load_feedback(path)
    if kind == "schedule":
        return read_ecad(path).policy()
    if kind in TRANSFORMERS:
        return load(path, CONFIG if kind in ("zip", "stream") else "auto")      # these do not say their heads
    if kind == "control":
        return load_control(path)
    if kind in LORAS:
        model = random_model()
        merge_lora(model, read_lora(path))
        return model
    files = T5Files(path)
    return _load(files, _config(files), 16, torch.device("cpu"), None)


def outcome(kind: str, path: Path) -> str:
    """"success" or the error's message; anything else than a clear error is raised."""
    try:
        model = opened(kind, path)
    except (ValueError, FileNotFoundError) as error:
        said = str(error)
        assert path.name in said, f"no file named in: {said}"
        assert len(said) - len(str(path)) < LONGEST and "\n" not in said, said
        assert type(error).__name__ in ("CheckpointError", "CheckpointNotFound", "ValueError", "NotECAD"), repr(error)
        return said
    if isinstance(model, torch.nn.Module):
        assert all(torch.isfinite(value.float()).all() for value in model.state_dict().values()), "not finite"
    return "success"


def memory() -> int:
    """Most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run(seeds: range, folder: Path, kinds: Mapping[str, Callable[[Path], Path]] = KINDS) -> collections.Counter:
    right: dict[str, Path] = {}
    for kind, write in kinds.items():
        (folder / kind).mkdir()
        right[kind] = write(folder / kind)
        assert outcome(kind, right[kind]) == "success", kind
    before, results = memory(), collections.Counter()
    for seed in seeds:
        chance = random.Random(seed)
        kind = chance.choice(list(kinds))
        work = folder / "work"
        shutil.copytree(folder / kind, work)
        done = mutate(work, chance)
        started = time.process_time()
        try:
            said = outcome(kind, work / right[kind].relative_to(folder / kind))
        except Exception as error:
            raise AssertionError(f"seed {seed}, {kind}, {done}") from error
        seconds = time.process_time() - started
        assert seconds < SECONDS, f"seed {seed}, {kind}, {done}: {seconds:.1f} s"
        results["success" if said == "success" else "error"] += 1
        shutil.rmtree(work)
    grown, largest = memory() - before, max(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{dict(results)}, {grown >> 20} MiB more than before")
    assert grown < 2 * largest + ROOM
    return results


def test_sixty_damaged_files(tmp_path):
    results = run(range(60), tmp_path)
    assert results["error"] > 20 and sum(results.values()) == 60


@pytest.mark.slow
def test_two_thousand_damaged_files(tmp_path):
    results = run(range(1000, 3000), tmp_path)
    assert results["error"] > 800 and sum(results.values()) == 2000


@pytest.mark.slow
def test_five_hundred_damaged_files_of_the_newer_kinds(tmp_path):
    results = run(range(5000, 5500), tmp_path, NEWER)
    assert results["error"] > 200 and sum(results.values()) == 500
