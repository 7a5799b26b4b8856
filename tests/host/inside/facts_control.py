"""The CONTROL_NET: stock and own Apply nodes, parity with the core, windows, chains, hooks, data types, refusals."""
import contextlib
import copy
import gc
import weakref

import comfy.controlnet
import comfy.hooks
import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from host import tiny
from support import (
    MODELS,
    condition,
    image,
    image_latent,
    latent,
    load,
    load_control,
    network,
    off,
    pack,
    refusal,
    sample,
    text,
    vae,
)
from torch import Tensor

from nodes import ControlNetApplyAdvanced

NOT_DYNAMIC = ("test_a_lora_on_the_base_reaches_the_control",
               "test_layer_by_layer_offload_of_base_and_control_gives_the_same")

LORA = "tiny-lora.safetensors"


def apply(positive: list, control, hint: Tensor, strength: float = 1.0, start: float = 0.0, end: float = 1.0,
          fade: float = 0.0, blocks: int = 0, negative: list | None = None, given_vae=None) -> tuple:
    node = pack("nodes.control").PixArtControlNetApply
    return node().apply(positive, control, hint, given_vae or vae(), strength, start, end, fade, blocks, negative)


def stock(positive: list, control, hint: Tensor, strength: float = 1.0, start: float = 0.0, end: float = 1.0,
          given_vae="tiny", negative: list | None = None) -> tuple:
    given_vae = vae() if given_vae == "tiny" else given_vae
    return ControlNetApplyAdvanced().apply_controlnet(positive, negative or [], control, hint, strength, start, end,
                                                      vae=given_vae)


def spy(model):
    """A clone of the model, and what each of its passes was given and gave."""
    from comfy.patcher_extension import WrappersMP
    model, calls = model.clone(), []

    def wrapper(executor, x, t, context, control, options, **named):
        result = executor(x, t, context, control, options, **named)
        found = None if control is None else [None if r is None else r.clone() for r in control["output"]]
        calls.append({"x": x, "t": t, "context": context, "residuals": found, "result": result, **named})
        return result

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "spy", wrapper)
    return model, calls


def first_residuals(model, positive: list, given: dict | None = None) -> list:
    watched, calls = spy(model)
    sample(watched, positive, positive, given or latent(64, 64), steps=1)
    return calls[0]["residuals"]


def differences(got: list, want: list) -> list[float]:
    assert [r is None for r in got] == [r is None for r in want]
    return [off(a, b) for a, b in zip(got, want) if a is not None]


def cores(name: str = "deep-1024", control: str = "control"):
    """The same weights in the core's own networks, outside of the host."""
    return tiny.random_model(tiny.CONFIGS[name]), tiny.random_control(*tiny.CONTROLS[control])


def encoded(hint: Tensor, height: int, width: int, scale: float = 0.18215) -> Tensor:
    """The hint's latent, computed apart from the host's ControlNet class."""
    pixels = comfy.utils.common_upscale(hint.movedim(-1, 1), width, height, "nearest-exact", "center")
    return vae().encode(pixels.movedim(1, -1)) * scale


def tokens_of(call: dict) -> list[int]:
    """Real tokens of each row; a mask of no columns says all of them."""
    mask, rows = call["text_mask"], call["context"].shape[0]
    return mask.sum(1).tolist() if mask.shape[1] else [call["context"].shape[1]] * rows


def core_inputs(call: dict, row: int = 0) -> tuple:
    """What one row of a pass was given, as the core takes it: padding cut off instead of masked."""
    one = slice(row, row + 1)
    return (call["x"][one], call["t"][one], call["context"][one, :tokens_of(call)[row]], None,
            call["c_size"][one].float(), call["c_ar"][one].view(torch.float32).flatten())


