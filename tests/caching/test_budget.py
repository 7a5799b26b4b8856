"""A budget becomes a setting beforehand, and the sampling does as much work as was said."""
import argparse
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from caching import tiny
from caching.tiny import CONFIG

from pixart.accelerate import (
    CACHE_METHODS,
    BranchSchedule,
    CacheChoice,
    Costs,
    SamplingJob,
    TallyBranches,
    budget_of,
    choice_of,
    from_file,
    solve,
    write_ecad,
)
from pixart.accelerate.plan import plain_plan
from pixart.accelerate.schedule import steps_within
from pixart.checkpoint import read_config
from pixart.commands import generate
from pixart.config import VARIANTS, KVCompression
from pixart.generation.request import Request
from pixart.generation.sample import sample
from pixart.mini import SHIPPED
from pixart.mini.measure.cost import counted_flops
from pixart.text.encoded import Encoded
from pixart.text.tokens import PromptReport

FULL_SIZE = SamplingJob(VARIANTS["alpha-1024"], steps=20, tokens=4096, text=120, guided=True)
SMALL = SamplingJob(CONFIG, steps=20, tokens=24, text=6, guided=True)
SOLVABLE = [name for name in CACHE_METHODS if name != "ecad"]


def encoded(tokens: int, seed: int = 0) -> Encoded:
    context = torch.randn(1, tokens, CONFIG.caption_width, generator=torch.Generator().manual_seed(seed))
    return Encoded(context, torch.ones(1, tokens, dtype=torch.bool), [PromptReport("a cat", "a cat", 3, 3, 8, "")])


@pytest.fixture(scope="module")
def model():
    return tiny.transformer()


@pytest.mark.parametrize("name", SOLVABLE)
def test_twice_as_fast_is_reached_or_the_nearest_is_said(name):
    solved = solve(name, 2.0, FULL_SIZE)
    if 1 / 1.05 <= solved.ratio / 2 <= 1.05:
        assert solved.notice is None
    else:
        assert f"the nearest is {solved.ratio:.2f}x" in solved.notice
    off = abs(math.log(solved.ratio / 2))
    assert off < math.log(1.02) or all(off <= abs(math.log(plan.ratio(FULL_SIZE) / 2)) + 1e-9
                                       for plan in CACHE_METHODS[name].plans(FULL_SIZE))


@pytest.mark.parametrize("name", SOLVABLE)
def test_no_budget_to_speak_of_reuses_nothing(name):
    assert solve(name, 1.0, FULL_SIZE).plan.setting == "nothing reused"


def test_a_budget_no_setting_reaches_gives_the_nearest():
    solved = solve("t-gate", 9.0, FULL_SIZE)
    assert solved.ratio < 4 and solved.notice.startswith("no setting reaches 9x; the nearest is ")


@pytest.mark.parametrize("name", SOLVABLE)
@pytest.mark.parametrize("window", [None, range(4, 17)])
def test_a_sampling_does_as_much_work_as_was_said(model, name, window):
    """Branches that are computed, counted one by one, times what they cost, against the plan."""
    job = replace(SMALL, allowed=window)
    plan = solve(name, 1.7 if window is None else 1.4, job).plan
    tally, request = TallyBranches(), Request(("a cat",), height=64, width=96, sampler="dpm", steps=20)
    got = sample(model, request, encoded(6), encoded(2, 1), policies=[*plan.make(), tally])
    assert got.isfinite().all() and plan.ratio(job) > 1.1
    computed, rows = plan.computed.computed(), torch.tensor(job.rows(plan.gate))
    assert tally.branches(CONFIG.depth) == int((computed.sum((1, 2)) * rows).sum())
    assert tally.macs(job.costs()) == plan.work(job)
    assert [tally.passes[step] for step in range(20)] == rows.tolist()
    if window is not None:
        outside = [step for step in range(20) if step not in window]
        assert plan.computed.computed()[outside].all() and rows[outside].eq(2).all()


def test_guidance_ends_at_the_gate_and_not_when_the_end_is_to_be_computed(model):
    assert solve("t-gate", 1.5, SMALL).plan.gate is not None
    assert solve("t-gate", 1.5, replace(SMALL, allowed=range(0, 19))).plan.gate is None
    assert solve("t-gate", 1.2, replace(SMALL, guided=False)).plan.gate is None


def test_dropped_guidance_is_the_positive_prompt_alone(model):
    """Without any reuse: from the gate on, as if the scale were 1."""
    class NoGuidance(TallyBranches):
        def guides(self, index: int, total: int) -> bool:
            return False

    request = Request(("a cat",), height=64, width=96, sampler="dpm", steps=4)
    tally = NoGuidance()
    got = sample(model, request, encoded(6), encoded(2, 1), policies=[tally])
    want = sample(model, replace(request, guidance=1.0), encoded(6), encoded(6))
    assert torch.allclose(got, want, atol=1e-5) and tally.rows == 4


@pytest.mark.parametrize("changes", [{}, {"micro_conditioning": False, "learned_variance": False},
                                     {"kv_compression": KVCompression("uniform", 2, (1, 3))}])
