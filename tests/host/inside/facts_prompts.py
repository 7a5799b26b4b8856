"""PixArt Prompt List: lists in the input folder, and no way out of it."""
import os
from pathlib import Path

import folder_paths
from support import node, refusal

ROOT = Path(folder_paths.get_input_directory())
ESCAPES = ("../secret.txt", "..\\secret.txt", "lists/../../secret.txt", "lists\\..\\..\\secret.txt",
           "/etc/hostname.txt", "{secret}", "C:\\secret.txt", "\\\\server\\share\\secret.txt", "secret.txt\0.csv", ".",
           "", "lists", "link.txt", "linked/secret.txt", "file:///secret.txt", "~/secret.txt", "x" * 5000 + ".txt")


def write(name: str, text: str) -> None:
    path = ROOT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(file: str, start: int = 1, count: int = 100, seed: int = 5) -> tuple[list, ...]:
    return node("PixArtPromptList")().read(file, start, count, seed, 64, 32)


def test_a_line_is_an_image_with_what_the_line_leaves_open_filled_in():
    write("lists/a.csv", "prompt,seed,width,height,negative\na cat,,,,\na dog,9,128,256,fog\na bird,,,,\n")
    assert read("lists/a.csv") == (["a cat", "a dog", "a bird"], [5, 9, 7], [64, 128, 64], [32, 256, 32],
                                   ["", "fog", ""])
    assert read("lists\\a.csv", 3, 5)[:2] == (["a bird"], [7])
    assert "start is 4, the list has 3" in refusal(read, "lists/a.csv", 4)
    assert "lists/a.csv" in node("PixArtPromptList").INPUT_TYPES()["required"]["file"][0]
    assert node("PixArtPromptList").OUTPUT_IS_LIST == (True,) * 5


def test_a_list_comes_with_the_extension_and_ones_own_of_its_name_goes_before_it():
    name = "pixart-mini/six.csv"
    assert name in node("PixArtPromptList").INPUT_TYPES()["required"]["file"][0]
    prompts, seeds, *sides, _ = read(name)
    assert len(prompts) == 6 and seeds == [1, 2, 3, 4, 5, 6] and set(zip(*sides)) == {(128, 128), (96, 160), (160, 96)}
    write(name, "prompt\nmine\n")
    assert read(name)[0] == ["mine"]
    assert node("PixArtPromptList").INPUT_TYPES()["required"]["file"][0].count(name) == 1
    (ROOT / name).unlink()


def test_the_last_seed_is_followed_by_the_first():
    write("two.txt", "a\nb\n")
    assert read("two.txt", seed=2 ** 64 - 1)[1] == [2 ** 64 - 1, 0]


def test_a_changed_file_runs_again_and_a_bad_one_names_its_line():
    write("b.jsonl", '"a"\n')
    before = node("PixArtPromptList").IS_CHANGED("b.jsonl")
    assert before == node("PixArtPromptList").IS_CHANGED("b.jsonl")
    write("b.jsonl", '"a"\n{"seed": 1}\n')
    assert before != node("PixArtPromptList").IS_CHANGED("b.jsonl")
    assert "line 2 has no prompt" in refusal(read, "b.jsonl")


def test_nothing_outside_of_the_input_folder_is_read():
    secret = ROOT.parent / "secret.txt"
    secret.write_text("a secret")
    (ROOT / "lists").mkdir(exist_ok=True)
    for link, target in (("link.txt", secret), ("linked", ROOT.parent)):
        if not (ROOT / link).exists():
            os.symlink(target, ROOT / link)
    for name in ESCAPES:
        name = name.format(secret=secret)
        said = node("PixArtPromptList").VALIDATE_INPUTS(name)
        assert isinstance(said, str) and "no such list is in the input folder" in said and str(ROOT) not in said, name
        assert "there is no list of prompts" in refusal(read, name), name
        assert node("PixArtPromptList").IS_CHANGED(name) == "missing"