def test_control_the_stock_node_and_ours_give_the_same_latents():
    model, control, hint = load("deep-1024"), load_control(), image(64, 96)
    positive, negative, given = condition(text(5)), condition(text(2, seed=3)), latent(64, 96)
    for settings in ({}, {"strength": 0.6, "start": 0.2, "end": 0.8}):
        ours = apply(positive, control, hint, negative=negative, **settings)
        theirs = stock(positive, control, hint, negative=negative, **settings)
        got, want = (sample(model, *pair, given, steps=4, cfg=2.0) for pair in (ours, theirs))
        assert torch.equal(got, want)
        assert off(got, sample(model, positive, negative, given, steps=4, cfg=2.0)) > 1e-3


def test_control_of_strength_zero_is_no_control():
    positive, negative = condition(text(5)), condition(text(2))
    got = apply(positive, load_control(), image(64, 64), strength=0.0, negative=negative)
    assert got[0] is positive and got[1] is negative


def test_control_with_zero_projections_is_no_control():
    model, control, positive = load("deep-1024"), load_control(), condition(text(5))
    for name, weight in control.control_model.named_parameters():
        if name.endswith(("after_proj.weight", "after_proj.bias")):
            weight.zero_()
    controlled, _ = apply(positive, control, image(64, 64))
    want = sample(model, positive, positive, latent(64, 64))
    assert torch.equal(sample(model, controlled, controlled, latent(64, 64)), want)


def test_control_equals_the_core_outside_of_the_host():
    base, copies = cores()
    for height, width in ((64, 64), (64, 120)):
        # A size that is not the latent's, so that a control which is not told it would differ.
        hint, positive = image(height, width), condition(text(5), width=2048, height=512)
        model, calls = spy(load("deep-1024"))
        controlled, _ = apply(positive, load_control(), hint)
        sample(model, controlled, controlled, latent(height, width))
        for call in calls:
            inputs, known = core_inputs(call), encoded(hint, height, width)
            want = copies(base, known, *inputs)
            assert max(differences(call["residuals"], want)) < 1e-5
            assert off(call["result"], base(*inputs, control=want)) < 1e-5


def test_control_on_a_sigma_base_scales_its_hint_for_it():
    base, copies = cores("deep-sigma", "control-sigma")
    model, calls = spy(load("deep-sigma"))
    control = load_control("control-sigma")
    control.latent_format = comfy.latent_formats.SD15()     # as where the file does not tell its base
    controlled, _ = apply(condition(text(5)), control, image(64, 64))
    sample(model, controlled, controlled, latent(64, 64), steps=1)
    want = copies(base, encoded(image(64, 64), 64, 64, 0.13025), *core_inputs(calls[0]))
    assert max(differences(calls[0]["residuals"], want)) < 1e-5


def test_control_runs_prompts_of_different_lengths_in_one_pass():
    base, copies = cores()
    model, calls = spy(load("deep-1024"))
    pair = apply(condition(text(7)), load_control(), image(64, 64), negative=condition(text(3, seed=2)))
    sample(model, *pair, latent(64, 64), steps=2, cfg=2.0)
    assert [call["x"].shape[0] for call in calls] == [2, 2]
    for call in calls:
        assert sorted(tokens_of(call)) == [3, 7]
        for row in range(2):
            want = copies(base, encoded(image(64, 64), 64, 64), *core_inputs(call, row))
            got = [None if r is None else r[row:row + 1] for r in call["residuals"]]
            assert max(differences(got, want)) < 1e-5


def test_control_of_a_batch_is_that_of_single_images():
    model, control, positive, hints = load("deep-1024"), load_control(), condition(text(5)), image(64, 64, 2)
    both = first_residuals(model, apply(positive, control, hints)[0], latent(64, 64, images=2))
    noise = comfy.sample.prepare_noise(torch.zeros(2, 4, 8, 8), 1)
    for row in range(2):
        watched, calls = spy(model)
        alone, _ = apply(positive, control, hints[row:row + 1])
        comfy.sample.sample(watched, noise[row:row + 1], 1, 1.0, "euler", "normal", alone, alone,
                            torch.zeros(1, 4, 8, 8), disable_pbar=True, seed=1)
        got = [None if r is None else r[row:row + 1] for r in both]
        assert max(differences(got, calls[0]["residuals"])) < 1e-5


