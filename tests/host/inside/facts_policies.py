"""Policies on a MODEL: one pass equals two, other packs beside them, nothing kept after a run."""
import gc
import weakref

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from support import condition, image, latent, load, load_control, network, off, pack, refusal, sample, text, vae
from torch import Tensor

from nodes import ControlNetApplyAdvanced

policy, memory = pack("pixart.model.policy"), pack("pixart.model.lane_memory")


class Reuse(policy.Policy):
    """Computes the branches in every second step and repeats their answers in between."""

    made: list = []

    def __init__(self, every: int = 2) -> None:
        self.every, self.memory, self.steps, self.computed = every, memory.LaneMemory(), [], 0
        Reuse.made.append(weakref.ref(self))

    def stack(self, p, go) -> Tensor:
        self.steps.append(p.step)
        return go(p)

    def branch(self, index, name, p, go) -> Tensor:
        kept = self.memory.get(p.step, (index, name)) if p.step.index % self.every else None
        if kept is None:
            self.computed += 1
            kept = go(p)
            self.memory.put(p.step, (index, name), kept)
        return kept

    def kept(self, depth: int) -> int:
        return 3 * depth


def reusing(model, every: int = 2, policies: int = 1):
    """A patched clone, and the policies that its samplings make (kept here, to look at)."""
    made: list = []

    def make(_) -> list:
        made.extend(Reuse(every) for _ in range(policies))
        return made[-policies:]

    return pack("nodes.host.policies").with_policies(model, make), made


def in_single_passes(model):
    """A clone that runs every condition in a pass of its own."""
    def wrapper(executor, base, conds: list, x: Tensor, t: Tensor, options: dict) -> list:
        return [executor(base, [None] * i + [cond], x, t, options)[i] for i, cond in enumerate(conds)]

    from comfy.patcher_extension import WrappersMP
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "apart", wrapper)
    return model


def passes(model):
    from comfy.patcher_extension import WrappersMP
    model, sizes = model.clone(), []

    def wrapper(executor, *args, **kwargs):
        sizes.append(args[0].shape[0])
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", wrapper)
    return model, sizes


def test_policies_that_compute_everything_change_no_bit():
    model = load("deep-1024")
    positive, negative, given = condition(text(6)), condition(text(2)), latent(64, 96, images=2)
    same = pack("nodes.host.policies").with_policies(model, lambda _: [policy.Policy(), Reuse(1)])
    args = (positive, negative, given, 4, 3.0)
    assert torch.equal(sample(same, *args), sample(model, *args))


def test_one_pass_equals_two_with_prompts_of_unequal_length():
    model = load("deep-1024")
    positive, negative, given = condition(text(6)), condition(text(2)), latent(64, 96, images=2)
    patched, made = reusing(model)
    counted, sizes = passes(patched)
    together = sample(counted, positive, negative, given, steps=6, cfg=3.0)
    apart = sample(in_single_passes(counted), positive, negative, given, steps=6, cfg=3.0)
    assert sizes == [4] * 6 + [2] * 12
    assert off(together, apart) < 2e-5
    assert off(together, sample(model, positive, negative, given, steps=6, cfg=3.0)) > 1e-3
    assert [each.computed for each in made] == [3 * 15, 6 * 15]


def test_one_pass_equals_two_under_a_controlnet():
    model = load("deep-1024")
    pair = ControlNetApplyAdvanced().apply_controlnet(condition(text(6)), condition(text(2)), load_control(),
                                                      image(64, 96), 0.8, 0.0, 0.6, vae=vae())
    patched, _ = reusing(model, 3)
    together = sample(patched, *pair, latent(64, 96), steps=6, cfg=3.0)
    apart = sample(in_single_passes(patched), *pair, latent(64, 96), steps=6, cfg=3.0)
    assert off(together, apart) < 2e-5
    assert off(together, sample(model, *pair, latent(64, 96), steps=6, cfg=3.0)) > 1e-3


