"""Downloads from a server on this machine that behaves like the hub: resumed, verified, never over another file."""
import errno
import hashlib
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from pixart.__main__ import main
from pixart.downloads import fetch as module
from pixart.downloads.catalogue import BY_NAME, FILES, file_table
from pixart.downloads.fetch import fetch
from pixart.downloads.places import models_folder

DATA = bytes(range(256)) * 20_000            # 5 MB
FILE = replace(BY_NAME["hed"], sha256=hashlib.sha256(DATA).hexdigest())


class Hub(BaseHTTPRequestHandler):
    """/resolve/ redirects to /store and names size and hash, as the hub does. cuts: bytes after which it hangs up."""

    protocol_version = "HTTP/1.1"
    data, sha256, cuts, ranges, asked = DATA, FILE.sha256, [], True, []

    def do_HEAD(self) -> None:
        self.send_response(302)
        for name, value in (("Location", "/store"), ("X-Linked-Size", len(DATA)),
                            ("X-Linked-Etag", f'"{self.sha256}"'), ("Content-Length", 0)):
            self.send_header(name, str(value))
        self.end_headers()

    def do_GET(self) -> None:
        if self.path != "/store":
            self.do_HEAD()
            return
        asked = self.headers.get("Range")
        type(self).asked = [*self.asked, asked]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        self.send_header("Content-Length", str(len(DATA) - start))
        self.end_headers()
        body = self.data[start:]
        if self.cuts:
            body, self.close_connection = body[:self.cuts.pop(0)], True
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    handler = type("OneHub", (Hub,), {"cuts": [], "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        handler.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield handler
        server.shutdown()


def test_a_file_comes_whole_and_is_not_fetched_twice(hub, tmp_path):
    told = []
    assert fetch(FILE, tmp_path / "a.pth", hub.url, lambda *values: told.append(values))
    assert (tmp_path / "a.pth").read_bytes() == DATA and [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    assert ("hed", len(DATA), len(DATA)) in told
    assert not fetch(FILE, tmp_path / "a.pth", hub.url) and len(hub.asked) == 1


def test_a_cut_off_download_goes_on_where_it_was(hub, tmp_path):
    hub.cuts = [1_000_000, 700_000]
    assert fetch(FILE, tmp_path / "a.pth", hub.url)
    assert (tmp_path / "a.pth").read_bytes() == DATA
    assert hub.asked == [None, "bytes=1000000-", "bytes=1700000-"]


def test_the_next_call_goes_on_too_and_a_server_without_ranges_starts_anew(hub, tmp_path):
    (tmp_path / ".a.pth.part").write_bytes(DATA[:3_000_000])
    assert fetch(FILE, tmp_path / "a.pth", hub.url) and hub.asked == ["bytes=3000000-"]
    hub.ranges = False
    (tmp_path / ".b.pth.part").write_bytes(b"x" * 3_000_000)
    assert fetch(FILE, tmp_path / "b.pth", hub.url)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes() == DATA


def test_a_server_that_gives_nothing_ends_in_one_message_and_keeps_what_is_there(hub, tmp_path):
    hub.cuts = [1_000_000] + [0] * 20
    with pytest.raises(OSError, match="what is there is kept"):
        fetch(FILE, tmp_path / "a.pth", hub.url)
    assert (tmp_path / ".a.pth.part").stat().st_size == 1_000_000 and not (tmp_path / "a.pth").exists()


def test_damage_is_found_and_removed(hub, tmp_path):
    hub.data = DATA[:-1] + b"!"
    with pytest.raises(ValueError, match="came damaged"):
        fetch(FILE, tmp_path / "a.pth", hub.url)
    assert list(tmp_path.iterdir()) == []
    hub.data, hub.sha256 = DATA, "0" * 64
    with pytest.raises(ValueError, match="another file than is known"):
        fetch(FILE, tmp_path / "a.pth", hub.url)
    with pytest.raises(ValueError, match="came damaged"):       # the hub's own hash where the table has none
        fetch(replace(FILE, sha256=None), tmp_path / "a.pth", hub.url)


def test_another_file_of_the_name_stays(hub, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="another file"):
        fetch(FILE, tmp_path / "a.pth", hub.url)
    assert (tmp_path / "a.pth").read_bytes() == b"mine"
    (tmp_path / "a.pth").write_bytes(DATA[:-1] + b"!")          # of the same size
    with pytest.raises(FileExistsError, match="another file"):
        fetch(FILE, tmp_path / "a.pth", hub.url)


def test_many_cuts_are_no_failure_as_long_as_each_brings_something(hub, tmp_path):
    hub.cuts = [500_000] * (module.DOWNLOAD_TRIES + 2)
    assert fetch(FILE, tmp_path / "a.pth", hub.url) and (tmp_path / "a.pth").read_bytes() == DATA


def test_what_was_begun_of_a_longer_file_is_dropped(hub, tmp_path):
    (tmp_path / ".a.pth.part").write_bytes(DATA + b"more")
    assert fetch(FILE, tmp_path / "a.pth", hub.url) and hub.asked == [None]


def test_a_full_disk_is_said_before_and_while_it_happens(hub, tmp_path, monkeypatch):
    (tmp_path / ".a.pth.part").write_bytes(DATA[:1_000_000])
    tries = []

    def full(*_: object) -> None:
        tries.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(module, "append", full)
        with pytest.raises(OSError, match=r"^\[Errno \d+\] No space left on device$"):
            fetch(FILE, tmp_path / "a.pth", hub.url)
    assert len(tries) == 1                  # another one would change nothing
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4_000_000))
    with pytest.raises(OSError, match="4 MB are needed and 4 MB are free; make room"):
        fetch(FILE, tmp_path / "a.pth", hub.url)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=len(DATA) - 1_000_000))
    assert fetch(FILE, tmp_path / "a.pth", hub.url) and hub.asked == ["bytes=1000000-"]