def test_control_of_one_image_holds_for_all_of_a_batch_and_two_alternate():
    model, control, positive = load("deep-1024"), load_control(), condition(text(5))
    repeated = sample(model, *[apply(positive, control, image(64, 64).repeat(3, 1, 1, 1))[0]] * 2, latent(64, 64, 3))
    one = sample(model, *[apply(positive, control, image(64, 64))[0]] * 2, latent(64, 64, 3))
    assert off(one, repeated) < 1e-5
    two = image(64, 64, 2)
    third = sample(model, *[apply(positive, control, two[[0, 1, 0]])[0]] * 2, latent(64, 64, 3))
    assert off(sample(model, *[apply(positive, control, two)[0]] * 2, latent(64, 64, 3)), third) < 1e-5


def test_control_acts_just_between_start_and_end():
    for start, end in ((0.0, 1.0), (0.0, 0.5), (0.3, 0.7), (0.5, 1.0)):
        model, calls = spy(load("deep-1024"))
        controlled, _ = apply(condition(text(5)), load_control(), image(64, 64), start=start, end=end)
        sample(model, controlled, controlled, latent(64, 64), steps=10)
        want = [(1 - end) * 999 - 0.01 <= call["t"].item() <= (1 - start) * 999 + 0.01 for call in calls]
        assert len(calls) == 10 and [call["residuals"] is not None for call in calls] == want
        assert 0 < sum(want) <= 10 and (sum(want) < 10 or (start, end) == (0.0, 1.0))


def test_a_chain_of_two_controls_is_the_sum():
    model, positive, first, second = load("deep-1024"), condition(text(5)), load_control(), load_control()
    for name, weight in second.control_model.named_parameters():
        if "after_proj" in name:
            weight.neg_().add_(0.01)
    a, _ = apply(positive, first, image(64, 64), strength=0.7)
    b, _ = apply(positive, second, image(64, 64, seed=1), blocks=2)
    both, _ = apply(a, second, image(64, 64, seed=1), blocks=2)
    lists = [first_residuals(model, given) for given in (a, b, both)]
    sums = [x if y is None else x + y for x, y in zip(lists[0][1:], [*lists[1][1:], None])]
    assert len(sums) == 3 and max(differences(lists[2][1:], sums)) < 1e-6
    # A second control outside of its window leaves the first one as it is.
    late, _ = apply(a, second, image(64, 64, seed=1), start=0.9)
    assert max(differences(first_residuals(model, late), lists[0])) == 0


def test_fade_and_the_number_of_blocks_are_exact():
    model, control, positive = load("deep-1024"), load_control(), condition(text(5))
    full = first_residuals(model, apply(positive, control, image(64, 64))[0])
    assert len(full) == 4 and full[0] is None
    for fade, blocks in ((0.0, 1), (0.0, 2), (0.0, 3), (0.0, 50), (0.25, 0), (0.25, 2), (1.0, 0)):
        got = first_residuals(model, apply(positive, control, image(64, 64), fade=fade, blocks=blocks)[0])
        factors = [(1 - fade) ** i if i < (blocks or 3) else 0 for i in range(3)]
        for residual, whole, factor in zip([*got[1:], None, None], full[1:], factors):
            assert residual is None if factor == 0 else torch.equal(residual, whole * factor), (fade, blocks)


def test_strength_weighs_as_the_host_does():
    model, control, positive = load("deep-1024"), load_control(), condition(text(5))
    full = first_residuals(model, apply(positive, control, image(64, 64))[0])
    half = first_residuals(model, apply(positive, control, image(64, 64), strength=0.5)[0])
    assert all(torch.equal(b, a * 0.5) for a, b in zip(full[1:], half[1:]))
    control.strength_type = comfy.controlnet.StrengthType.LINEAR_UP
    rising = first_residuals(model, apply(positive, control, image(64, 64), strength=0.5)[0])
    assert all(torch.equal(b, a * 0.5 ** (4 - i)) for i, (a, b) in enumerate(zip(full, rising)) if a is not None)


