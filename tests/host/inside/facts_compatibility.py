"""docs/compatibility.md, row by row: what stock nodes and the habits of other packs do with what we load."""
import functools

import comfy.samplers
import torch
from comfyui_version import __version__
from compatibility import ROWS, call, draw, outcome, plain, run_row, scene
from support import off

COLUMN = "0.3.64" if __version__.startswith("0.3.") else "0.33.0"


@functools.cache
def outcome_of(name: str) -> tuple[str, str]:
    return outcome(next(row for row in ROWS if row["name"] == name))


def test_every_row_is_as_stated():
    wrong = []
    for row in ROWS:
        found, said = outcome_of(row["name"])
        if found != row["outcome"][COLUMN] or (found == "refused" and row["says"] not in said):
            wrong.append((row["name"], found, said[:300]))
    assert not wrong, wrong


def test_refusals_are_one_sentence_before_the_advice():
    for row in ROWS:
        if "refused" in row["outcome"].values():
            _, said = outcome_of(row["name"])
            if said:
                assert len(said.partition(". ")[0].partition(": ")[0].partition("; ")[0]) < 100, said


def test_every_stock_sampler_works():
    unfinished = []
    for name in [name for name in comfy.samplers.KSAMPLER_NAMES if name != "dpm_adaptive"]:     # hundreds of passes
        got = draw({**scene(), "sampler_name": name, "cfg": 2.0})
        if not torch.isfinite(got).all() or torch.count_nonzero(got) == 0:
            unfinished.append(name)
    assert not unfinished, unfinished
    assert len(comfy.samplers.KSAMPLER_NAMES) >= 35


def test_every_stock_schedule_works():
    for name in comfy.samplers.SCHEDULER_NAMES:
        assert torch.isfinite(draw({**scene(), "scheduler": name})).all(), name


# -- what popular packs do, by the contract of the host that they use ------------------------------------------------


def test_tiles_through_a_unet_wrapper():
    """Tiled Diffusion, Ultimate tiling: cuts the latent, repeats the conditions for the tiles, blends."""
    def wrapper(apply_model, given):
        x, t, c = given["input"], given["timestep"], given["c"]
        tiles = torch.cat([x, x])
        repeated = {name: torch.cat([value, value]) if torch.is_tensor(value) else value for name, value in c.items()}
        halves = apply_model(tiles, torch.cat([t, t]), **repeated).chunk(2)
        return (halves[0] + halves[1]) / 2
    found = scene()
    found["model"].set_model_unet_function_wrapper(wrapper)
    assert off(draw(found), plain("{}")) < 1e-4


def test_a_cache_that_replaces_the_first_block():
    """WaveSpeed, TeaCache: replaces double_block 0 and compares its output from step to step."""
    seen = []

    def replacement(given, extra):
        out = extra["original_block"](given)
        seen.append(out["img"].shape)
        return out
    found = scene()
    found["model"].set_model_patch_replace(replacement, "dit", "double_block", 0)
    assert torch.equal(draw(found), plain("{}")) and len(seen) >= 6


def test_an_attention_override():
    """KJNodes, SageAttention: puts another attention into transformer_options."""
    calls = []

    def override(attention, *arguments, **named):
        calls.append(arguments[0].shape)
        return attention(*arguments, **named)
    found = scene()
    found["model"].model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(draw(found), plain("{}")) and len(calls) >= 6 * 10


def test_a_cfg_function():
    """Dynamic Thresholding, ppm: computes guidance itself."""
    def thresholded(given):
        cond, uncond, scale = given["cond"], given["uncond"], given["cond_scale"]
        return uncond + (cond - uncond) * scale
    found = scene()
    found["model"].set_model_sampler_cfg_function(thresholded)
    assert off(draw(found), plain("{}")) < 1e-4


def test_a_wrapper_that_cuts_a_batch():
    """AnimateDiff-Evolved, context windows: runs some images of a batch at a time."""
    from comfy.patcher_extension import WrappersMP

    def apart(executor, model, conds, x, timestep, options):
        parts = [executor(model, conds, x[i:i + 1], timestep[i:i + 1], options) for i in range(len(x))]
        return [torch.cat(outs) for outs in zip(*parts)]
    found = {**scene(), "latent": {"samples": torch.zeros(3, 4, 8, 8)}}
    whole = draw(found)
    found["model"].add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "test", apart)
    assert off(draw(found), whole) < 1e-4


def test_prompts_cut_into_parts_and_averaged():
    """Prompt-control packs: encode parts apart, then combine, concatenate and schedule them."""
    found = scene()
    (parts,) = call("ConditioningConcat", {"conditioning_to": found["positive"], "conditioning_from": found["empty"]})
    (early,) = call("ConditioningSetTimestepRange", {"conditioning": parts, "start": 0.0, "end": 0.5})
    (late,) = call("ConditioningSetTimestepRange", {"conditioning": found["positive"], "start": 0.5, "end": 1.0})
    (both,) = call("ConditioningCombine", {"conditioning_1": early, "conditioning_2": late})
    got = draw({**found, "positive": both})
    assert torch.isfinite(got).all() and not torch.equal(got, plain("{}"))


def test_a_row_that_works_leaves_the_model_as_it_was():
    """Patches of one workflow must not stay for the next."""
    before = draw(scene())
    for row in ROWS[:6]:
        run_row(row)
    assert torch.equal(draw(scene()), before)
