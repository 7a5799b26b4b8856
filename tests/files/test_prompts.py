"""Lists of prompts: three formats with the same meaning, and what is refused."""
import json
from pathlib import Path

import pytest

from pixart.files.prompts import PromptLine, read_prompts


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_the_formats_say_the_same(tmp_path):
    rows = [{"prompt": "a cat, sitting", "seed": 7, "width": 64, "height": 32},
            {"prompt": 'a "dog"', "negative": "fog"}]
    lines = written(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    table = written(tmp_path, "p.csv", '\ufeffPrompt,seed,width,height,negative,id\r\n"a cat, sitting",7,64,32,,1\r\n'
                                       '"a ""dog""",,,,fog,2\r\n')
    want = [PromptLine(1, "a cat, sitting", "", 7, 64, 32), PromptLine(2, 'a "dog"', "fog")]
    assert read_prompts(lines) == want
    assert [(row.prompt, row.negative, row.seed, row.width, row.height) for row in read_prompts(table)] == [
        (row.prompt, row.negative, row.seed, row.width, row.height) for row in want]
    text = written(tmp_path, "p.txt", "a cat\r\n\r\n  a dog, sitting \n")
    assert read_prompts(text) == [PromptLine(1, "a cat"), PromptLine(3, "a dog, sitting")]
    assert read_prompts(written(tmp_path, "q.jsonl", '"only text"'))[0].prompt == "only text"


@pytest.mark.parametrize("name, text, finding", [
    ("p.txt", "\n \n", "holds no prompt"), ("p.md", "x", "ends in .txt"),
    ("p.csv", "text\nx", "names no column prompt"), ("p.csv", "", "names no column prompt"),
    ("p.jsonl", '"a"\n{', "line 2 is not JSON"),
    ("p.csv", 'prompt\na\n"b" c\n', "from line 3 on this is not a valid table"),
    ("p.csv", '"prompt" a\nb\n', "from line 1 on this is not a valid table"),
    ("p.csv", 'prompt\n\n\na,b\n', "line 4 has more values"), ("p.csv", "prompt,seed\n\na,x\n", "line 3 has seed 'x'"),
    ("p.jsonl", "[1]", "line 1 has no prompt"), ("p.jsonl", '{"prompt": 3}', "line 1 has no prompt"),
    ("p.jsonl", '{"prompt": "a", "seed": -1}', "seed -1; expected a whole number"),
    ("p.jsonl", '{"prompt": "a", "seed": true}', "seed True"), ("p.jsonl", '{"prompt": "a", "seed": 1.5}', "seed 1.5"),
    ("p.csv", "prompt,seed\na,x", "seed 'x'"), ("p.csv", "prompt,width\na,64", "only one of width and height"),
    ("p.jsonl", '{"prompt": "a", "width": 8, "height": 99999}', "width 8"),
    ("p.jsonl", '{"prompt": "a", "negative": 3}', "not a text"),
])
def test_bad_lists_are_refused_with_the_line(tmp_path, name, text, finding):
    path = written(tmp_path, name, text)
    with pytest.raises(ValueError, match=finding) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no list of prompts"):
        read_prompts(tmp_path / "gone.txt")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts(tmp_path / "latin.txt")
    written(tmp_path, "deep.jsonl", "[" * 200_000)
    with pytest.raises(ValueError, match="line 1 is JSON nested too deeply"):
        read_prompts(tmp_path / "deep.jsonl")
