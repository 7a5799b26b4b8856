"""HED against the official network's outputs, against an independent package, and against wrong files."""
import ast
import hashlib
import importlib.util
from pathlib import Path

import golden_cases
import pytest
import torch
from safetensors.torch import save_file

from pixart.control import HED, hed_edges, load_hed
from pixart.control.hed import HED_FILE
from pixart.weights.errors import CheckpointError, CheckpointNotFound


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def recipe_weights(recipe: dict) -> dict[str, torch.Tensor]:
    """The golden file's weights from their seed."""
    generator, weights = torch.Generator().manual_seed(recipe["seed"]), {}
    for entry in recipe["tensors"]:
        tensor = (torch.rand(entry["shape"], generator=generator) * 2 - 1) * entry["bound"]
        weights[entry["name"]] = tensor + entry["offset"] if entry["offset"] else tensor
        assert hashlib.sha256(weights[entry["name"]].numpy().tobytes()).hexdigest() == entry["sha256"], entry["name"]
    return weights


@pytest.fixture(scope="module")
def golden() -> golden_cases.Golden:
    return golden_cases.load("09_hed")


@pytest.fixture(scope="module")
def weights(golden) -> dict[str, torch.Tensor]:
    return recipe_weights(golden.meta["recipe"])


@pytest.fixture(scope="module")
def network(weights) -> HED:
    network = HED()
    network.load_state_dict(weights, strict=True)
    return network.eval().requires_grad_(False)


def test_names_and_number_of_parameters(golden):
    network = HED()
    assert sum(parameter.numel() for parameter in network.parameters()) == 14_716_168
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == {entry["name"]: entry["shape"] for entry in golden.meta["recipe"]["tensors"]}


@pytest.mark.parametrize("case", ("small", "tall"))
def test_golden(golden, network, case):
    rgb, want = golden.inputs[case]["rgb"].float(), golden.outputs[case]
    for index, side in enumerate(network.sides(rgb), 1):
        golden_cases.assert_matches(side, want[f"side{index}"], golden.meta["tolerance"]["sides"])
    golden_cases.assert_matches(network(rgb), want["edge"], golden.meta["tolerance"])
    golden_cases.assert_matches(hed_edges(network, rgb / 255), want["edge"], golden.meta["tolerance"])


def package_network() -> torch.nn.Module:
    """The network class of controlnet-aux, taken out of its source file.

    Importing that package would import every preprocessor it has, OpenCV, timm and scikit-image among them.
    """
    spec = importlib.util.find_spec("controlnet_aux")
    if spec is None:
        pytest.skip("the package controlnet-aux is not installed")
    tree = ast.parse((Path(spec.origin).parent / "hed" / "__init__.py").read_text(encoding="utf-8"))
    wanted = ("DoubleConvBlock", "ControlNetHED_Apache2")
    tree.body = [item for item in tree.body if isinstance(item, ast.ClassDef) and item.name in wanted]
    names: dict = {"torch": torch}
    exec(compile(tree, spec.origin, "exec"), names)         # noqa: S102 - one class of an installed package
    return names["ControlNetHED_Apache2"]().eval()


@pytest.mark.parametrize("size", ((64, 96), (51, 70), (16, 16)))
def test_equals_the_network_of_controlnet_aux(size):
    torch.manual_seed(3)
    theirs = package_network().requires_grad_(False)
    theirs.norm.uniform_(80, 140)
    ours = HED()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    rgb = noise(2, 3, *size) * 255
    sides = theirs(rgb)
    for got, want in zip(ours.sides(rgb), sides, strict=True):
        assert (got - want).abs().max() <= 1e-5 * max(1, want.abs().max())
    want = torch.stack([torch.nn.functional.interpolate(side.double(), size, mode="bilinear") for side in sides])
    assert (ours(rgb) - want.mean(0).sigmoid()).abs().max() <= 1e-5


@pytest.mark.parametrize("size", ((1, 1), (3, 40), (15, 17), (33, 63)))
def test_any_size_and_any_channels(network, size):
    grey = noise(1, 1, *size)
    maps = hed_edges(network, grey)
    assert maps.shape == grey.shape and maps.dtype == torch.float32 and 0 <= maps.min() <= maps.max() <= 1
    rgb = grey.expand(-1, 3, -1, -1)
    assert torch.equal(hed_edges(network, rgb), maps)
    assert torch.equal(hed_edges(network, torch.cat([rgb, torch.ones_like(grey)], 1)),
                       hed_edges(network, 0.5 + (rgb - 0.5)))