def test_one_pass_equals_two_with_regional_prompts():
    """A prompt for a part of the image, one for the left half by mask, one that begins later: lanes of their own."""
    model, mask = load("deep-1024"), torch.zeros(1, 64, 96)
    mask[..., :48] = 1
    positive = [*condition(text(6)), *condition(text(3, 4), mask=mask, mask_strength=1.0),
                *condition(text(4, 5), area=(4, 8, 2, 2), strength=1.0, set_area_to_bounds=False),
                *condition(text(6, 6), start_percent=0.4, end_percent=1.0)]
    patched, made = reusing(model)
    counted, sizes = passes(patched)
    together = sample(counted, positive, condition(text(2)), latent(64, 96), steps=6, cfg=3.0)
    assert max(sizes) >= 4
    apart = sample(in_single_passes(counted), positive, condition(text(2)), latent(64, 96), steps=6, cfg=3.0)
    assert off(together, apart) < 2e-5
    alone = [sample(reusing(model)[0], [each], condition(text(2)), latent(64, 96), steps=2, cfg=1.0)
             for each in positive[:1]]
    assert alone[0].isfinite().all() and made[0].memory.bytes > 0


def test_one_model_in_two_samplers_gives_what_each_gives_alone():
    model = load("deep-1024")
    patched, made = reusing(model)
    first = sample(patched, condition(text(6)), condition(text(2)), latent(64, 64), steps=5, cfg=3.0)
    again = {"samples": first}
    second = sample(patched, condition(text(3, 7)), condition(text(2)), again, steps=3, cfg=3.0, seed=4)
    fresh = sample(reusing(model)[0], condition(text(3, 7)), condition(text(2)), again, steps=3, cfg=3.0, seed=4)
    assert torch.equal(second, fresh) and len(made) == 2
    assert made[0].steps[0].run is not made[1].steps[0].run


def test_steps_follow_the_schedule():
    from comfy.patcher_extension import WrappersMP
    model, timesteps = load("alpha-1024").clone(), []

    def spy(executor, *args, **kwargs):
        timesteps.append(args[1].tolist()[0])
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "spy", spy)
    patched, made = reusing(model)
    sample(patched, condition(text(3)), condition(text(3)), latent(64, 64), steps=5)
    assert [(step.index, step.total) for step in made[0].steps] == [(i, 5) for i in range(5)]
    assert [step.timestep for step in made[0].steps] == timesteps and len(set(timesteps)) == 5
    patched, made = reusing(model)          # of second order: the end of a step is the start of the next
    sample(patched, condition(text(3)), condition(text(3)), latent(64, 64), steps=3, sampler="heun")
    assert [step.index for step in made[0].steps] == [0, 1, 1, 2, 2]
    assert len({step.lanes for step in made[0].steps}) == 2


def test_a_step_is_found_in_rising_schedules_and_between_sigmas():
    index_of = pack("nodes.host.policy_run").index_of
    falling, rising = [9.0, 5.0, 2.0, 0.0], [0.0, 2.0, 5.0, 9.0]
    assert [index_of(sigma, falling) for sigma in (10.0, 9.0, 7.0, 5.0, 4.99999, 2.0, 1.0, 0.0)] == [
        0, 0, 0, 1, 1, 2, 2, 2]
    assert [index_of(sigma, rising) for sigma in (0.0, 1.0, 2.0, 4.0, 5.0, 8.0, 9.0)] == [0, 0, 1, 1, 2, 2, 2]


