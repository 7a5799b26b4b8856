"""One image of a source with what belongs to it, before anything is opened."""
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes lie: a file, or `length` bytes of it from `start` on, as in an archive."""

    path: Path
    start: int = 0
    length: int | None = None

    def open(self) -> BinaryIO:
        """The bytes as a file of their own, to be closed by the caller. FileNotFoundError, OSError."""
        file = self.path.open("rb")
        return file if self.length is None else io.BufferedReader(_Window(file, self.start, self.length))

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()

    def stamp(self) -> list[int]:
        """Changes when the file does: its size and time of change."""
        status = self.path.stat()
        return [status.st_size, status.st_mtime_ns]


class _Window(io.RawIOBase):
    """A part of an open file as a file of its own; closes it with itself."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[:len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Item:
    """An image and its caption, or what was computed from them before; or why the source has neither.

    `key` names it in its source and stays the same from run to run. Files that were computed before: `features` (npz
    with caption_feature and attention_mask), `moments` (npy, mean and standard deviation of latents, unscaled) and
    `hint` (npz, the same of an edge map). `size`: height and width in pixels of the image from metadata, and
    `told_size`: whether a model is told this size (or that of the bucket).
    """

    key: str
    caption: str = ""
    image: Place | None = None
    features: Path | None = None
    moments: Path | None = None
    hint: Path | None = None
    size: tuple[int, int] | None = None
    told_size: bool = True
    fault: str = ""

    def place(self) -> Place:
        """Of the image. ValueError where there is none."""
        if self.image is None:
            raise ValueError(f"{self.key} has no image")
        return self.image

    def mark(self) -> str:
        """Changes with the caption and with the size of the image's file; empty where that is not there."""
        try:
            size = 0 if self.image is None else self.image.length or self.image.stamp()[0]
        except OSError:
            return ""
        return digest_of(f"{size} {self.caption}")


def digest_of(words: str) -> str:
    """A short digest of a text, which may hold lone surrogates."""
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:16]
