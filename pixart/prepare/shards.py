"""The shard: one safetensors file with prepared examples of one image size, as written and as read."""
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from ..weights import check_finite, checked_entries
from ..weights.safetensors_file import write_tensors
from ..weights.settings import list_of, parse_value, text, whole

PREPARED_FORMAT = "pixart-prepared-1"
NEEDED = ("latents", "features", "mask", "size", "aspect")
OPTIONAL = ("spread", "hints", "hints_spread", "noise")
SHARD_DIMENSIONS = {"features": 3, "mask": 2, "size": 2, "aspect": 1, **dict.fromkeys(("latents", *OPTIONAL), 4)}
MASK_TYPES = (torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64)        # types that a mask may have
MOST_TOKENS = 1 << 14
_NAME = re.compile(r"(bucket-(\d+)x(\d+))(?:-(\d{5,}))?\.safetensors")


def _parts(path: Path) -> tuple[str, int, int, str | None]:
    """Bucket, height and width of the latents, and number as written, of the name of a shard."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        raise ValueError(f"no name of a shard, bucket-HEIGHTxWIDTH-NUMBER.safetensors: {path}")
    return found[1], int(found[2]), int(found[3]), found[4]


def shard_path(folder: Path, sides: tuple[int, int], number: int) -> Path:
    """Where shard `number` of the bucket with these latent sides (h, w) lies."""
    return folder / f"bucket-{sides[0]}x{sides[1]}-{number:05d}.safetensors"


def shard_number(path: Path) -> int:
    """The number in a shard's name; -1 for a bucket that is one file without a number."""
    number = _parts(path)[3]
    return -1 if number is None else int(number)


def shard_paths(folder: Path) -> list[Path]:
    """All shards of a folder: bucket by bucket in the order of their names, and by number within a bucket."""
    found = [path for path in folder.glob("bucket-*.safetensors") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_parts(path)[0], shard_number(path)))


def next_shard(folder: Path, sides: tuple[int, int]) -> Path:
    """The first shard of a bucket that does not exist yet."""
    stem = f"bucket-{sides[0]}x{sides[1]}"
    numbers = [shard_number(path) for path in shard_paths(folder) if _parts(path)[0] == stem]
    return shard_path(folder, sides, max(numbers, default=-1) + 1)


def write_shard(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str],
                keys: Sequence[str] = (), marks: Sequence[str] = ()) -> None:
    """Write one shard, see `pixart.prepare` for its tensors; `keys` names the source of every example, `marks` says
    what it was made of."""
    write_tensors(path, tensors, {"format": PREPARED_FORMAT, **metadata, "keys": json.dumps(list(keys)),
                                  "marks": json.dumps(list(marks))})


def stacked_features(features: Sequence[Tensor]) -> dict[str, Tensor]:
    """`features` (n, L, width) and `mask` (n, L) of a shard, from features (l, width) of captions; L the longest."""
    longest, lengths = max(map(len, features)), torch.tensor([len(one) for one in features])
    return {"features": torch.stack([F.pad(one, (0, 0, 0, longest - len(one))) for one in features]),
            "mask": (torch.arange(longest)[None] < lengths[:, None]).byte()}


