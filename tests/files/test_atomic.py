"""Files that are whole or not there: modes, threads, errors."""
import os
import re
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pixart.__main__ import main
from pixart.files import atomic
from pixart.files.atomic import replacing

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX modes")


def write(path: Path) -> None:
    with replacing(path) as beside:
        save_file({"a": torch.zeros(2)}, beside)        # makes files that only their owner can read


@posix
def test_a_new_file_may_be_read_by_whom_the_system_says(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o027, 0o640)):
        before = os.umask(mask)
        try:
            write(tmp_path / f"{mask}.safetensors")
        finally:
            os.umask(before)
        assert (tmp_path / f"{mask}.safetensors").stat().st_mode & 0o777 == mode


@posix
def test_a_replaced_file_keeps_its_mode(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")
    path.chmod(0o664)
    write(path)
    assert path.stat().st_mode & 0o777 == 0o664 and path.stat().st_size > 0


def test_threads_that_write_one_file_do_not_meet(tmp_path):
    path, together, errors = tmp_path / "x", threading.Barrier(2), []

    def work(text: str) -> None:
        try:
            with replacing(path) as beside:
                beside.write_text(text)
                together.wait(10)
                assert beside.read_text() == text
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and path.read_text() in ("one", "two") and list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ValueError), replacing(path) as beside:
        beside.write_text("new")
        raise ValueError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_name_that_leaves_no_room_for_more_is_written_all_the_same(tmp_path):
    for name in ("a" * 251 + ".png", "\u732b" * 80 + ".png"):
        with replacing(tmp_path / name) as beside:
            beside.write_text("x")
        assert (tmp_path / name).read_text() == "x"


def test_a_folder_that_is_not_there_is_named_and_no_hidden_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder does not exist; create it first: '.*none'"), \
            replacing(tmp_path / "none" / "x.png"):
        pass


def test_a_file_in_use_on_windows_is_named_with_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("old")

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(atomic.os, "replace", refuse)
    monkeypatch.setattr(atomic.os, "name", "nt")
    with pytest.raises(PermissionError, match="in use by a program that has it open"):
        atomic.rename(tmp_path / "y", tmp_path / "x")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that refuses files, whoever asks")
def test_a_folder_that_takes_no_file_is_named_with_what_to_do(monkeypatch, capsys):
    """It was "[Errno 2] No such file or directory: '/proc/.prompt.safetensors.123-456.part'", after T5 was read."""
    told = r"this folder takes no new file \(.+\); choose another: '/proc'"
    with pytest.raises(OSError, match=told), replacing("/proc/x"):
        pass
    monkeypatch.setattr(sys, "argv", ["pixart", "encode", "a fox", "--t5", "nowhere", "--out", "/proc/p.safetensors"])
    assert main() == 1
    assert re.search(told, capsys.readouterr().err)
