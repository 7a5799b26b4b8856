"""Which files a path stands for: one file, all shards of a set, or what a Hugging Face folder holds."""
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import CheckpointError, CheckpointNotFound
from .settings import checked_entries, read_json, table

WEIGHT_SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".bin", ".ckpt")  # in upper or lower case
FILE_VARIANTS = ("", ".fp16", ".bf16")        # what diffusers adds to names of files in half precision
SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
INDEX = re.compile(r".+\.index(\.\w+)?\.json")
MOST_SHARDS = 1000


@dataclass(frozen=True)
class Kind:
    """What a reader of weights looks for."""

    expected: str                            # for error messages
    folder: str = ""                         # where it lies in a folder of a whole pipeline, such as "text_encoder"
    stems: tuple[str, ...] = ()              # preferred names in a folder, without suffix


def find_files(path: Path, kind: Kind) -> tuple[Path, ...]:
    """The files that together hold the weights: of a file, a shard, an index, a config.json or a folder.

    All exist. Raises CheckpointNotFound where something is missing, CheckpointError where the choice is not clear.
    """
    if not path.exists():
        raise CheckpointNotFound(path, "no such file or folder", kind.expected, "Check the path.")
    if path.is_dir():
        return in_folder(path, kind)
    if not path.is_file():
        raise CheckpointError(path, "neither a file nor a folder", kind.expected)
    if INDEX.fullmatch(path.name):
        return in_index(path, kind)
    if path.suffix.lower() == ".json":
        return in_folder(path.parent, kind)
    return shards_of(path, kind) if SHARD_NAME.fullmatch(path.name) else (path,)


def in_folder(folder: Path, kind: Kind) -> tuple[Path, ...]:
    """In a pipeline's folder or the network's own: by an index, a file of the usual name, shards, the only file."""
    inner = folder / kind.folder if kind.folder and (folder / kind.folder).is_dir() else folder
    files = {file.name.lower(): file for file in sorted(inner.iterdir()) if file.is_file()}
    for suffix in (".safetensors", ".bin"):
        indices = [file for name, file in files.items() if INDEX.fullmatch(name) and suffix in name]
        if indices:
            return in_index(min(indices, key=lambda file: len(file.name)), kind)
        named = [f"{stem}{variant}{suffix}" for stem in kind.stems for variant in FILE_VARIANTS]
        found = next((files[name] for name in named if name in files), None)
        if found is not None:
            return (found,)
        shards = [file for name, file in files.items() if name.endswith(suffix) and SHARD_NAME.fullmatch(name)]
        if shards:
            return shards_of(shards[0], kind)
    weights = [file for file in files.values() if file.suffix.lower() in WEIGHT_SUFFIXES]
    return (_only(weights, folder, inner, kind),)


def _only(files: Sequence[Path], folder: Path, inner: Path, kind: Kind) -> Path:
    if len(files) == 1:
        return files[0]
    usual = f"{kind.stems[0] if kind.stems else 'model'}.safetensors"
    if not files:
        raise CheckpointNotFound(folder, f"no weights in this folder (looked in {inner})",
                                 f"{usual}, or shards with their index", "Choose the folder or file of the weights.")
    raise CheckpointError(folder, f"{len(files)} weight files ({files[0].name}, {files[1].name}, ...)",
                          f"one, or {usual}", "Choose the file itself.")


def in_index(index: Path, kind: Kind) -> tuple[Path, ...]:
    """Every shard that an index lists."""
    entries = checked_entries(read_json(index), {"weight_map": table}, index, "the index")
    names = list(entries.get("weight_map", {}).values())
    strange = next((name for name in names if not isinstance(name, str)), None)
    if strange is not None or not names:
        found = f"names {type(strange).__name__} as a shard" if names else "is without a list of shards"
        raise CheckpointError(index, f"an index that {found}", "names of files in weight_map")
    if any(not name or re.search(r"[/\\:\0]", name) or name in (".", "..") for name in names):
        raise CheckpointError(index, "an index that points outside its folder", "plain file names")
    return _all_there([index.parent / name for name in sorted(set(names))], index, kind)


def shards_of(shard: Path, kind: Kind) -> tuple[Path, ...]:
    """The whole set that a shard belongs to, by its index where one lies beside it, else by its name."""
    match = SHARD_NAME.fullmatch(shard.name)
    assert match is not None
    suffix, count = match["suffix"], int(match["count"])
    index = shard.with_name(f"{match['stem']}{suffix}.index.json")
    if index.is_file():
        files = in_index(index, kind)
        if shard in files:
            return files
    if not 1 <= int(match["number"]) <= count <= MOST_SHARDS:
        raise CheckpointError(shard, f"by its name a shard of a set of {count}", f"1 to {MOST_SHARDS} shards")
    return _all_there([shard.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}{suffix}")
                       for number in range(1, count + 1)], shard, kind)


def _all_there(files: list[Path], named_by: Path, kind: Kind) -> tuple[Path, ...]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointNotFound(named_by, f"{len(missing)} of {len(files)} shards are missing, the first is "
                                 f"{missing[0]}", f"{kind.expected}, every shard in the same folder",
                                 "Download the missing ones.")
    return tuple(files)
