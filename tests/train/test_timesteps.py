"""Timesteps and weights: the law they promise, split draws that agree, defaults that change nothing."""
from dataclasses import replace
from functools import partial

import pytest
import torch
from train.training_data import fresh, write_data

from pixart.sampling.schedule import ALPHAS_CUMPROD, add_noise
from pixart.train.data import PreparedFolder
from pixart.train.diffusion import diffusion_loss
from pixart.train.draws import draw_rows, generator_for
from pixart.train.objectives import Diffusion, draw_noise
from pixart.train.timesteps import TIMESTEP_DISTRIBUTIONS, Timesteps
from pixart.train.weighting import WEIGHTINGS, timestep_weights

ALPHAS = torch.tensor(ALPHAS_CUMPROD, dtype=torch.float64)
SOME = [Timesteps(), Timesteps("laplace"), Timesteps("logit-normal", centre=-1.0, scale=0.8),
        Timesteps("range", low=250, high=800, share=0.7), Timesteps("range", low=3, high=3, share=1.0)]


def drawn(timesteps: Timesteps, count: int, seed: int = 0) -> torch.Tensor:
    return timesteps.draw(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("timesteps", SOME, ids=lambda t: f"{t.kind} {t.share}")
@pytest.mark.parametrize("stratified", [False, True])
def test_draws_follow_the_probabilities(timesteps, stratified):
    timesteps = replace(timesteps, stratified=stratified)
    t = drawn(timesteps, 200_000)
    assert t.dtype == torch.int64 and t.min() >= 0 and t.max() <= 999
    found = torch.bincount(t, minlength=1000).double() / len(t)
    assert timesteps.probabilities.sum().item() == pytest.approx(1)
    distance = (found.cumsum(0) - timesteps.probabilities.cumsum(0)).abs().max()
    assert distance < (1e-4 if stratified else 5e-3)      # Kolmogorov's: 1.63 / sqrt(n) = 0.0036 in 99 of 100


def test_the_default_draws_as_it_always_did():
    usual = torch.randint(1000, (9,), generator=torch.Generator().manual_seed(4))
    assert torch.equal(drawn(Timesteps(), 9, seed=4), usual)


def test_a_share_comes_from_the_range_and_the_rest_from_everywhere():
    probabilities = Timesteps("range", low=250, high=800, share=0.7).probabilities
    assert probabilities[250:801].sum().item() == pytest.approx(0.7 + 0.3 * 551 / 1000)
    assert probabilities[[0, 249, 801, 999]].tolist() == pytest.approx([0.3 / 1000] * 4)
    alone = drawn(Timesteps("range", low=250, high=800, share=1.0), 50_000)
    assert (alone.min(), alone.max()) == (250, 800)


def test_a_quantile_at_a_border_is_of_the_timestep_that_begins_there(monkeypatch):
    """The lowest of all, 0, is none of a timestep that is never to be drawn."""
    monkeypatch.setattr("pixart.train.timesteps.systematic", lambda count, generator: torch.tensor([0.0, 0.5]))
    assert drawn(Timesteps(stratified=True), 2).tolist() == [0, 500]
    assert drawn(Timesteps("range", low=250, high=251, share=1.0, stratified=True), 2).tolist() == [250, 251]


@pytest.mark.parametrize(("kind", "spread"), [("laplace", 2 ** 0.5), ("logit-normal", 1.0)])
def test_the_log_signal_to_noise_ratio_has_the_centre_and_the_spread_asked_for(kind, spread):
    """Laplace's standard deviation is sqrt(2) times its scale."""
    log_snr = torch.logit(ALPHAS)
    probabilities = Timesteps(kind, centre=-2.0, scale=0.5, share=1.0).probabilities
    mean = (probabilities * log_snr).sum()
    deviation = (probabilities * (log_snr - mean) ** 2).sum().sqrt()
    assert mean.item() == pytest.approx(-2.0, abs=0.01) and deviation.item() == pytest.approx(0.5 * spread, rel=0.02)


@pytest.mark.parametrize("kind", TIMESTEP_DISTRIBUTIONS)
@pytest.mark.parametrize("stratified", [False, True])
def test_parts_of_a_step_make_up_the_draw_of_the_whole(kind, stratified):
    timesteps = Timesteps(kind, stratified=stratified)
    whole = timesteps.draw(12, generator_for(1, 2))
    parts = [timesteps.draw(4, generator_for(1, 2, slice(i, i + 4), 12)) for i in (0, 4, 8)]
    assert torch.equal(torch.cat(parts), whole)


def test_stratified_draws_hit_every_stratum_once_and_each_image_sees_the_whole_law():
    even = Timesteps(stratified=True)
    for seed in range(50):
        t = drawn(even, 10, seed).sort().values
        assert ((t - t[0]) / 100 - torch.arange(10)).abs().max() <= 0.011
    first = torch.stack([drawn(even, 10, seed)[0] for seed in range(3000)])
    assert first.float().mean().item() == pytest.approx(499.5, abs=20) and first.min() < 20 and first.max() > 980


@pytest.mark.parametrize(("change", "message"), [
    ({"kind": "cosine"}, "use uniform, laplace, logit-normal, range"), ({"share": 0.0}, "share is 0.0"),
    ({"scale": 0.0}, "scale is 0.0"), ({"low": 900}, "low is 900, high 800"), ({"high": 1000}, "high 1000"),
    ({"centre": float("nan")}, "centre nan")], ids=str)
def test_impossible_timesteps_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Timesteps(**change)


def test_weights_are_the_closed_formulas_with_mean_one():
    a = ALPHAS
    snr = a / (1 - a)
    assert torch.equal(timestep_weights("none", 20.0), torch.ones(1000, dtype=torch.float64))
    for kind in WEIGHTINGS:
        assert timestep_weights(kind, 20.0).mean().item() == pytest.approx(1)
    v = timestep_weights("v", 20.0)
    torch.testing.assert_close(v / v[0], (1 + 1 / snr).clamp(max=20) / (1 + 1 / snr[0]))
    assert (v == v.max()).nonzero()[0].item() == int((1 + 1 / snr >= 20).nonzero()[0])
    low = timestep_weights("min-snr", 20.0)
    torch.testing.assert_close(low / low[-1], torch.where(snr > 5, 5 / snr, torch.ones_like(snr)))


def test_a_weight_multiplies_the_whole_loss_of_its_image(tmp_path):
    data, model = PreparedFolder(write_data(tmp_path)), fresh()
    batch = data.batch(torch.Generator().manual_seed(0), 4)
    spread = Timesteps("range", low=5, high=990, share=1.0)
    weighted = Diffusion(data, 0.0, spread, "v", 50.0)(model, model, batch, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    t = spread.draw(4, generator)
    draw_rows(torch.rand, (4,), generator)
    noise = draw_noise(batch, generator)
    output = model(add_noise(batch.latents, noise, t), t.float(), **batch.conditions(), learned_variance=True)
    losses = diffusion_loss(output, batch.latents, noise, t)
    torch.testing.assert_close(weighted, (losses * timestep_weights("v", 50.0).float()[t]).mean())
    plain = Diffusion(data, 0.0, spread)(model, model, batch, torch.Generator().manual_seed(3))
    assert torch.equal(plain, losses.mean()) and not torch.isclose(plain, weighted, rtol=0.01)


def test_the_default_objective_is_the_plain_loss_to_the_bit(tmp_path):
    data, model = PreparedFolder(write_data(tmp_path)), fresh()
    batch = data.batch(torch.Generator().manual_seed(0), 16)
    generator = torch.Generator().manual_seed(3)
    t = draw_rows(partial(torch.randint, 1000), (16,), generator)
    dropped = draw_rows(torch.rand, (16,), generator) < 0.1
    assert 0 < dropped.sum() < 8
    noise = draw_noise(batch, generator)
    output = model(add_noise(batch.latents, noise, t), t.float(), **data.without_caption(batch, dropped).conditions(),
                   learned_variance=True)
    want = diffusion_loss(output, batch.latents, noise, t).mean()
    assert torch.equal(Diffusion(data)(model, model, batch, torch.Generator().manual_seed(3)), want)


def test_an_unknown_weighting_is_refused(tmp_path):
    for weighting, cap, message in (("snr", 20.0, "use none, min-snr, v"), ("v", 0.5, "weighting_cap is 0.5")):
        with pytest.raises(ValueError, match=message):
            Diffusion(PreparedFolder(write_data(tmp_path)), weighting=weighting, weighting_cap=cap)