def test_a_second_question_in_a_step_is_not_answered_from_the_first():
    """Guidance that asks once more with blocks left out (skip layer, perturbed attention): lanes of its own."""
    def asks_again(args: dict) -> Tensor:
        options = {"transformer_options": {**args["model_options"]["transformer_options"],
                                           "patches_replace": {"dit": {("double_block", 2): skipping}}}}
        (weak,) = comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        return args["denoised"] + 2 * (args["cond_denoised"] - weak)

    def skipping(state: dict, extra: dict) -> dict:
        return {"img": state["img"]}

    model = load("deep-1024")
    guided, reference = reusing(model, 1)[0], model.clone()
    for each in (guided, reference):
        each.set_model_sampler_post_cfg_function(asks_again)
    given = (condition(text(6)), condition(text(2)), latent(64, 64), 4, 3.0)
    want = sample(reference, *given)
    assert off(sample(guided, *given), want) < 1e-5 and off(want, sample(model, *given)) > 1e-3
    guided, made = reusing(model, 2)
    guided.set_model_sampler_post_cfg_function(asks_again)
    sample(guided, *given)
    rows = {lane for step in made[0].steps for lane in step.lanes}
    assert len(rows) == 3 and made[0].computed == 2 * 2 * 15 - 2 * 3 * 1


def test_tiles_are_told_apart():
    """A pack that runs one part of the image after the other under the same prompt."""
    def by_halves(apply, arguments: dict) -> Tensor:
        x, t, c = arguments["input"], arguments["timestep"], arguments["c"]
        return torch.cat([apply(half, t, **c) for half in x.chunk(2, dim=-1)], dim=-1)

    def sampled(model, wrapper, width: int) -> Tensor:
        model = model.clone()
        if wrapper is not None:
            model.set_model_unet_function_wrapper(wrapper)
        noise = comfy.sample.prepare_noise(torch.zeros(1, 4, 8, 16), 3)
        parts = noise.chunk(16 * 8 // width, dim=-1)
        return torch.cat([comfy.sample.sample(model, part, 4, 3.0, "euler", "normal",
                                              condition(text(6), width=512, height=512),
                                              condition(text(2), width=512, height=512), torch.zeros_like(part),
                                              disable_pbar=True, seed=3) for part in parts], dim=-1)

    patched, _ = reusing(load("deep-1024"))
    assert off(sampled(patched, by_halves, 128), sampled(patched, None, 64)) < 2e-5


def test_block_patches_of_other_packs_run_inside_of_policies():
    """A replaced block that adds 0.1 and a patch that adds 0.2 after each block, with and without a policy."""
    seen = []

    def replacing(state: dict, extra: dict) -> dict:
        seen.append("replaced")
        return {"img": extra["original_block"]({**state, "img": state["img"] + 0.1})["img"]}

    def after(state: dict) -> dict:
        seen.append(state["block_index"])
        return {"img": state["img"] + 0.2}

    model = load("deep-1024").clone()
    model.set_model_patch_replace(replacing, "dit", "double_block", 1)
    model.set_model_patch(after, "double_block")
    given = (condition(text(6)), condition(text(2)), latent(64, 64), 4, 3.0)
    want = sample(model, *given)
    assert seen == [0, "replaced", 1, 2, 3, 4] * 4
    assert off(want, sample(load("deep-1024"), *given)) > 1e-3
    same, _ = reusing(model, 1)
    assert torch.equal(sample(same, *given), want)

    class Half(policy.Policy):
        """Leaves blocks 1 and 3 out in every second step."""
        def block(self, index, p, go):
            return p.controlled(index).x if index in (1, 3) and p.step.index % 2 else go(p)

    seen.clear()
    sample(pack("nodes.host.policies").with_policies(model, lambda _: [Half()]), *given)
    assert seen == ([0, "replaced", 1, 2, 3, 4] + [0, 2, 4]) * 2


def test_control_is_there_before_another_pack_replaces_a_block():
    """A pack that leaves a block out does not lose the residual that enters it."""
    def skipping(state: dict, extra: dict) -> dict:
        return {"img": state["img"]}

    transformer = network(load("deep-1024"))
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), text(5)
    residual = torch.randn(1, 16, 48)

    def run(entry: int, skipped: int) -> Tensor:
        control = {"output": [residual if i == entry else None for i in range(entry + 1)]}
        options = {"patches_replace": {"dit": {("double_block", skipped): skipping}}}
        return transformer(x, t, context, control=control, transformer_options=options)

    assert torch.equal(run(2, 2), run(3, 2))        # into a block that does nothing, or into the one behind it
    assert off(run(2, 2), run(2, 3)) > 1e-3