def with_lora(base) -> None:
    """Merge the tiny LoRA into a core network by hand."""
    lora, hidden = comfy.utils.load_torch_file(str(MODELS / "loras" / LORA)), tiny.SHAPE["hidden"]

    def delta(module: str) -> Tensor:
        prefix = f"transformer.transformer_blocks.{module}.lora_"
        return lora[f"{prefix}B.weight"] @ lora[f"{prefix}A.weight"]

    base.blocks[0].attn.qkv.weight[:hidden] += delta("0.attn1.to_q")
    base.blocks[1].cross_attn.kv_linear.weight[hidden:] += delta("1.attn2.to_v")
    base.blocks[0].mlp.fc2.weight += delta("0.ff.net.2")


def lora_model(name: str = "deep-1024", weight_dtype: str = "fp32"):
    import nodes
    return nodes.LoraLoaderModelOnly().load_lora_model_only(load(name, weight_dtype), LORA, 1.0)[0]


def test_a_lora_on_the_base_reaches_the_control():
    base, copies = cores()
    with_lora(base)
    controlled, _ = apply(condition(text(5)), load_control(), image(64, 64))
    model, calls = spy(lora_model())
    sample(model, controlled, controlled, latent(64, 64), steps=1)
    want = copies(base, encoded(image(64, 64), 64, 64), *core_inputs(calls[0]))
    assert max(differences(calls[0]["residuals"], want)) < 1e-4
    plain = first_residuals(load("deep-1024"), controlled)
    assert min(differences(calls[0]["residuals"], plain)) > 1e-2


def test_a_lora_hook_on_one_prompt_reaches_the_control_of_that_prompt():
    base, copies = cores()
    with_lora(base)
    lora = comfy.utils.load_torch_file(str(MODELS / "loras" / LORA))
    hooks = comfy.hooks.create_hook_lora(lora=lora, strength_model=1.0, strength_clip=0.0)
    positive, negative = apply(condition(text(5)), load_control(), image(64, 64), negative=condition(text(5, seed=2)))
    positive = comfy.hooks.set_hooks_for_conditioning(positive, hooks)
    model, calls = spy(load("deep-1024"))
    sample(model, positive, negative, latent(64, 64), steps=2, cfg=2.0)
    plain, known = cores()[0], encoded(image(64, 64), 64, 64)
    assert len(calls) == 4
    for call in calls:
        patched = torch.equal(call["context"], text(5))
        own = base if patched else plain
        want = copies(own, known, *core_inputs(call))
        assert max(differences(call["residuals"], want)) < 1e-4
        assert off(call["result"], own(*core_inputs(call), control=want)) < 1e-4


def test_control_with_lora_lcm_and_an_fp8_base_in_one_graph():
    model, positive = lora_model("deep-1024", "fp8_e4m3fn"), condition(text(5))
    controlled, _ = apply(positive, load_control("control", "auto"), image(64, 64), strength=0.8, end=0.9)
    run = pack("nodes.sampling").PixArtLCMSampler().sample
    got = run(model, controlled, latent(64, 64), 7, 4, "official", 1.0)[0]["samples"]
    want = run(model, positive, latent(64, 64), 7, 4, "official", 1.0)[0]["samples"]
    assert torch.isfinite(got).all() and off(got, want) > 1e-2


