"""The four trials: the denoiser on a known distribution, the probe on known features, and all of them at once."""
import json

import pytest
import torch

from pixart.mini.diagnose import diagnose, tables, write_diagnosis
from pixart.mini.diagnose.finish import ddim, ddim_times, signal_to_noise
from pixart.mini.diagnose.probe import fit_probe, shares
from pixart.mini.scenes import ATTRIBUTES
from pixart.sampling.schedule import ALPHAS_CUMPROD, add_noise


def test_times_go_down_to_the_last_noise():
    assert ddim_times(999)[:3] == [999, 949, 899] and len(ddim_times(999)) == 20
    assert ddim_times(200) == list(range(200, 0, -10))
    assert ddim_times(3) == [3, 2, 1] and ddim_times(0) == []


def test_ddim_is_the_step_of_diffusers():
    from diffusers import DDIMScheduler
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False,
                              set_alpha_to_one=True, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    draws = torch.Generator().manual_seed(0)
    x = noise = torch.randn(2, 4, 6, 6, generator=draws)
    weight = torch.randn(4, 4, 1, 1, generator=draws) / 2

    def model(x, t):
        return torch.nn.functional.conv2d(x, weight) * (1 + t.view(-1, 1, 1, 1) / 1000)
    times = scheduler.timesteps.tolist()
    for t in times:
        x = scheduler.step(model(x, torch.tensor([float(t)] * 2)), t, x).prev_sample
    torch.testing.assert_close(ddim(model, noise, times), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", [200, 650, 999])
def test_a_perfect_denoiser_finds_the_image_again(start):
    draws = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 4, 4, generator=draws), torch.randn(2, 4, 4, 4, generator=draws)
    x = add_noise(x0, noise, torch.tensor([start, start]))

    def perfect(x, t):
        kept = torch.tensor(ALPHAS_CUMPROD)[t.long()].view(-1, 1, 1, 1)
        return (x - kept.sqrt() * x0) / (1 - kept).sqrt()
    torch.testing.assert_close(ddim(perfect, x, ddim_times(start)), x0, rtol=1e-3, atol=1e-3)


def test_signal_to_noise_of_the_schedule():
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    for t in (0, 350, 999):
        assert signal_to_noise(t) == pytest.approx((kept[t] / (1 - kept[t])).item(), rel=1e-9)


def features_of(rows: int, bound: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two tokens, each a thing with one of six shapes; `bound`: a token also tells whether it is the second thing."""
    draws = torch.Generator().manual_seed(rows)
    shapes = torch.randint(6, (rows, 2), generator=draws)
    features = torch.zeros(rows, 3, 8)
    for k in range(2):
        features[torch.arange(rows), k, shapes[:, k]] = 1
    if bound:
        features[:, 1, 6] = 1
    swap = torch.rand(rows, generator=draws) < 0.5                    # which token comes first says nothing
    features[swap] = features[swap][:, [1, 0, 2]]
    wanted = torch.full((rows, len(ATTRIBUTES)), -100)
    wanted[:, list(ATTRIBUTES).index("second shape")] = shapes[:, 1]
    return features, torch.tensor([True, True, False]).expand(rows, 3), wanted


def test_the_probe_finds_what_features_bind_and_nothing_else():
    number = list(ATTRIBUTES).index("second shape")
    bound, loose = (shares(fit_probe(features_of(6000, kind), 0), features_of(1000, kind))[number]
                    for kind in (True, False))
    assert bound > 0.98 and 0.4 < loose < 0.7                 # a guess between two things: 1/2 + 1/12


@pytest.fixture(scope="module")
def found():
    return diagnose(3, starts=(0, 200), captions=(1000, 300))


def test_all_four_trials(found):
    assert tuple(found.finished) == (0, 200) and found.real.accuracy["all"] > 0.9
    assert found.finished[0].accuracy["all"] > 0.9                                # the autoencoder alone
    assert len(found.bins) == 10 and found.bins[0].loss > 3 * found.bins[9].loss
    assert {"shape", "second colour", "background"} <= set(found.probed)
    assert found.probed["background"][1] > 0.9


def test_files_of_the_diagnosis(found, tmp_path):
    pytest.importorskip("matplotlib")
    made = write_diagnosis(found, tmp_path / "out")
    assert [path.name for path in made] == ["diagnosis.json", "diagnosis.md", "diagnosis.png"]
    assert json.loads(made[0].read_text())["finished"]["0"]["all"] == found.finished[0].accuracy["all"]
    assert made[1].read_text(encoding="utf-8").strip() == tables(found)
    assert "| 200 | 1.9 |" in tables(found)