def test_two_nodes_of_policies_work_together():
    asked = []

    class Says(policy.Policy):
        def __init__(self, name: str) -> None:
            self.name = name

        def stack(self, p, go):
            asked.append(self.name)
            return go(p)

    with_policies = pack("nodes.host.policies").with_policies
    first = with_policies(load("alpha-1024"), lambda _: [Says("a"), Says("b")])
    second = with_policies(first, lambda _: [Says("c")])
    sample(second, condition(text(3)), condition(text(3)), latent(64, 64), steps=1)
    sample(first, condition(text(3)), condition(text(3)), latent(64, 64), steps=1)
    assert asked == ["a", "b", "c", "a", "b"]


class Stop(Exception):
    pass


def interrupted(step: int, *_: object) -> None:
    if step == 1:
        raise comfy.model_management.InterruptProcessingException()


def failing(step: int, *_: object) -> None:
    if step == 1:
        raise Stop()


def test_nothing_is_kept_after_a_run_an_interruption_or_an_error():
    from comfy.patcher_extension import WrappersMP
    model, options, held = load("deep-1024"), [], []

    def remember(executor, *args, **kwargs):
        options.append(executor.class_obj.model_options)
        return executor(*args, **kwargs)

    def hold(executor, *args, **kwargs):
        held.append(args[4])            # another pack that keeps the options of a pass
        return executor(*args, **kwargs)

    for callback, error in ((None, None), (interrupted, comfy.model_management.InterruptProcessingException),
                            (failing, Stop)):
        Reuse.made.clear()
        patched = pack("nodes.host.policies").with_policies(model, lambda _: [Reuse()])
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "remember", remember)
        patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "hold", hold)
        try:
            sample(patched, condition(text(3)), condition(text(2)), latent(64, 64), steps=4, cfg=2.0,
                   callback=callback)
            assert error is None
        except BaseException as found:
            assert error is not None and isinstance(found, error), found
        gc.collect()
        assert len(Reuse.made) == 1 and Reuse.made[0]() is None
        key = pack("nodes.host.policy_run").RUN
        assert held[-1][key].policies == []
        assert key not in patched.model_options["transformer_options"]
        assert key not in options[-1]["transformer_options"]
        assert model.model.bytes_to_keep == 0


def test_what_will_be_kept_counts_as_memory_that_a_sampling_needs():
    """The host is told before it loads, and no more when it decides how many prompts go into a pass."""
    model, told = load("deep-1024"), []
    base = model.model
    plain = base.memory_required([2, 4, 8, 12])

    class Watching(policy.Policy):
        def kept(self, depth: int) -> int:
            told.append(depth)
            return 7

        def stack(self, p, go):
            told.append(base.memory_required([2, 4, 8, 12]) - plain)
            return go(p)

    from comfy.patcher_extension import WrappersMP
    patched = pack("nodes.host.policies").with_policies(model, lambda _: [Watching()])
    estimates = []

    def estimate(executor, *args, **kwargs):
        estimates.append(base.memory_required([2, 4, 8, 12]) - plain)
        return executor(*args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "estimate", estimate)
    sample(patched, condition(text(3)), [*condition(text(2)), *condition(text(4))], latent(64, 96, images=2),
           steps=1, cfg=2.0)
    # 2 images, 3 prompts, 7 tensors of 4 x 6 tokens, 48 wide, 4 bytes a number
    assert estimates == [2 * 3 * 7 * 24 * 48 * 4] and told[0] == 5 and set(told[1:]) == {0}
    patched, made = reusing(model)
    sample(patched, condition(text(3)), condition(text(2)), latent(64, 96), steps=2, cfg=2.0)
    bytes_of = pack("nodes.host.policies").lane_bytes
    assert made[0].memory.bytes == 2 * bytes_of(base.diffusion_model, [made[0]], (8, 12), 4)