def test_no_hub_is_one_message(tmp_path):
    with pytest.raises(OSError, match="cannot be reached.*--endpoint"):
        fetch(FILE, tmp_path / "a.pth", "http://127.0.0.1:1")


def pixart(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pixart", "download", *words])
    return main()


def test_the_command_fills_the_folders_of_a_host(hub, tmp_path, monkeypatch, capsys):
    (tmp_path / "models").mkdir()
    (tmp_path / "main.py").touch()
    monkeypatch.setitem(BY_NAME, "hed", FILE)
    assert pixart(monkeypatch, "hed", "--comfyui", str(tmp_path), "--endpoint", hub.url) == 0
    assert (tmp_path / "models" / "controlnet" / "ControlNetHED.pth").read_bytes() == DATA
    assert "licence other" in capsys.readouterr().out
    assert pixart(monkeypatch, "hed", "--out", str(tmp_path / "new"), "--endpoint", hub.url) == 0
    assert (tmp_path / "new" / "ControlNetHED.pth").is_file()


def test_nothing_is_fetched_unasked(hub, monkeypatch, capsys):
    assert pixart(monkeypatch, "--list", "--endpoint", hub.url) == 0 and hub.asked == []
    assert "sigma-2k" in capsys.readouterr().out
    assert pixart(monkeypatch, "delta", "--endpoint", hub.url) == 1 and hub.asked == []
    assert "there are: alpha-256" in capsys.readouterr().err


def test_the_table_is_complete():
    assert len(BY_NAME) == len(FILES) == len({(file.folder, file.saved_as) for file in FILES})
    assert all(file.folder in ("diffusion_models", "controlnet", "loras", "text_encoders", "vae") for file in FILES)
    assert len(file_table().splitlines()) == len(FILES) + 1
    assert FILE.url("https://mirror/") == "https://mirror/lllyasviel/Annotators/resolve/main/ControlNetHED.pth"


def test_small_files_have_their_hash_in_the_table():
    """Of files below 10 MB, which a repository may hold itself, the hub names no SHA-256 that could be compared."""
    assert [file.name for file in FILES if 0 < file.bytes < 10_000_000 and not file.sha256] == []
    assert all(len(bytes.fromhex(file.sha256)) == 32 for file in FILES if file.sha256)


def test_a_host_is_found_around_the_pack_or_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no ComfyUI is there"):
        models_folder(tmp_path)
    (tmp_path / "host" / "models").mkdir(parents=True)
    (tmp_path / "host" / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "host"))
    assert models_folder(None) == tmp_path / "host" / "models"
    assert models_folder(tmp_path / "host") == tmp_path / "host" / "models"
    monkeypatch.setenv("COMFYUI_PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="--comfyui PATH"):
        models_folder(None)
