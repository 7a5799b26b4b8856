"""Noise optimisation: the published update, the best that is really kept, what is dropped, what it is measured by."""
import logging
import math

import pytest
import torch
from torch import nn

from pixart.reward.optimise import NoiseRecipe, clipped, optimise_noise, radial
from pixart.reward.protocol import WeightedSum
from pixart.reward.record import history_summary
from pixart.reward.search import forwards_of, fresh_noise, near, search_noise

SHAPE = (4, 4, 4)
D = math.prod(SHAPE)
TARGET = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))


class Nearness(nn.Module):
    """Minus the squared distance from a target."""

    name = "nearness"

    def forward(self, images, prompts):
        return -((images - TARGET) ** 2).sum((1, 2, 3))


class Nothing(nn.Module):
    name = "nothing"

    def forward(self, images, prompts):
        return 0 * images.sum((1, 2, 3))


def generate(noise):
    """A linear generator."""
    return noise[:, :3] * 0.5 + noise[:, 3:] * 0.1


def noise(count=1, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def run(start, recipe, reward=None, watch=None, image=generate):
    return optimise_noise(image, WeightedSum([(reward or Nearness(), 1.0)]), ["x"] * len(start), start, recipe, watch)


def test_the_update_is_that_of_the_published_code():
    """SGD with Nesterov's momentum on clipped gradients, as torch has it; 49 updates in 50 iterations."""
    start, recipe = noise(), NoiseRecipe(iterations=50, rate=0.7)
    theirs = start.clone().requires_grad_()
    sgd = torch.optim.SGD([theirs], lr=0.7, momentum=0.9, nesterov=True)
    for number in range(50):
        held = 0.5 * theirs.norm() ** 2 - (D - 1) * theirs.norm().log()
        loss = ((generate(theirs) - TARGET) ** 2).sum() + 0.01 * held
        if number < 49:
            sgd.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([theirs], 0.1)
            sgd.step()
    last = []
    found = run(start, recipe, watch=lambda done, images: last.append(images))
    assert torch.allclose(last[-1], generate(theirs.detach()), atol=1e-5)
    assert len(found.history) == 50 and found.history[-1].gradient == [0.0] and not start.requires_grad


def test_small_steps_only_go_up_and_the_best_is_kept_with_its_noise():
    found = run(noise(), NoiseRecipe(iterations=30, rate=0.02, momentum=0.0, regularisation=0.0))
    totals = [each.total[0] for each in found.history]
    assert totals == sorted(totals)
    wild = run(noise(), NoiseRecipe(iterations=30, rate=40.0))
    totals, best = ([getattr(each, name)[0] for each in wild.history] for name in ("total", "best"))
    assert totals != sorted(totals) and best == sorted(best) and best[-1] == max(totals) == wild.total.item()
    assert torch.equal(generate(wild.noise), wild.images)
    assert Nearness()(wild.images, ["x"]).item() == wild.total.item()


@pytest.mark.parametrize("recipe", [NoiseRecipe(iterations=1), NoiseRecipe(iterations=4, rate=0.0)])
def test_without_updates_the_noise_stays(recipe):
    start = noise()
    found = run(start, recipe)
    assert torch.equal(found.noise, start) and torch.equal(found.images, generate(start))


def test_the_regulariser_holds_the_length_of_gaussian_noise():
    at = (noise() / noise().norm() * math.sqrt(D - 1)).requires_grad_()
    (slope,) = torch.autograd.grad(radial(at).sum(), at)
    assert slope.abs().max() < 1e-5
    far = (3 * noise()).requires_grad_()
    (slope,) = torch.autograd.grad(radial(far).sum(), far)
    assert torch.allclose(slope / slope.norm(), far / far.norm(), atol=1e-5)          # radial, and inwards going down
    last = []
    found = run(3 * noise(), NoiseRecipe(iterations=400, rate=1.0, clip=10.0, momentum=0.0, regularisation=1.0 / D),
                Nothing(), lambda done, images: last.append(done.norm[0]))
    assert abs(last[-1] - math.sqrt(D - 1)) < 0.02 and found.history[0].norm[0] > 20


def test_gradients_are_cut_row_by_row():
    rows = torch.stack([noise()[0] * 100, noise(seed=1)[0] * 1e-4])
    cut = clipped(rows, 0.1)
    assert cut[0].norm() <= 0.1 and torch.equal(cut[1], rows[1])


def test_a_batch_is_its_rows():
    both = run(noise(2), NoiseRecipe(iterations=12, rate=1.0))
    for row in range(2):
        alone = run(noise(2)[row:row + 1], NoiseRecipe(iterations=12, rate=1.0))
        assert torch.allclose(both.noise[row], alone.noise[0], atol=1e-6)
        assert both.total[row] == pytest.approx(alone.total.item())


class Moody(Nearness):
    """Not a number (or another value) at the given calls, for the first image."""

    def __init__(self, calls, value=math.nan):
        super().__init__()
        self.calls, self.value, self.count = calls, value, 0

    def forward(self, images, prompts):
        self.count += 1
        good = super().forward(images, prompts)
        return torch.cat([good[:1] * 0 + self.value, good[1:]]) if self.count in self.calls else good


class Steep(Moody):
    """The usual reward, whose gradient is not a number at the given calls."""

    def forward(self, images, prompts):
        self.count += 1
        good = Nearness.forward(self, images, prompts)
        return good + (images - images.detach()).abs().sum((1, 2, 3)).sqrt() if self.count in self.calls else good


def test_an_iteration_that_is_not_finite_is_dropped_and_said(caplog):
    start = noise(2)
    with caplog.at_level(logging.WARNING):
        found = run(start, NoiseRecipe(iterations=8, rate=1.0), Moody({3, 4}))
    assert "iteration 3 dropped for image 0: the reward nearness is not finite" in caplog.text
    assert [each.dropped for each in found.history] == [[n in (3, 4), False] for n in range(1, 9)]
    assert torch.isfinite(found.noise).all() and found.total[0] > found.history[0].total[0]
    plain = run(start, NoiseRecipe(iterations=8, rate=1.0))
    assert torch.equal(found.noise[1], plain.noise[1])          # the other image goes on undisturbed
    with pytest.raises(FloatingPointError, match="reward nearness is not finite"):
        run(noise(), NoiseRecipe(iterations=3), Moody({1, 2, 3}))
    with pytest.raises(FloatingPointError, match="never had a reward"):
        run(noise(2), NoiseRecipe(iterations=2), Moody({1, 2}))


@pytest.mark.parametrize("reward", [Moody({3}, math.inf), Steep({3})], ids=["reward", "gradient"])
def test_neither_an_endless_reward_nor_a_broken_gradient_is_followed(reward):
    found = run(noise(), NoiseRecipe(iterations=6, rate=1.0), reward)
    assert [each.dropped for each in found.history] == [[number == 3] for number in range(1, 7)]
    assert all(math.isfinite(each.norm[0]) for each in found.history) and torch.isfinite(found.total).all()


def test_where_nothing_was_learnt_it_goes_half_the_way_back_and_loses_its_momentum():
    def shown(recipe, start, reward):
        seen = []
        run(start, recipe, reward, image=lambda given: (seen.append(given.detach().clone()), generate(given))[1])
        return seen
    _, second, third, fourth, fifth, sixth = shown(NoiseRecipe(iterations=6, rate=1.0), noise(), Moody({3, 4}))
    assert torch.equal(fourth, (third + second) / 2) and torch.equal(fifth, (fourth + second) / 2)
    assert torch.equal(sixth, shown(NoiseRecipe(iterations=2, rate=1.0), fifth, Nearness())[1])


def test_the_summary_names_the_best_iteration_and_passes_over_what_is_no_number():
    history = run(noise(2), NoiseRecipe(iterations=5, rate=1.0), Moody({1})).history
    totals = [each.total[0] for each in history]
    best = max(totals[1:])
    assert history_summary(history) == (f"reward nan -> {best:.4g} at iteration {totals.index(best) + 1} of 5; "
                                        "1 dropped, not finite")


def test_stopped_it_returns_the_best_so_far():
    def watch(done, images):
        if done.number == 4:
            raise KeyboardInterrupt
    found = run(noise(), NoiseRecipe(iterations=50, rate=1.0), watch=watch)
    assert found.stopped and len(found.history) == 4 and found.total.item() == found.history[-1].best[0]

    calls = []

    def passing(given):
        calls.append(given)
        if len(calls) == 3:
            raise TimeoutError
        return generate(given)
    found = optimise_noise(passing, WeightedSum([(Nearness(), 1.0)]), ["x"], noise(), NoiseRecipe(rate=1.0), None,
                           (TimeoutError,))
    assert found.stopped and len(found.history) == 2

    def at_once(given):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run(noise(), NoiseRecipe(), image=at_once)


def test_inference_mode_and_impossible_numbers_are_refused():
    with torch.inference_mode(), pytest.raises(ValueError, match="inference mode"):
        run(noise(), NoiseRecipe())
    for wrong in ({"iterations": 0}, {"rate": -1.0}, {"clip": 0.0}, {"momentum": 1.0}, {"regularisation": -1.0}):
        with pytest.raises(ValueError, match="expected|at least 1"):
            NoiseRecipe(**wrong)


def test_the_searches_keep_the_best_and_stay_gaussian():
    reward, start, generator = WeightedSum([(Nearness(), 1.0)]), noise(3), torch.Generator().manual_seed(5)
    assert forwards_of(NoiseRecipe()) == 148
    one = search_noise(generate, reward, ["x"] * 3, start, 1, fresh_noise(generator))
    assert torch.equal(one.noise, start) and torch.equal(one.images, generate(start))
    for propose in (fresh_noise(generator), near(generator)):
        found = search_noise(generate, reward, ["x"] * 3, start, 60, propose)
        assert torch.equal(generate(found.noise), found.images)
        assert all(found.total[row] == max(each.total[row] for each in found.history) for row in range(3))
    steps = [near(generator)(start) for _ in range(50)]
    assert abs(torch.stack(steps).std().item() - start.std().item()) < 0.1
    with pytest.raises(ValueError, match="at least 1"):
        search_noise(generate, reward, ["x"], noise(), 0, fresh_noise(generator))


def test_a_search_stops_with_the_best_so_far_and_passes_over_what_is_no_number():
    reward, generator = WeightedSum([(Nearness(), 1.0)]), torch.Generator().manual_seed(5)

    def until_three(done, images):
        if done.number == 3:
            raise KeyboardInterrupt
    found = search_noise(generate, reward, ["x"], noise(), 60, fresh_noise(generator), until_three)
    assert found.stopped and len(found.history) == 3 and torch.equal(generate(found.noise), found.images)
    tries = iter([1.0, float("nan"), 1.0])
    found = search_noise(lambda given: generate(given) * next(tries), reward, ["x"], noise(), 3, fresh_noise(generator))
    assert [done.dropped for done in found.history] == [[False], [True], [False]] and torch.isfinite(found.total).all()
    with pytest.raises(FloatingPointError, match="nearness is not finite"):
        search_noise(lambda given: generate(given) * float("nan"), reward, ["x"], noise(), 3, fresh_noise(generator))

    def at_once(given):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        search_noise(at_once, reward, ["x"], noise(), 3, fresh_noise(generator))
