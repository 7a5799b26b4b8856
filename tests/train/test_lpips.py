"""LPIPS as the package of that name computes it, on random weights, and as DMD's regression."""
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pixart.checkpoint import CheckpointError, read_config
from pixart.mini import SHIPPED
from pixart.train.image_distance import image_distance
from pixart.train.lpips import LINEAR, NETWORK, VGG_STAGES, Lpips, load_lpips
from pixart.train.method_settings import DmdMethod


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def written(folder: Path, classifier: bool = True) -> dict[str, dict[str, Tensor]]:
    """Both files with random weights, in the published names; what the network is not made of lies there too."""
    torch.manual_seed(0)
    layers = {f"features.{name}": tensor for name, tensor in Lpips().features.state_dict().items()}
    if classifier:
        layers["classifier.6.bias"] = torch.zeros(1000)
    linear = {f"lin{number}.model.1.weight": torch.rand(1, stage[-1], 1, 1) for number, stage in enumerate(VGG_STAGES)}
    torch.save(layers, folder / NETWORK, _use_new_zipfile_serialization=False)      # as the published one
    torch.save(linear, folder / LINEAR)
    return {NETWORK: layers, LINEAR: linear}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips")
    written(path)
    return path


def by_hand(files: Path, a: Tensor, b: Tensor) -> Tensor:
    """The paper's equation 1 in float64, one convolution after the other."""
    layers, linear = (torch.load(files / name, weights_only=True) for name in (NETWORK, LINEAR))
    shift, scale = (torch.tensor(values).double().view(1, 3, 1, 1) for values in (
        (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    xs, total, place = [(each.double() - shift) / scale for each in (a, b)], torch.zeros(len(a)).double(), 0
    for number, convolutions in enumerate((2, 2, 3, 3, 3)):
        if number:
            xs, place = [nn.functional.max_pool2d(x, 2) for x in xs], place + 1
        for _ in range(convolutions):
            weight, bias = (layers[f"features.{place}.{name}"].double() for name in ("weight", "bias"))
            xs, place = [nn.functional.conv2d(x, weight, bias, padding=1).relu() for x in xs], place + 2
        unit = [x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in xs]
        weight = linear[f"lin{number}.model.1.weight"].double()
        total += ((unit[0] - unit[1]) ** 2 * weight).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("size", [(32, 32), (17, 40)])
def test_it_is_the_equation_of_the_paper(folder, size):
    a, b = images(2, 3, *size), images(2, 3, *size, seed=1)
    torch.testing.assert_close(load_lpips(folder)(a, b).double(), by_hand(folder, a, b), rtol=1e-4, atol=1e-7)


def test_it_is_what_the_package_computes(folder, monkeypatch):
    """The package's own modules, with a torchvision of one network that has our weights."""
    layers = torch.load(folder / NETWORK, weights_only=True)

    def vgg16(pretrained: bool = False) -> object:
        network = Lpips()
        network.features.load_state_dict({name.removeprefix("features."): tensor for name, tensor in layers.items()
                                          if name.startswith("features.")})
        return types.SimpleNamespace(features=network.features)
    vision, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    vision.models, models.vgg16 = models, vgg16
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    lpips = pytest.importorskip("lpips", exc_type=ImportError)
    theirs = lpips.LPIPS(net="vgg", verbose=False, model_path=str(folder / LINEAR))
    a, b = images(2, 3, 40, 32), images(2, 3, 40, 32, seed=1)
    torch.testing.assert_close(load_lpips(folder)(a, b), theirs(a, b).flatten(), rtol=1e-5, atol=1e-6)


def test_equal_images_have_no_distance_and_others_a_gradient(folder):
    network, a = load_lpips(folder), images(2, 3, 16, 16).requires_grad_()
    assert not network(a, a.detach().clone()).any()
    black = torch.zeros_like(a).requires_grad_()
    network(black, torch.zeros_like(a)).sum().backward()
    assert black.grad.isfinite().all()
    network(a, images(2, 3, 16, 16, seed=1)).sum().backward()
    assert a.grad.isfinite().all() and a.grad.any()
    with pytest.raises(ValueError, match="sides of at least 16"):
        network(images(1, 3, 8, 16), images(1, 3, 8, 16))


def broken(name: str, change) -> object:
    def breaks(folder: Path) -> None:
        state = written(folder)[name]
        change(state)
        torch.save(state, folder / name)
    return breaks


@pytest.mark.parametrize("breaks, error, message", [
    (lambda folder: (written(folder), (folder / LINEAR).unlink()), FileNotFoundError, "vgg.pth of the package lpips"),
    (broken(NETWORK, lambda state: state.pop("features.0.weight")), CheckpointError, "it lacks 0.weight"),
    (broken(LINEAR, lambda state: state.update({"lin2.model.1.weight": torch.zeros(1, 3, 1, 1)})), CheckpointError,
     "1 tensors have the wrong shape, such as 2 with"),
    (broken(NETWORK, lambda state: state["features.28.bias"].fill_(float("nan"))), CheckpointError,
     "28.bias"),
])
def test_files_that_are_missing_or_wrong_are_named(breaks, error, message, tmp_path):
    breaks(tmp_path)
    with pytest.raises(error, match=message):
        load_lpips(tmp_path)


# -- in DMD ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seen", ["lpips", "judge"])
def test_the_distance_of_latents_is_that_of_their_images(seen, folder):
    """Zero for equal ones, and its gradient reaches the first alone."""
    distance = image_distance(seen, folder if seen == "lpips" else None, None, read_config(SHIPPED.teacher))
    a, b = (images(2, 4, 8, 8, seed=seed).requires_grad_() for seed in range(2))
    found = distance(a, b)
    assert found.shape == (2,) and (found > 0).all() and not distance(a, a.detach().clone()).any()
    found.sum().backward()
    assert a.grad.any() and b.grad is None
    assert not any(parameter.requires_grad for parameter in distance.parameters())


@pytest.mark.parametrize("wish, message", [
    ({"regression_on": "pixels"}, "regression_on is 'pixels'; use latents, lpips, judge"),
    ({"regression": 0.0, "regression_on": "judge"}, "regression is 0"),
    ({"lpips": Path("x")}, "lpips has no effect with regression_on = latents"),
    ({"vae": Path("x")}, "vae has no effect"),
])
def test_what_cannot_be_meant_is_refused(wish, message):
    with pytest.raises(ValueError, match=message):
        DmdMethod(**wish)


def test_missing_parts_are_asked_for():
    config = read_config(SHIPPED.teacher)
    with pytest.raises(ValueError, match="method.lpips is needed"):
        image_distance("lpips", None, None, config)
    with pytest.raises(ValueError, match="method.vae is needed"):
        image_distance("judge", None, None, replace(config, caption_width=4096))
    assert image_distance("latents", None, None, config) is None