def test_small_images_are_continued_by_their_last_pixel(network):
    small = noise(1, 3, 10, 20)
    larger = torch.cat([small, small[:, :, -1:].expand(-1, -1, 6, -1)], 2)
    assert torch.equal(hed_edges(network, small), hed_edges(network, larger)[:, :, :10])


def test_transparent_parts_count_as_grey(network):
    colours, alpha = noise(1, 3, 32, 32), (noise(1, 1, 32, 32, seed=1) > 0.5).float()
    want = hed_edges(network, torch.where(alpha == 1, colours, torch.tensor(0.5)))
    torch.testing.assert_close(hed_edges(network, torch.cat([colours, alpha], 1)), want, atol=1e-5, rtol=0)


def test_a_map_does_not_depend_on_its_batch(network):
    images, heard = noise(3, 3, 37, 41), []
    before = images.clone()
    together = hed_edges(network, images, lambda done, total: heard.append((done, total)))
    assert torch.equal(together, torch.cat([hed_edges(network, image[None]) for image in images]))
    assert heard == [(1, 3), (2, 3), (3, 3)] and torch.equal(images, before)


def test_a_batch_can_be_stopped(network):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        hed_edges(network, noise(2, 3, 16, 16), stop)


@pytest.mark.parametrize("form", ("pth", "old pth", "state_dict", "safetensors"))
def test_files_are_loaded_in_float32(tmp_path, weights, form):
    half = {name: tensor.half() for name, tensor in weights.items()}
    path = tmp_path / ("hed.safetensors" if form == "safetensors" else HED_FILE)
    if form == "safetensors":
        save_file(half, path)
    else:
        torch.save({"state_dict": half} if form == "state_dict" else half, path,
                   _use_new_zipfile_serialization=form != "old pth")
    loaded = load_hed(path).state_dict()
    assert {name: tensor.dtype for name, tensor in loaded.items()} == dict.fromkeys(weights, torch.float32)
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in half.items())


def sniklaus(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": torch.zeros(1) for name in ("VggOne.0.weight", "VggOne.0.bias", "Combine.0.weight")}


@pytest.mark.parametrize("prefix", ("module", "net"))
def test_the_other_port_is_refused_by_name(tmp_path, prefix):
    path = tmp_path / "network-bsds500.pth"
    torch.save(sniklaus(prefix), path)
    with pytest.raises(CheckpointError, match="pytorch-hed") as caught:
        load_hed(path)
    assert str(path) in str(caught.value) and HED_FILE in str(caught.value)


def wrong_files(weights: dict[str, torch.Tensor]) -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    first = "block1.convs.0.weight"
    return {
        "a linear layer": ({"proj.weight": torch.zeros(2, 2)}, "37 tensors missing, the first is block1.convs.0.bias"),
        "one missing": ({name: tensor for name, tensor in weights.items() if name != first}, f"1 tensors .*{first}"),
        "one more": ({**weights, "fuse.weight": torch.zeros(1)}, "1 not known, the first is fuse.weight"),
        "a shape": ({**weights, first: torch.zeros(64, 1, 3, 3)}, r"\(64, 1, 3, 3\) instead of \(64, 3, 3, 3\)"),
    }


@pytest.mark.parametrize("kind", ("a linear layer", "one missing", "one more", "a shape"))
def test_other_files_are_refused(tmp_path, weights, kind):
    tensors, words = wrong_files(weights)[kind]
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_hed(path)
    assert "other.safetensors" in str(caught.value) and f"Expected the edge network {HED_FILE}" in str(caught.value)


def test_missing_truncated_and_unsafe_files_are_refused(tmp_path, weights):
    with pytest.raises(CheckpointNotFound, match=f"no such file.*Expected the edge network {HED_FILE}"):
        load_hed(tmp_path / HED_FILE)
    whole = tmp_path / "whole.pth"
    torch.save(weights, whole)
    cut = tmp_path / HED_FILE
    cut.write_bytes(whole.read_bytes()[:1_000_000])
    with pytest.raises(CheckpointError, match="truncated or damaged.*Expected the edge network"):
        load_hed(cut)
    torch.save({"model": pytest.Item, **weights}, cut)
    with pytest.raises(CheckpointError, match="more than weights"):
        load_hed(cut)