class Shard:
    """An open shard. Its tensors are mapped, not read: only the rows that are asked for come into memory.

    ValueError, naming the file, for one that is damaged, cut off, of another format or lacks something.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bucket, height, width, _ = _parts(path)
        self.sides = height, width
        try:
            with safe_open(path, "pt") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}      # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or cut off ({error}); delete it and run prepare again") from error
        self._check()

    def _check(self) -> None:
        if self.metadata.get("format", PREPARED_FORMAT) != PREPARED_FORMAT:
            raise ValueError(f"{self.path} is of format {self.metadata['format']!r}, expected "
                             f"{PREPARED_FORMAT!r}; prepare the images again with this version")
        missing = [name for name in NEEDED if name not in self.tensors]
        if missing:
            raise ValueError(f"{self.path} lacks {', '.join(missing)}; delete it and prepare it again")
        self._check_kinds()
        shapes = {name: tuple(self.tensors[name].shape) for name in (*NEEDED, *OPTIONAL) if name in self.tensors}
        count, like = len(self), shapes["latents"]
        right = {"latents": (*like[:2], *self.sides), "size": (count, 2), "aspect": (count,),
                 "features": (*shapes["mask"], shapes["features"][-1]), "mask": (count, *shapes["mask"][1:]),
                 **{name: like for name in OPTIONAL if name in shapes}}
        for name, shape in right.items():
            if shapes[name] != shape:
                raise ValueError(f"{self.path}: {name} has shape {shapes[name]}, expected {shape}; delete the file and "
                                 "prepare it again")

    def _check_kinds(self) -> None:
        """That every tensor has its number of dimensions and holds numbers of its kind."""
        for name, wanted in SHARD_DIMENSIONS.items():
            tensor = self.tensors.get(name)
            if tensor is None:
                continue
            right = tensor.dtype in MASK_TYPES if name == "mask" else tensor.is_floating_point()
            if tensor.ndim != wanted or not right:
                kind = str(tensor.dtype).removeprefix("torch.")
                raise ValueError(f"{self.path}: {name} has {tensor.ndim} dimensions of {kind}, expected {wanted} of "
                                 f"{'uint8 or bool' if name == 'mask' else 'floating-point numbers'}; delete the file "
                                 "and prepare it again")

    def __len__(self) -> int:
        return len(self.tensors["latents"])

    @property
    def keys(self) -> list[str]:
        """The source of every example, as the preparing command names it; empty where that was not kept."""
        return self._texts("keys")

    @property
    def marks(self) -> list[str]:
        """A digest of what every example was made of; empty where that was not kept."""
        return self._texts("marks")

    def _texts(self, name: str) -> list[str]:
        """A list in the header, with a text for every example."""
        found = parse_value(self.metadata.get(name, "[]"), self.path, f"{name} in its header", "a list of texts")
        return checked_entries({name: found}, {name: list_of(text, len(self) or 1)}, self.path, "its header")[name]

    @property
    def kind(self) -> dict[str, object]:
        """What has to be the same in all shards that are used together."""
        return {"latent space": self.metadata.get("latent_space"), "edge maps": self.metadata.get("edges"),
                "latent channels": self.tensors["latents"].shape[1],
                "text feature width": self.tensors["features"].shape[2],
                "tensors": ", ".join(name for name in (*NEEDED, *OPTIONAL) if name in self.tensors)}

    @property
    def caption_tokens(self) -> int:
        """The longest that a caption can be; the file may keep fewer columns."""
        told = parse_value(self.metadata.get("caption_tokens", "0"), self.path, "caption_tokens", "a whole number")
        told = checked_entries({"caption_tokens": told}, {"caption_tokens": whole(0, MOST_TOKENS)}, self.path,
                               "its header")
        return max(told["caption_tokens"], self.tensors["mask"].shape[1])

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """The given rows (k,) of a tensor, copied. ValueError where a number in them is not finite."""
        found = self.tensors[name][rows]
        check_finite(f"{name}, rows {rows.tolist()[:8]},", found, self.path, "a prepared shard")
        return found


def load_null(folder: Path) -> tuple[Tensor, Tensor]:
    """Features (l, width) float32 and mask (l,) bool that stand for "no caption"."""
    path = folder / "null.safetensors"
    try:
        with safe_open(path, "pt") as file:
            features, mask = file.get_tensor("features"), file.get_tensor("mask").bool()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and run prepare again") from error
    if features.ndim != 2 or mask.shape != features.shape[:1] or not features.is_floating_point() or not mask.any():
        raise ValueError(f"{path} holds features {tuple(features.shape)} of {features.dtype} and mask "
                         f"{tuple(mask.shape)} of {int(mask.sum())} tokens, expected (l, width) of floating-point "
                         "numbers and (l,) of one or more; delete it and run prepare again")
    check_finite("features", features, path, "the empty caption of a prepared folder")
    return features.float(), mask
