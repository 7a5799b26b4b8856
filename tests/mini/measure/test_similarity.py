"""PSNR and SSIM against kornia's; judge-LPIPS by its properties."""
import pytest
import torch
from torch import nn

from pixart.mini import SHIPPED
from pixart.mini.judge import load_judge
from pixart.mini.measure.batches import BenchImages
from pixart.mini.measure.bench import Bench
from pixart.mini.measure.diversity import diversity
from pixart.mini.measure.similarity import judge_lpips, psnr, similarities, ssim


@pytest.fixture
def pair():
    draws = torch.Generator().manual_seed(0)
    a = torch.rand(3, 3, 40, 56, generator=draws)
    b = (a + 0.1 * torch.randn(a.shape, generator=draws) * torch.tensor([0.1, 1.0, 5.0]).view(3, 1, 1, 1)).clamp(0, 1)
    return a, b


def test_psnr_is_kornias(pair):
    from kornia.metrics import psnr as oracle
    want = [oracle(a[None], b[None], 1.0).item() for a, b in zip(*pair)]
    assert psnr(*pair).tolist() == pytest.approx(want, rel=1e-5)


def test_ssim_is_kornias(pair):
    from kornia.metrics import ssim as oracle
    want = [oracle(a[None].double(), b[None].double(), 11, padding="valid").mean().item() for a, b in zip(*pair)]
    assert ssim(*pair).tolist() == pytest.approx(want, rel=1e-4)


def test_equal_images(pair):
    a, _ = pair
    assert ssim(a, a).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert psnr(a, a).tolist() == pytest.approx([58.92] * 3, abs=0.01)
    judge = load_judge(SHIPPED.judge)
    assert judge_lpips(judge, a, a).abs().max() == 0


def test_judge_lpips_grows_with_the_difference_and_does_not_mind_the_order(pair):
    judge = load_judge(SHIPPED.judge)
    far, back = judge_lpips(judge, *pair), judge_lpips(judge, *reversed(pair))
    assert far[0] < far[1] < far[2] < 2 and torch.allclose(far, back)


class Plain(nn.Module):
    """A judge whose only map is the image itself."""

    def maps(self, images):
        return [images]


def test_judge_lpips_of_known_maps():
    """Colours at a right angle: |a / |a| - b / |b||^2 = 2; the same colour in half the light: 0."""
    red, green = (torch.zeros(1, 3, 4, 4) for _ in range(2))
    red[:, 0], green[:, 1] = 0.9, 0.3
    assert judge_lpips(Plain(), red, green).item() == pytest.approx(2)
    assert judge_lpips(Plain(), red, red / 2).item() == pytest.approx(0, abs=1e-6)
    half = red.clone()
    half[..., :2] = green[..., :2]
    assert judge_lpips(Plain(), red, half).item() == pytest.approx(1)


def test_all_three_in_the_order_of_the_sentences():
    one = BenchImages.of([torch.full((3, 128, 128), 0.5)] * 7)
    other = BenchImages.of([torch.full((3, 128, 128), 0.5 + 0.01 * i) for i in range(7)])
    found = similarities(load_judge(SHIPPED.judge), one, other, 2, torch.device("cpu"))
    assert set(found) == {"psnr", "ssim", "lpips"} and found["psnr"].diff().max() < 0


class Repeats:
    """Gives the same image in every run, or another one."""

    name = "repeats"

    def __init__(self, other: bool) -> None:
        self.other, self.runs = other, []

    def generate(self, bench):
        self.runs.append(bench.prompts.run)
        value = 0.2 + 0.2 * bench.prompts.run * self.other
        return BenchImages.of([torch.full((3, 16, 16), value) * torch.tensor([1.0, value, 0.1]).view(3, 1, 1)
                               for _ in bench.prompts.captions])


def test_diversity_is_zero_where_all_images_are_alike():
    bench = Bench.open(SHIPPED, 6, 7)
    for other in (False, True):
        method = Repeats(other)
        found = diversity(Plain(), method, bench, method.generate(bench))
        assert method.runs == [0, 1, 2, 3]          # no run is compared with itself
        assert len(found) == 6 and bool((found > 0.01).all()) == other and bool((found == 0).all()) != other