def test_control_computes_in_the_data_type_of_the_base_at_exact_timesteps():
    exact = first_residuals(load("deep-1024"), apply(condition(text(5)), load_control(), image(64, 64))[0])
    for base_type, control_type in (("bf16", "fp32"), ("bf16", "fp8_e4m3fn"), ("fp32", "bf16"), ("fp8_e5m2", "fp16")):
        model, control = load("deep-1024", base_type), load_control("control", control_type)
        wanted = model.model.manual_cast_dtype or model.model.get_dtype()
        seen = []
        hook = control.control_model.register_forward_pre_hook(lambda _, args, kw, seen=seen: seen.append(kw),
                                                               with_kwargs=True)
        controlled, _ = apply(condition(text(5)), control, image(64, 64))
        watched, calls = spy(model)
        sample(watched, controlled, controlled, latent(64, 64), steps=3)
        hook.remove()
        assert [kw["exact_timesteps"].item() for kw in seen] == [call["t"].item() for call in calls]
        assert seen[0]["exact_timesteps"].dtype == torch.float32
        found = calls[0]["residuals"]
        assert all(r.dtype == wanted and torch.isfinite(r).all() for r in found[1:])
        if "fp8" not in base_type + control_type:
            assert max(((a.float() - b).pow(2).mean() / b.pow(2).mean()).sqrt() for a, b in
                       zip(found[1:], exact[1:])) < 0.03


def test_control_on_inpainting_and_image_to_image():
    model, positive, given = load("deep-1024"), condition(text(5)), image_latent(64, 64)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    controlled, _ = apply(positive, load_control(), image(64, 64))
    run = pack("nodes.sampling").PixArtLCMSampler().sample
    masked = {**given, "noise_mask": mask}
    got = run(model, controlled, masked, 3, 3, "official", 0.6)[0]["samples"]
    plain = run(model, positive, masked, 3, 3, "official", 0.6)[0]["samples"]
    assert off(got[:, :, 5:], given["samples"][:, :, 5:]) < 1e-5
    assert off(got[:, :, :3], plain[:, :, :3]) > 1e-3


def test_control_for_a_part_of_the_image_leaves_the_rest():
    model, plain = load("deep-1024"), condition(text(5))
    left = torch.zeros(2, 64, 64)
    left[:, :, :32] = 1
    controlled, _ = apply(condition(text(5), mask=left, mask_strength=1.0), load_control(), image(64, 64, 2))
    regional = controlled + condition(text(5), mask=1 - left, mask_strength=1.0)
    got, want = (sample(model, each, each, latent(64, 64, 2), steps=1) for each in (regional, plain))
    assert off(got[..., 5:], want[..., 5:]) < 1e-5
    assert off(got[..., :3], want[..., :3]) > 1e-3


def test_control_in_an_area_follows_the_hint_in_that_area():
    model, plain = load("deep-1024"), condition(text(5))
    area, _ = apply(condition(text(5), area=(8, 4, 0, 4), strength=1.0), load_control(), image(64, 32))
    watched, calls = spy(model)
    sample(watched, area + plain, plain, latent(64, 64), steps=1)
    assert {tuple(call["x"].shape[2:]) for call in calls if call["residuals"] is not None} == {(8, 4)}
    assert {tuple(call["x"].shape[2:]) for call in calls if call["residuals"] is None} == {(8, 8)}


def test_control_can_be_for_one_side_only_and_be_passed_on_to_the_other():
    negative = condition(text(5, seed=2))
    for passed_on in (False, True):
        positive, _ = apply(condition(text(5)), load_control(), image(64, 64))
        positive[0][1]["control_apply_to_uncond"] = passed_on
        model, calls = spy(load("deep-1024"))
        sample(model, positive, negative, latent(64, 64), steps=1, cfg=2.0)
        rows = sum(call["x"].shape[0] for call in calls if call["residuals"] is not None)
        assert rows == (2 if passed_on else 1)
    assert negative[0][1].keys() == {"pooled_output"}


def test_a_hint_of_another_aspect_is_cropped_in_the_middle():
    model, positive = load("deep-1024"), condition(text(5))
    wide = image(64, 128)
    got = first_residuals(model, apply(positive, load_control(), wide)[0])
    want = first_residuals(model, apply(positive, load_control(), wide[:, :, 32:96])[0])
    assert max(differences(got, want)) == 0


def test_hints_in_grey_and_with_alpha_are_taken():
    model, positive, control = load("deep-1024"), condition(text(5)), load_control()
    grey = image(64, 64)[..., :1]
    want = first_residuals(model, apply(positive, control, grey.repeat(1, 1, 1, 3))[0])
    for hint in (grey, torch.cat([grey.repeat(1, 1, 1, 3), torch.rand(1, 64, 64, 1)], dim=3)):
        assert max(differences(first_residuals(model, apply(positive, control, hint)[0]), want)) < 1e-5