def test_costs_are_those_torch_counts(changes):
    config = replace(CONFIG, **changes)
    model = tiny.transformer(config)
    with counted_flops() as flops, torch.inference_mode():
        model(torch.randn(2, 4, 8, 12), torch.tensor([5.0, 9.0]), torch.randn(2, 6, 10))
    want = Costs(config, 24, 6).of(BranchSchedule.full(1, CONFIG.depth), [2])
    assert flops.get_total_flops() / 2 == want


def test_a_schedule_file_for_another_model_or_step_count_is_refused(tmp_path):
    path = write_ecad(tmp_path / "s.json", BranchSchedule.full(20, CONFIG.depth))
    assert from_file(path, SMALL).ratio(SMALL) == 1
    with pytest.raises(ValueError, match="for 5 blocks, this model has 28.*s.json"):
        from_file(path, FULL_SIZE)
    with pytest.raises(ValueError, match="for 20 steps, this sampling takes 12.*s.json"):
        from_file(path, replace(SMALL, steps=12))


def test_budgets_are_read_and_refused():
    assert [budget_of(text) for text in ("2x", " 1.5 X ", "3", "1")] == [2, 1.5, 3, 1]
    for text in ("0.5x", "fast", "", "-2x", "nanx"):
        with pytest.raises(ValueError, match="not a speed-up; write 2x"):
            budget_of(text)


def test_a_searched_schedule_for_pixart_mini_comes_with_the_package():
    """Of a fifth of the work, whatever else is asked for."""
    config = read_config(SHIPPED.teacher)
    job = SamplingJob.of(config, 20, config.resolution, config.resolution, 32, guided=True)
    for budget in (2, 5):
        solved = solve("ecad", budget, job)
        assert solved.plan.setting == "PixArt-mini 5.01x" and 4.9 < solved.plan.ratio(job) < 5.1
        assert bool(solved.notice) == (budget == 2)     # the nearest there is, said


def test_unknown_methods_and_shares_are_refused():
    with pytest.raises(ValueError, match="unknown cache method 'x'; use fora"):
        solve("x", 2, SMALL)
    with pytest.raises(ValueError, match="no schedule for 5 blocks and 20 steps"):
        solve("ecad", 2, SMALL)
    with pytest.raises(ValueError, match="0 <= start <= end <= 1"):
        steps_within(20, 0.6, 0.3)
    assert steps_within(20, 0.0, 1.0) == range(20) and steps_within(20, 0.25, 0.5) == range(5, 10)


def test_one_step_has_nothing_to_reuse():
    job = replace(SMALL, steps=1)
    for name in SOLVABLE:
        assert solve(name, 4.0, job).plan == plain_plan(job)


def test_a_choice_says_what_it_saves(tmp_path):
    plan, line = CacheChoice("steps", 2.0).plan(FULL_SIZE)
    assert line.startswith("10 of 20 steps: 2.00x less work (") and line.endswith("TMACs per image)")
    assert plan == solve("steps", 2.0, FULL_SIZE).plan
    assert "nearest is" in CacheChoice("t-gate", 9.0).plan(FULL_SIZE)[1]
    path = write_ecad(tmp_path / "mine.json", BranchSchedule.full(20, CONFIG.depth, "mine"))
    assert choice_of(str(path)).plan(SMALL)[1].startswith("mine: 1.00x")
    assert choice_of("fora") == CacheChoice("fora", 2.0) and choice_of("fora=3").title == "fora 3x"


def test_a_choice_that_cannot_be_meant_is_refused():
    for make, message in ((lambda: CacheChoice("fora", 0.5), "budget is 0.5"),
                          (lambda: CacheChoice("x"), "unknown cache method"),
                          (lambda: CacheChoice("fora", file=Path("a.json")), "file is for the method ecad"),
                          (lambda: CacheChoice("fora", start=0.5, end=0.2), "0 <= start <= end <= 1")):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("words, message", [
    (["--budget", "2x"], "--budget needs --cache"), (["--ecad", "a.json", "--cache", "fora"], "leave out --cache"),
    (["--cache", "fora", "--budget", "half"], "not a speed-up"),
])
def test_options_of_the_command_that_have_no_effect_are_refused(words, message):
    command = argparse.ArgumentParser()
    generate.add_options(command)
    with pytest.raises(ValueError, match=message):
        generate.cache_choice(command.parse_args(["a cat", *words]))


def test_the_command_makes_the_policies_of_its_job(capsys):
    command = argparse.ArgumentParser()
    generate.add_options(command)
    args = command.parse_args(["a cat", "--cache", "every-n"])
    (policy,) = generate.cache_policies(generate.cache_choice(args), SMALL)
    assert policy.schedule == solve("every-n", 2.0, SMALL).plan.computed
    assert "every 2 from the first: " in capsys.readouterr().out
    assert SamplingJob.of(CONFIG, 20, 64, 96, 6, True) == SMALL and SamplingJob.of(CONFIG, 20, 57, 90, 6, True) == SMALL