def test_policies_act_under_whole_model_compilation():
    """As the stock node compiles: guards on transformer_options are dropped, and a plain run comes first."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    torch._dynamo.reset()
    model = load("alpha-1024").clone()
    set_torch_compile_wrapper(model=model, backend="eager")
    given = (condition(text(3)), condition(text(3)), latent(64, 64), 4)
    plain = sample(model, *given)
    patched, made = reusing(model)
    got = sample(patched, *given)
    want = sample(reusing(load("alpha-1024"))[0], *given)
    assert made[0].computed == 2 * 6 and off(got, want) < 1e-5 and off(plain, want) > 1e-4
    assert torch.equal(sample(model, *given), plain)
    torch._dynamo.reset()


class Seen(policy.Policy):
    """Looks at every block."""

    def block(self, index, p, go) -> Tensor:
        return go(p)


def graphs_of(name: str, policies: list) -> list[int]:
    """Attentions in each graph that a sampling of a model, compiled as a whole, makes."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    graphs: list[int] = []

    def backend(graph, examples):
        called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        graphs.append(sum("scaled_dot_product" in target for target in called))
        return graph.forward

    torch._dynamo.reset()
    model = load(name).clone()
    set_torch_compile_wrapper(model=model, backend=backend)
    for _ in range(2):          # the second sampling finds what the first one compiled
        sample(pack("nodes.host.policies").with_policies(model, lambda _: policies), condition(text(3)),
               condition(text(3)), latent(64, 64), 3)
    torch._dynamo.reset()
    return graphs


def test_policies_leave_the_blocks_of_a_compiled_model_compiled():
    """Once for all blocks and steps, whatever the depth; a policy that looks into blocks has a graph a branch."""
    for name in ("alpha-1024", "deep-1024"):
        assert sorted(graphs_of(name, [Seen()]))[-3:] == [0, 0, 2]
        assert [count for count in graphs_of(name, [Reuse()]) if count] == [1, 1]


def test_a_sampling_that_is_not_the_hosts_computes_everything():
    """Without prompts' names or a schedule nobody could say what a row is."""
    model = load("deep-1024")
    patched, made = reusing(model)
    run = pack("nodes.host.policy_run").PolicyRun([Reuse()], 1, model.get_model_object("model_sampling"), None)
    sigmas = {"sigmas": torch.tensor([5.0]), "sample_sigmas": torch.tensor([9.0, 5.0, 0.0])}
    assert run.step({}, 1) is None and run.step(sigmas, 1) is None
    assert run.step({**sigmas, "uuids": ["a", "b"], "cond_or_uncond": [0, 1]}, 3) is None
    assert run.step({**sigmas, "uuids": ["a"], "cond_or_uncond": [0]}, 1).index == 1


def test_batched_tiles_are_rows_of_their_company_alone():
    """In which order a pack puts tiles and prompts nobody knows: other prompts beside them, and nothing is reused."""
    def lanes(images: int) -> list[set]:
        run = pack("nodes.host.policy_run").PolicyRun([], images, load("alpha-1024").get_model_object(
            "model_sampling"), None)
        steps = [(9.0, ["a", "b"], 4), (5.0, ["a", "b"], 4), (2.0, ["a"], 2)]
        options = {"sample_sigmas": torch.tensor([9.0, 5.0, 2.0, 0.0])}
        return [set(run.step({**options, "sigmas": torch.tensor([sigma]), "uuids": prompts,
                              "cond_or_uncond": list(range(len(prompts)))}, rows).lanes)
                for sigma, prompts, rows in steps]

    first, second, alone = lanes(images=2)
    assert first == second and alone < first and len(first) == 4
    first, second, alone = lanes(images=1)        # two tiles of one image
    assert first == second and not alone & first


def test_other_models_are_refused():
    class Other:
        model = torch.nn.Identity()
    message = refusal(pack("nodes.host.policies").with_policies, Other(), lambda _: [])
    assert "Identity" in message and "Load PixArt" in message