def test_odd_latents_can_be_controlled():
    controlled, _ = apply(condition(text(5)), load_control(), image(72, 104))
    assert sample(load("deep-1024"), controlled, controlled, latent(72, 104)).shape == (1, 4, 9, 13)


def test_conditions_of_other_packs_do_no_harm():
    strange = {"guidance": 3.5, "strange": torch.ones(3, 3), "note": object(), "reference_latents": []}
    plain, _ = apply(condition(text(5)), load_control(), image(64, 64))
    odd, _ = apply(condition(text(5), **strange), load_control(), image(64, 64))
    model = load("deep-1024")
    assert torch.equal(*(sample(model, each, each, latent(64, 64)) for each in (plain, odd)))


def test_other_text_for_the_control_alone():
    """CLIPTextEncodeControlnet of the host puts it there; the mask of the main text is not its own."""
    base, copies = cores()
    other = text(4, seed=8)
    given = condition(text(7), cross_attn_controlnet=other), condition(text(3, seed=2), cross_attn_controlnet=other)
    pair = apply(given[0], load_control(), image(64, 64), negative=given[1])
    model, calls = spy(load("deep-1024"))
    sample(model, *pair, latent(64, 64), steps=1, cfg=2.0)
    x, t, _, _, size, aspect = core_inputs(calls[0])
    want = copies(base, encoded(image(64, 64), 64, 64), x, t, other, None, size, aspect)
    assert max(differences([None, *(r[:1] for r in calls[0]["residuals"][1:])], want)) < 1e-5


def test_without_a_negative_only_the_positive_comes_out():
    from comfy_execution.graph_utils import ExecutionBlocker
    positive, negative = apply(condition(text(5)), load_control(), image(64, 64))
    assert len(positive) == 1 and isinstance(negative, ExecutionBlocker) and "negative" in negative.message


def test_a_compiled_base_can_be_controlled():
    model = load("deep-1024")
    controlled, _ = apply(condition(text(5)), load_control(), image(64, 64))
    want = first_residuals(model, controlled)
    module = pack("nodes.host.control")
    network(model)
    model.model.diffusion_model = torch.compile(model.model.diffusion_model, backend="eager")
    assert module.network_of(model.model) is model.model.diffusion_model._orig_mod
    model.model.diffusion_model = model.model.diffusion_model._orig_mod
    assert max(differences(first_residuals(model, controlled), want)) == 0


def test_layer_by_layer_offload_of_base_and_control_gives_the_same():
    model, control = load("deep-1024").clone(), load_control()
    delta = torch.randn(3 * tiny.SHAPE["hidden"], tiny.SHAPE["hidden"])
    model.add_patches({"diffusion_model.blocks.0.attn.qkv.weight": ("diff", (delta,)),
                       "diffusion_model.blocks.0.scale_shift_table.weight": ("diff", (torch.ones(6, 48),))})
    x, hint, t, context = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16), torch.tensor([500.0]), text(5)

    def residuals(base) -> list:
        return control.control_model(x=x, hint=hint, timesteps=t, context=context, live_base=lambda: base,
                                     exact_timesteps=t, weights=(1, 1, 1))["output"]

    want = residuals(network(model))
    comfy.model_management.unload_all_models()
    device = torch.device("cpu")
    low = model.patch_model(device_to=device, lowvram_model_memory=1000)
    control.control_model_wrapped.patch_model(device_to=device, lowvram_model_memory=1000)
    try:
        assert low.model_lowvram and control.control_model.model_lowvram
        assert max(differences(residuals(low.diffusion_model), want)) < 1e-5
    finally:
        model.unpatch_model(device)
        control.control_model_wrapped.unpatch_model(device)


def refused(model, conditioning: list) -> str:
    """The message, which must come before the first step."""
    steps: list = []
    message = refusal(sample, model, conditioning, conditioning, latent(64, 64), callback=lambda *_: steps.append(1))
    assert steps == []
    return message


