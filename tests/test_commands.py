"""What the commands share: progress on the terminal, and values of options."""
import argparse
import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pixart.__main__ import HELP, KERNELS, is_no_kernel_hint, main
from pixart.__main__ import parser as parser_of
from pixart.commands.arguments import size
from pixart.commands.numbers import finite_number, number_from_zero, positive_number, positive_whole, whole_from_zero
from pixart.commands.places import require_file_place, require_folder_place
from pixart.commands.progress import Bars
from pixart.train.command import METHOD_HELP, method_parser

ROOT = Path(__file__).resolve().parents[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    with Bars() as bars:
        for stage, total in (("looking", 0), ("sampling", 4), ("decoding", 2)):
            for done in range(1, max(total, 3) + 1):
                bars(stage, min(done, total or done), total)
    return stream.getvalue()


def test_each_stage_has_a_bar_on_a_terminal(monkeypatch):
    shown = told(Terminal(), monkeypatch)
    assert "looking: 0it" in shown and "sampling: 100%" in shown and "4/4" in shown and "decoding: 100%" in shown


def test_nothing_is_shown_where_nobody_watches(monkeypatch):
    assert told(io.StringIO(), monkeypatch) == ""


def test_a_bar_is_closed_when_the_work_ends_badly(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(InterruptedError), Bars() as bars:
        bars("sampling", 1, 4)
        raise InterruptedError
    assert bars._bar is None


def test_values_are_read_and_refused():
    assert size("1024X768") == (1024, 768) and positive_whole("3") == 3 and finite_number("-1e-3") == -0.001
    assert whole_from_zero("0") == 0 and number_from_zero("0") == 0 and positive_number("1e-3") == 0.001
    for parse, texts in ((size, ("1024", "8x8", "64x", "x", "9000x64", "-64x64")),
                         (positive_whole, ("0", "-1", "1.5", "")), (whole_from_zero, ("-1", "1.5", "")),
                         (finite_number, ("nan", "inf", "one")), (number_from_zero, ("-0.5", "nan", "inf")),
                         (positive_number, ("0", "-1", "nan", "inf"))):
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError, match="must be|is not a size"):
                parse(text)


def test_only_the_hint_about_an_optional_kernel_is_left_out(caplog):
    logger = logging.getLogger(KERNELS)
    logger.addFilter(is_no_kernel_hint)
    try:
        logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no module")
        logger.warning("something else")
    finally:
        logger.removeFilter(is_no_kernel_hint)
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_letters_that_the_output_cannot_take_cost_nothing(tmp_path):
    """On Windows a redirected output takes few letters: the image was made, and lost for a line about it."""
    words = ["generate", "a red \U0001f98a", "--steps", "1", "--size", "32x32", "--device", "cpu", "--out",
             str(tmp_path / "x.png")]
    done = subprocess.run([sys.executable, "-m", "pixart", *words], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert "no tokens for: \\U0001f98a" in done.stdout and (tmp_path / "x.png").is_file()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(tmp_path):
    tmp_path.chmod(0o500)
    for require, place in ((require_file_place, tmp_path / "x.png"), (require_folder_place, tmp_path)):
        with pytest.raises(PermissionError, match="cannot be written to; choose another"):
            require(place)


@pytest.mark.parametrize("words", [
    "flexdit {0}/model.safetensors --out {0}/model.safetensors", "encode x --t5 {0} --out {0}/model.safetensors",
    "quantize {0} --to float8_e4m3fn --out {0}/model.safetensors",
    "quantize {0}/model.safetensors --to float8_e4m3fn --out {0}/x.safetensors --report {0}/model.safetensors",
    "generate x --control {0}/model.safetensors --out {0}/model.safetensors"])
def test_what_is_read_is_never_written_over(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"my only copy")
    monkeypatch.setattr(sys, "argv", ["pixart", *words.format(tmp_path).split()])
    assert main() == 1 and re.search("is (what|a file in a folder that) is read .*would be replaced",
                                     capsys.readouterr().err.replace(",", ""))
    assert (tmp_path / "model.safetensors").read_bytes() == b"my only copy"


@pytest.mark.parametrize("words", ["mini evaluate", "mini diagnose", "mini build --work {0} --weights {0}",
                                   "mini data --work {}", "ecad search --work {}"])
def test_a_device_that_does_not_exist_is_one_message(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pixart", *words.format(tmp_path).split(), "--device", "foo"])
    assert main() == 1 and "'foo' is not a device" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--out {}/there", "--sheet {}/x.foo", "--edge-sheet {}"])
def test_results_that_have_no_place_are_refused_before_anything_is_measured(words, tmp_path, monkeypatch, capsys):
    (tmp_path / "there").touch()
    monkeypatch.setattr("pixart.mini.evaluate.evaluate", None)
    monkeypatch.setattr(sys, "argv", ["pixart", "mini", "evaluate", *words.format(tmp_path).split()])
    assert main() == 1 and "error: " in capsys.readouterr().err


def test_memory_that_is_not_enough_is_one_message(monkeypatch, capsys):
    def run(args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")
    monkeypatch.setattr("pixart.__main__.run_of", lambda name: run)
    monkeypatch.setattr(sys, "argv", ["pixart", "encode", "x", "--t5", "t5"])
    assert main() == 1
    assert "error: not enough memory (CUDA out of memory. Tried to allocate 2.00 GiB.)" in capsys.readouterr().err


def options(parser: argparse.ArgumentParser, words: str = "pixart") -> Iterator[tuple[str, argparse.Action]]:
    """Every option and argument, of commands inside of commands too, with the words that lead there."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from options(inner, f"{words} {name}")
        else:
            yield words, action


@pytest.mark.parametrize("chosen", [*HELP, None])
def test_help_says_what_every_option_means(chosen):
    found = list(options(parser_of(chosen)))
    assert len(found) > 20
    assert not [f"{words} {action.dest}" for words, action in found if not action.help or len(action.help) < 8]
    own = [action for words, action in found if words.split()[1:2] == [chosen] and action.dest != "help"]
    assert own or chosen is None


@pytest.mark.parametrize("chosen", [*HELP, None])
def test_numbers_of_options_are_finite(chosen):
    """`mini build --minutes inf` ended in a traceback, nan gave every stage five seconds."""
    numbers = [action for _, action in options(parser_of(chosen)) if action.type in (float, finite_number,
                                                                                     number_from_zero, positive_number)]
    assert not [action.dest for action in numbers if action.type is float]
    assert numbers or chosen in ("encode", "download", "ecad")


@pytest.mark.parametrize("method", METHOD_HELP)
def test_help_of_training_says_what_every_field_means(method):
    found = list(options(method_parser(method)))
    assert len(found) > 20 and not [action.dest for _, action in found if not action.help or len(action.help) < 8]


def test_a_random_seed_is_told_and_can_be_used_again_and_minus_one_is_a_seed_like_others(tmp_path, monkeypatch, capsys):
    """Elsewhere -1 asks for a random seed; here it is one of the negative seeds, and nothing gave a random one."""
    def generate(name: str, seed: object) -> tuple[bytes, str]:
        out = tmp_path / f"{name}.png"
        monkeypatch.setattr(sys, "argv", ["pixart", "generate", "a red circle", "--seed", str(seed), "--steps", "1",
                                          "--size", "32x32", "--device", "cpu", "--out", str(out)])
        assert main() == 0
        return out.read_bytes(), capsys.readouterr().out

    (first, told), (other, _) = generate("a", "random"), generate("b", "random")
    seed = re.match(r"seed (\d+)\n", told)[1]
    assert f"Seed: {seed}, ".encode() in first and int(seed) < 2 ** 32
    again, told = generate("again", seed)
    assert again == first != other and not told.startswith("seed")
    assert generate("minus", -1)[0] == generate("minus-again", -1)[0]
    assert b"Seed: -1, " in (tmp_path / "minus.png").read_bytes()
    with pytest.raises(SystemExit):
        generate("x", "any")
    assert "'any' must be a whole number, or random" in capsys.readouterr().err
