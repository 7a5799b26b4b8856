"""The examples of docs/python.md run as they stand, and the names of the package are what it says they are."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import pixart

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "python.md"


def examples() -> list[tuple[int, str]]:
    """Line number and text of every example that is to be run."""
    text = PAGE.read_text(encoding="utf-8")
    return [(text[:found.start()].count("\n") + 1, found[1])
            for found in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, dict]:
    """All examples in turn, in one folder with one set of names, as a reader would try them."""
    folder, names = tmp_path_factory.mktemp("docs"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line, code in examples():
            exec(compile("\n" * line + code, str(PAGE), "exec"), names)     # noqa: S102 - with the page's line numbers
    return folder, names


def test_every_example_runs_and_writes_its_images(ran):
    folder, names = ran
    drawn = {path.name for path in folder.glob("*.png")}
    promised = set(re.findall(r'"([\w-]+\.png)"', "".join(code for _, code in examples())))
    assert len(examples()) >= 8 and promised <= drawn
    for path in folder.glob("*.png"):
        assert len(Image.open(path).convert("L").getcolors() or range(300)) > 20, f"{path.name} is empty"


def test_the_loop_of_the_page_gives_what_the_pipeline_gives(ran):
    """With the same seed, in float32."""
    _, names = ran
    pipe = pixart.Pipeline.open(device="cpu", dtype=torch.float32)
    want = pipe("a large red circle in the centre on a white background", steps=4, seed=1).pixels
    got = pixart.decode(pixart.load_vae(names["SHIPPED"].vae), names["latent"], names["config"].latent_scale)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_what_the_comments_of_the_page_say_is_so(ran):
    _, names = ran
    page = PAGE.read_text(encoding="utf-8")
    drawn = names["Pipeline"].open(device="cpu")("a large red circle in the centre on a white background", steps=1)
    assert f"# {drawn.reports[0].summary}" in page and f"# {drawn.pixels.shape}" in page


def test_the_table_of_samplers_is_that_of_the_library():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(rows) == {name: "yes" if s.guided else "no" for name, s in pixart.SAMPLERS.items()}


def test_every_exported_name_is_there_and_listed_once():
    for name in pixart.__all__:
        assert getattr(pixart, name) is not None
    assert len(set(pixart.__all__)) == len(pixart.__all__) and set(pixart.__all__) <= set(dir(pixart))
    with pytest.raises(AttributeError, match="nonsense"):
        pixart.nonsense  # noqa: B018


def test_type_checkers_are_told_the_same_names_as_python():
    tree = ast.parse((ROOT / "pixart" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told == pixart._LAZY
    assert set(pixart._LAZY) == set(pixart.__all__) - {"LATENT_SCALE", "VARIANTS", "KVCompression", "PixArtConfig",
                                                       "__version__"}


def test_importing_the_package_loads_nothing_heavy():
    program = ("import sys, pixart; assert pixart.__version__; "
               "print(*({'torch', 'transformers', 'diffusers', 'numpy', 'PIL'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_the_help_of_the_program_loads_nothing_heavy():
    program = ("import sys; sys.argv = ['pixart', '--help']\nfrom pixart.__main__ import main\n"
               "try: main()\nexcept SystemExit: pass\n"
               "print(*({'torch', 'transformers', 'diffusers'} & set(sys.modules)), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.split() == [] and "generate" in done.stdout


def test_version_script_and_types_are_those_of_the_package_file():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf'^version = "{re.escape(pixart.__version__)}"$', text, re.MULTILINE)
    assert 'pixart = "pixart.__main__:main"' in text and '"py.typed"' in text
    assert (ROOT / "pixart" / "py.typed").is_file()


@pytest.mark.parametrize("command", ["generate", "encode", "prepare"])
def test_every_option_says_what_it_means(command):
    import argparse

    from pixart.__main__ import parser
    chosen = next(action for action in parser(command)._actions if isinstance(action, argparse._SubParsersAction))
    for action in chosen.choices[command]._actions:
        assert action.help and len(action.help) > 3, f"{command} {action.option_strings or action.dest}"
