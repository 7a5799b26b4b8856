"""One file over HTTP: resumed where it was cut off, checked against its hash, moved into place only when complete.

The hub's own client starts again after every interruption, and downloads of gigabytes are usually interrupted.
"""
import hashlib
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ..progress import Progress
from .catalogue import HUB, PublishedFile, size_text

DOWNLOAD_CHUNK = 2 ** 20
DOWNLOAD_TRIES = 5      # without a single new byte
PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Remote:
    """What the hub says of a file before it is fetched."""

    url: str
    bytes: int
    sha256: str | None


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are not followed: the hub gives size and hash in the headers of the redirect to its store."""

    def redirect_request(self, *_: Any) -> None:
        return None


def fetch(file: PublishedFile, target: Path, endpoint: str = HUB, progress: Progress | None = None) -> bool:
    """Fetch into `target`, in an existing folder; False where the same file is there already.

    What was fetched before an interruption lies in a hidden .part file beside it, from which the next call goes on.
    progress: told (file, bytes done, bytes in all). Raises FileExistsError for another file of this name, ValueError
    where the hub's file is not the one of the table or came damaged, OSError where it cannot be reached or the disk is
    full.
    """
    remote = ask_hub(file, endpoint)
    if file.sha256 and remote.sha256 and file.sha256 != remote.sha256:
        raise ValueError(f"the hub holds another file than is known under this name; look at {remote.url} yourself")
    wanted = file.sha256 or remote.sha256
    if target.exists():
        if target.stat().st_size == remote.bytes and wanted in (None, hash_of(target, progress, file.name)):
            return False
        raise FileExistsError(f"another file of this name is there; move it away first: {target}")
    part = target.with_name(f".{target.name}.part")
    require_room(part, remote.bytes)
    complete(remote, part, file.name, progress)
    if wanted is not None and hash_of(part, progress, file.name) != wanted:
        part.unlink()
        raise ValueError(f"{file.name} came damaged, its hash is wrong; it was removed, download it again")
    os.replace(part, target)
    return True


def ask_hub(file: PublishedFile, endpoint: str) -> Remote:
    """Size and hash by the headers of the hub. Raises OSError."""
    url = file.url(endpoint)
    opener = urllib.request.build_opener(NoRedirect)
    try:
        with opener.open(urllib.request.Request(url, method="HEAD"), timeout=60) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        if not 300 <= error.code < 400:
            raise OSError(f"the hub has no such file (status {error.code}): {url}") from error
        headers = error.headers
    except (OSError, HTTPException) as error:
        raise OSError(f"the hub cannot be reached ({getattr(error, 'reason', error)}); check the connection, or give a "
                      f"mirror with --endpoint: {url}") from error
    size = headers.get("X-Linked-Size") or headers.get("Content-Length")
    tag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
    if size is None or not size.isdecimal():
        raise OSError(f"the hub does not say how large the file is: {url}")
    return Remote(url, int(size), tag if re.fullmatch("[0-9a-f]{64}", tag) else None)


def require_room(part: Path, size: int) -> None:
    there = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(part.parent).free
    if free < size - there:
        raise OSError(f"{size_text(size - there)} are needed and {size_text(free)} are free; make room in: "
                      f"{part.parent}")


def complete(remote: Remote, part: Path, name: str, progress: Progress | None) -> None:
    """Append until the file is as long as the hub says, through interruptions."""
    without_news = 0
    if part.exists() and part.stat().st_size > remote.bytes:
        part.unlink()               # of another version
    part.touch()
    while (there := part.stat().st_size) < remote.bytes:
        try:
            append(remote, part, there, name, progress)
            reason = "the connection ended early"
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno is not None and not is_network(error):
                raise               # the disk
            reason = str(getattr(error, "reason", error))
        without_news = without_news + 1 if part.stat().st_size <= there else 0
        if without_news >= DOWNLOAD_TRIES:
            raise OSError(f"{name} could not be fetched ({reason}); what is there is kept, run the command again")
        if part.stat().st_size < remote.bytes:
            time.sleep(PAUSE_SECONDS)


def is_network(error: OSError) -> bool:
    return isinstance(error, (ConnectionError, TimeoutError, urllib.error.URLError))


def append(remote: Remote, part: Path, there: int, name: str, progress: Progress | None) -> None:
    """Fetch from byte `there` on; from the beginning where the server cannot do that."""
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={there}-"} if there else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        starts = there if answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {there}-") else 0
        with part.open("r+b") as file:
            file.seek(starts)
            file.truncate()
            while chunk := answer.read(min(DOWNLOAD_CHUNK, remote.bytes - file.tell() + 1)):
                file.write(chunk)
                if file.tell() > remote.bytes:
                    raise ValueError(f"{name}: the server sends more than the {remote.bytes} bytes that the hub names")
                if progress is not None:
                    progress(name, file.tell(), remote.bytes)


def hash_of(path: Path, progress: Progress | None = None, name: str = "") -> str:
    digest, size, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(DOWNLOAD_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(f"checking {name}", done, size)
    return digest.hexdigest()