def test_a_control_of_another_width_depth_or_family_is_refused():
    model = load("deep-1024")
    for name, words in (("control-wide", ("96", "48", "ControlNet")), ("control-long", ("7 blocks", "5")),
                        ("control-sigma", ("PixArt-Sigma", "PixArt-alpha"))):
        message = refused(model, apply(condition(text(5)), load_control(name), image(64, 64))[0])
        assert all(word in message for word in words), message


def test_a_missing_vae_is_named_with_its_input():
    message = refused(load("deep-1024"), stock(condition(text(5)), load_control(), image(64, 64), given_vae=None)[0])
    assert "`vae`" in message and "Apply" in message


def test_a_vae_of_another_kind_is_refused():
    class Wide:
        def spacial_compression_encode(self):
            return 8

        def encode(self, pixels):
            return torch.zeros(pixels.shape[0], 16, pixels.shape[1] // 8, pixels.shape[2] // 8)

    wide = Wide()
    controlled, _ = stock(condition(text(5)), load_control(), image(64, 64), given_vae=wide)
    assert "latents of 16 channels, PixArt's have 4" in refused(load("deep-1024"), controlled)
    wide.latent_channels = 16
    message = refusal(apply, condition(text(5)), load_control(), image(64, 64), given_vae=wide)
    assert "this VAE makes latents of 16 channels, PixArt's have 4" in message      # on the node that has the VAE


def native_model():
    """A MODEL as the host's own loader makes it: its PixArt class around its own network."""
    from comfy import model_base, model_patcher, supported_models
    config = supported_models.PixArtAlpha({
        "image_model": "pixart_alpha", "depth": 2, "hidden_size": 48, "num_heads": 4, "patch_size": 2, "in_channels": 4,
        "input_size": 64, "caption_channels": tiny.WIDTH, "model_max_length": 120, "micro_condition": False,
        "pe_interpolation": 1})
    config.set_inference_dtype(torch.float32, None)
    model = model_base.PixArt(config, device=torch.device("cpu"))
    for weight in model.parameters():
        weight.zero_()
    return model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def test_the_hosts_own_pixart_is_refused():
    controlled, _ = apply(condition(text(5)), load_control(), image(64, 64))
    message = refused(native_model(), controlled)
    assert "Load PixArt" in message and "PixArtMS" in message


def test_a_model_of_another_family_is_refused():
    class BaseModel(torch.nn.Module):
        diffusion_model = torch.nn.Identity()

    control = load_control()
    control.set_cond_hint(image(64, 64).movedim(-1, 1), vae=vae())
    message = refusal(control.pre_run, BaseModel(), lambda percent: percent)
    assert "BaseModel" in message and "Identity" in message and "Load PixArt" in message


def test_files_of_other_kinds_are_refused_by_name():
    loader = pack("nodes.control").PixArtControlNetLoader()
    assert "Stable Diffusion ControlNet" in refusal(loader.load, "sd15.safetensors", "fp32")
    assert "without a ControlNet" in refusal(loader.load, "alpha-512.safetensors", "fp32")
    assert "controlnet" in refusal(loader.load, "nowhere.safetensors", "fp32")


def test_the_apply_node_refuses_what_it_cannot_use():
    positive = condition(text(5))
    assert "Load PixArt ControlNet" in refusal(apply, positive, comfy.controlnet.ControlNet(None), image(64, 64))
    assert "fade is 1.5" in refusal(apply, positive, load_control(), image(64, 64), fade=1.5)
    assert "blocks is -1" in refusal(apply, positive, load_control(), image(64, 64), blocks=-1)


def test_the_control_loader_lists_and_reports():
    loader = pack("nodes.control").PixArtControlNetLoader
    files = loader.INPUT_TYPES()["required"]["file"][0]
    assert "control.safetensors" in files and "PixArt-ControlNet.safetensors" in files
    assert "alpha-512.safetensors" not in files
    _, alone = loader().load("control.safetensors", "fp32")
    bundle, report = loader().load("PixArt-ControlNet.safetensors", "auto")
    assert all("3 blocks" in line and "width 48" in line and "1024" in line for line in (alone, report))
    assert loader.IS_CHANGED("control.safetensors") != loader.IS_CHANGED("control-wide.safetensors")
    got = bundle.control_model.state_dict()
    for name, tensor in load_control().control_model.state_dict().items():
        assert torch.equal(got[name].float(), tensor.to(got[name].dtype).float())


def test_the_stock_controlnet_classes_are_untouched():
    from nodes import ControlNetLoader
    message = ""
    try:
        ControlNetLoader().load_controlnet("control.safetensors")
    except RuntimeError as error:
        message = str(error)
    assert "invalid" in message
    for name in ("get_control", "pre_run", "cleanup", "copy"):
        assert getattr(comfy.controlnet.ControlNet, name).__module__ == "comfy.controlnet"


def test_control_leaves_its_inputs_alone():
    model, control, positive, hint = load("deep-1024"), load_control(), condition(text(5)), image(64, 64)
    before = copy.deepcopy(control.control_model.state_dict())
    kept = hint.clone(), positive[0][0].clone(), set(positive[0][1])
    controlled, _ = apply(positive, control, hint, fade=0.5, blocks=2, strength=0.5)
    inner = dict(controlled[0][1])
    sample(model, controlled, controlled, latent(64, 64))
    assert torch.equal(hint, kept[0]) and torch.equal(positive[0][0], kept[1]) and set(positive[0][1]) == kept[2]
    assert control.fade == 0 and control.first_blocks == 0 and control.cond_hint_original is None
    assert controlled[0][1].keys() == inner.keys() and controlled[0][1]["control"] is inner["control"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in control.control_model.state_dict().items())


def test_nothing_of_the_base_is_kept_after_a_run():
    model = load("deep-1024")
    controlled, _ = apply(condition(text(5)), load_control(), image(64, 64))
    sample(model, controlled, controlled, latent(64, 64))
    control = controlled[0][1]["control"]
    assert control.running is None and control.cond_hint is None and control.model_sampling_current is None
    assert control.extra_args == {}
    gone = weakref.ref(model.model.diffusion_model)
    comfy.model_management.unload_all_models()
    del model
    gc.collect()
    assert gone() is None


def test_a_run_after_an_interrupted_one_starts_anew():
    controlled, _ = apply(condition(text(5)), load_control(), image(64, 64))
    want = first_residuals(load("deep-1024"), apply(condition(text(5)), load_control(), image(64, 64))[0])

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with contextlib.suppress(Stop):
        sample(load("deep-1024", "bf16"), controlled, controlled, latent(64, 64), callback=stop)
    assert controlled[0][1]["control"].cond_hint.dtype == torch.bfloat16
    assert max(differences(first_residuals(load("deep-1024"), controlled), want)) == 0


def test_a_copy_for_another_device_has_its_own_weights():
    control = apply(condition(text(5)), load_control(), image(64, 64), fade=0.5, blocks=2)[0][0][1]["control"]
    clone = control.deepclone_multigpu(torch.device("cpu"))
    assert type(clone) is type(control) and (clone.fade, clone.first_blocks) == (0.5, 2)
    assert clone.get_models()[0].model is clone.control_model is not control.control_model
    for name, tensor in control.control_model.state_dict().items():
        other = clone.control_model.state_dict()[name]
        assert torch.equal(tensor, other) and tensor.data_ptr() != other.data_ptr()


def test_the_host_knows_what_a_control_needs():
    control = load_control()
    chained = control.copy().set_previous_controlnet(load_control("control-wide"))
    assert [type(each.model).__name__ for each in chained.get_models()] == ["HostControlNet"] * 2
    one = control.inference_memory_requirements(torch.float32)
    assert one == 2 * 3 * 64 ** 2 * 48 * 4
    assert chained.inference_memory_requirements(torch.float32) == 3 * one
