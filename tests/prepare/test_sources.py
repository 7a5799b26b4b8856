"""Every kind of source gives the same images and captions, and says what it cannot use."""
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from pixart.prepare.folder import folder_items
from pixart.prepare.items import Item, Place
from pixart.prepare.sources import items_of


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "png")
    return buffer.getvalue()


def read(*sources: Path) -> dict[str, Item]:
    items = list(items_of(sources, "alpha", 512))
    assert len({item.key for item in items}) == len(items)
    return {item.key: item for item in items}


def archive(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_a_folder_gives_images_with_the_text_beside_them(tmp_path, caplog):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.png", "in/a.PNG", "in/deep/c.jpeg", "lonely.webp", "odd.png"):
        (tmp_path / name).write_bytes(png())
    for name, text in (("b.txt", "bee\n"), ("in/a.txt", "\ufeffä image"), ("in/deep/c.txt", "see")):
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "odd.txt").write_bytes(b"caf\xe9")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(png())
    items = read(tmp_path)
    assert list(items) == ["b.png", "lonely.webp", "odd.png", "in/a.PNG", "in/deep/c.jpeg"]
    assert [items[key].caption for key in ("b.png", "in/a.PNG", "in/deep/c.jpeg")] == ["bee", "ä image", "see"]
    assert items["lonely.webp"].fault == "it has no caption: lonely.txt is not there"
    assert "not UTF-8" in items["odd.png"].fault
    assert items["b.png"].image.read() == png() and "1 files" in caplog.text


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="needs links")
def test_a_folder_that_contains_itself_ends(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "self").symlink_to(tmp_path)
    assert list(read(tmp_path)) == ["a.png"]


def test_lists_name_images_relative_to_themselves(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "list.jsonl").write_text("\n".join([
        '{"file_name": "a.png", "text": " one "}', "", '{"file_name": "a.png", "text": "two"}',
        '{"file_name": "b.png"}', "{broken", '["a.png"]', '{"text": "no image"}']))
    items = read(tmp_path / "list.jsonl")
    assert items["a.png"].caption == "one" and items["a.png#2"].caption == "two"
    assert items["a.png"].image == Place(tmp_path / "a.png")
    assert "no caption (list.jsonl, line 4" in items["b.png"].fault
    assert items["list.jsonl, line 5"].fault.startswith("it is not JSON")
    assert "not a JSON object" in items["list.jsonl, line 6"].fault
    assert "names no image" in items["list.jsonl, line 7"].fault


@pytest.mark.parametrize("name, between", [("list.csv", ","), ("list.tsv", "\t")])
def test_tables_name_their_columns(tmp_path, name, between):
    rows = [("path", "width", "caption"), ("a.png", "4", '"one, two"'), ("b.png", "4", "")]
    (tmp_path / name).write_text("\ufeff" + "\n".join(between.join(row) for row in rows), "utf-8")
    items = read(tmp_path / name)
    assert items["a.png"].caption == "one, two" and items["b.png"].caption == ""
    (tmp_path / name).write_text(between.join(("path", "words")) + "\n")
    with pytest.raises(ValueError, match="columns path, words; expected one of caption, text, prompt"):
        read(tmp_path / name)


def test_a_table_loses_no_word_and_no_line(tmp_path):
    """A caption with a bare comma was cut there, and a quote without partner swallowed all lines that follow."""
    (tmp_path / "list.csv").write_text("path,caption\n\na.png,one, two\nb.png,three\n")
    items = read(tmp_path / "list.csv")
    assert "more values than the first line" in items["list.csv, line 3"].fault and items["b.png"].caption == "three"
    (tmp_path / "list.csv").write_text('path,caption\na.png,one\nb.png,"two\nc.png,three\n')
    with pytest.raises(ValueError, match=r"from line 3 on this is not a valid table .*needs one at its end"):
        read(tmp_path / "list.csv")


def test_archives_hold_an_example_a_name(tmp_path):
    path = archive(tmp_path / "s-000.tar", {
        "0001.txt": b"one", "0001.png": png(), "0001.json": b"{}", "in/0002.seg.png": png("blue"),
        "in/0002.json": json.dumps({"caption": " two ", "width": 4}).encode(), "0003.jpg": png(), "0004.txt": b"alone",
        "0005.cls": b"3"})
    items = read(path)
    assert items["s-000.tar/0001"].caption == "one" and items["s-000.tar/in/0002"].caption == "two"
    assert items["s-000.tar/in/0002"].image.read() == png("blue")
    assert items["s-000.tar/0003"].fault.startswith("it has no caption")
    assert "no image" in items["s-000.tar/0004"].fault and len(items) == 4


def test_a_folder_of_archives_is_one_source(tmp_path):
    for name in ("b.tar", "a.tar"):
        archive(tmp_path / name, {"1.png": png(), "1.txt": b"x"})
    assert list(read(tmp_path)) == ["a.tar/1", "b.tar/1"]
    (tmp_path / "c.png").write_bytes(png())
    with pytest.raises(ValueError, match="both images and .tar files"):
        read(tmp_path)


def test_an_image_in_an_archive_is_a_file_of_its_own(tmp_path):
    path = archive(tmp_path / "a.tar", {"1.png": png(), "1.txt": b"x", "2.png": b"other", "2.txt": b"y"})
    with read(path)["a.tar/1"].image.open() as file:
        assert file.seek(0, io.SEEK_END) == len(png()) and file.read() == b""
        file.seek(1)
        assert file.read(3) == b"PNG" and file.tell() == 4 and file.read() == png()[4:]


def test_an_archive_that_was_cut_off_gives_what_it_has(tmp_path):
    path = archive(tmp_path / "a.tar", {f"{n}.{ending}": data for n in range(3)
                                        for ending, data in (("txt", b"x"), ("png", png()))})
    path.write_bytes(path.read_bytes()[:3 * 1024 + 700])
    items = read(path)
    assert not items["a.tar/0"].fault and "damaged or cut off" in items["a.tar"].fault


def test_a_compressed_archive_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a.tar is not an uncompressed tar file.*unpack"):
        read(archive(tmp_path / "a.tar", {"1.png": png()}, "w:gz"))


def test_sources_may_be_many_and_their_names_stay_apart(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(png())
        (tmp_path / folder / "a.txt").write_text(folder)
    items = read(tmp_path / "x", tmp_path / "y")
    assert {key: item.caption for key, item in items.items()} == {"a.png": "x", "a.png#2": "y"}


def test_what_is_no_source_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "a.json").write_text('{"path": "a"}')
    with pytest.raises(ValueError, match="a.zip is no source.*jsonl"):
        read(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="a.json holds dict, expected a list of records"):
        read(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="no source"):
        read(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "a.TXT", "a.png.txt", "a.png.caption"])
def test_captions_lie_where_trainers_put_them(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / name).write_text("a red circle")
    (item,) = folder_items(tmp_path)
    assert item.caption == "a red circle" and not item.fault


def test_a_text_file_goes_before_other_forms(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    for name in ("a.caption", "a.png.txt", "a.txt"):
        (tmp_path / name).write_text(name)
    assert next(iter(folder_items(tmp_path))).caption == "a.txt"
