"""Text features of captions, kept on disk between the pass of the text encoder and that of the autoencoder.

`.captions/{number:05d}.safetensors` in the prepared folder holds the features of some captions one after the other. A
caption that many images share is encoded once. The files are deleted when every image is done.
"""
import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..weights.safetensors_file import write_tensors
from .networks import TextEncoder

CAPTION_CHUNK = 128         # captions a file, the most that a kill can cost
WHOLE_FILES, HALF_FILES = "[0-9]*.safetensors", ".[0-9]*.safetensors.*.part"      # the latter: what a kill left


class Captions:
    """Captions in a prepared folder. ValueError, naming the file, for a damaged one."""

    def __init__(self, prepared: Path) -> None:
        self.folder = prepared / ".captions"
        self._places: dict[bytes, tuple[Tensor, int, int]] = {}
        self._count = 0
        for path in sorted(self.folder.glob(WHOLE_FILES)):
            self._open(path)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, text: str) -> bool:
        return _digest(text) in self._places

    def features(self, text: str) -> Tensor:
        """Features (tokens, width) fp16 of a caption, without padding."""
        features, start, end = self._places[_digest(text)]
        return features[start:end].clone()

    def add(self, texts: Sequence[str], features: Sequence[Tensor]) -> None:
        """Write the features (tokens, width) of these captions as one file."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{self._count:05d}.safetensors"
        digests = torch.frombuffer(bytearray(b"".join(map(_digest, texts))), dtype=torch.uint8)
        write_tensors(path, {"features": torch.cat([part.half() for part in features]),
                             "tokens": torch.tensor([len(part) for part in features]), "digests": digests})
        self._open(path)

    def clear(self) -> None:
        """Delete the files, and their folder where nothing else lies in it."""
        self._places.clear()
        for pattern in (WHOLE_FILES, HALF_FILES):
            for path in self.folder.glob(pattern):
                path.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def _open(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                features, tokens, digests = (file.get_tensor(name) for name in ("features", "tokens", "digests"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and run prepare again") from error
        start = 0
        for digest, count in zip(digests.view(-1, 16), tokens.tolist(), strict=True):
            self._places[digest.numpy().tobytes()] = (features, start, start + count)
            start += count
        self._count = max(self._count, int(path.stem) + 1)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def encode_captions(captions: Captions, texts: Iterable[str], open_encoder: Callable[[], TextEncoder] | None,
                    tokens: int, batch: int, progress: Callable[[int, int], None]) -> int:
    """Add the features of `texts`, as they are to be tokenised, and free the encoder; returns how many were cut.

    A KeyboardInterrupt keeps what is done. ValueError and FileNotFoundError of the encoder are passed on.
    """
    wanted = [text for text in dict.fromkeys(texts) if text not in captions]
    if not wanted:
        return 0
    if open_encoder is None:
        raise ValueError(f"{len(wanted)} captions are to be encoded and there is no text encoder; give it with --t5")
    encoder = open_encoder()
    name = getattr(encoder, "path", "the text encoder")
    done = cut = 0
    found: list[tuple[str, Tensor]] = []

    def flush() -> None:
        if found:
            captions.add([text for text, _ in found], [features for _, features in found])
            found.clear()

    try:
        for at in range(0, len(wanted), batch):
            texts = wanted[at:at + batch]
            encoded = encoder.encode(texts, tokens, clean=False, batch=batch)
            cut += sum(bool(report.cut) for report in encoded.reports)
            found += [(text, half(encoded.context[row][encoded.mask[row]], name)) for row, text in enumerate(texts)]
            done += len(texts)
            if len(found) >= CAPTION_CHUNK:
                flush()
            progress(done, len(wanted))
        flush()
    except KeyboardInterrupt:
        flush()
        raise
    finally:
        encoder.close()
    return cut


def half(values: Tensor, source: object) -> Tensor:
    """float16 on the CPU. ValueError, naming the source, for values that float16 cannot hold."""
    result = values.to("cpu", torch.float16)
    if not torch.isfinite(result).all():
        raise ValueError(f"{source} gives values that are not finite in 16 bits; its weights are damaged or it ran in "
                         "too low a precision")
    return result
