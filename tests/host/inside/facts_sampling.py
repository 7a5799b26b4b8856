"""The few-step samplers: the library's mathematics inside the host's sampling."""
import inspect
from functools import partial
from unittest.mock import patch

import comfy.sample
import comfy.samplers
import torch
from host import tiny
from support import condition, image_latent, latent, load, network, node, off, pack, refusal, sample, text


def lcm(model, positive: list, given: dict, seed: int = 7, steps: int = 4, rule: str = "official", denoise: float = 1.0,
        **named: object) -> torch.Tensor:
    return node("PixArtLCMSampler")().sample(model, positive, given, seed, steps, rule, denoise, **named)[0]["samples"]


def library_lcm(model, context: torch.Tensor, given: dict, seed: int, steps: int, rule: str,
                denoise: float) -> torch.Tensor:
    """pixart.sampling.lcm on the same network with the same noises, in and out in the VAE's scale."""
    sampling, schedule = pack("pixart.sampling.lcm"), pack("pixart.sampling.schedule")
    scale, samples = model.model.latent_format.scale_factor, given["samples"]
    transformer, count = network(model), samples.shape[0]
    noise = comfy.sample.prepare_noise(samples, seed)
    seeds = pack("nodes.host.sampling").renoise_seeds(seed, range(count))
    renoise = pack("pixart.sampling.noise").ImageNoise(seeds, tuple(samples.shape[1:]))
    timesteps = sampling.lcm_timesteps(steps, rule, denoise)
    start = noise
    if denoise < 1:
        start = schedule.add_noise(samples * scale, noise, torch.full((count,), timesteps[0]))

    def eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return transformer(x, t, context.expand(count, -1, -1))

    return sampling.lcm(eps, start, timesteps, renoise) / scale


def test_lcm_equals_the_library():
    model, context = load("alpha-1024"), text(6)
    for steps, rule in ((1, "official"), (4, "official"), (4, "diffusers"), (8, "diffusers")):
        given = latent(64, 96, images=2)
        want = library_lcm(model, context, given, 7, steps, rule, 1.0)
        assert off(lcm(model, condition(context), given, 7, steps, rule), want) < 1e-4, (steps, rule)


def test_lcm_from_an_image_equals_the_library():
    model, context, given = load("sigma-1024"), text(6), image_latent(64, 64)
    for denoise in (0.3, 0.62):
        want = library_lcm(model, context, given, 3, 3, "official", denoise)
        assert off(lcm(model, condition(context), given, 3, 3, "official", denoise), want) < 1e-4, denoise


def test_the_consistency_function_is_the_identity_at_timestep_0():
    """f = c_skip x + c_out x0 with c_skip = 0.25 / ((10 t)^2 + 0.25); of x0 alone nothing is left there."""
    schedule = node("PixArtLCMSigmas")().make(load("alpha-1024"), 4, "official", 1.0)[0].get_model_object(
        "model_sampling")
    noisy, eps, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 1, 999])
    sigma = schedule.sigmas[t]
    each = sigma.double().view(-1, 1, 1, 1)
    skip = (0.25 / ((10.0 * t.double()) ** 2 + 0.25)).view(-1, 1, 1, 1)
    x, x0 = noisy.double() / (1 + each ** 2).sqrt(), noisy.double() - each * eps.double()
    got = schedule.calculate_denoised(sigma, eps, noisy)
    assert off(got, skip * x + (1 - skip).sqrt() * x0) < 1e-5
    assert off(got[:1], x[:1]) < 1e-6 and off(x0[:1], x[:1]) > 1e-3


def test_the_steps_visited_are_the_published_ones():
    from comfy.patcher_extension import WrappersMP
    for rule, want in (("official", [999, 759, 519, 279]), ("diffusers", [999, 759, 499, 259])):
        model, seen = load("alpha-512").clone(), []

        def wrapper(executor, *args, seen=seen, **kwargs):
            seen.append(args[1].tolist())
            return executor(*args, **kwargs)

        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
        lcm(model, condition(text(3)), latent(64, 64), rule=rule)
        assert seen == [[float(t)] for t in want]


def test_fresh_noise_is_not_the_starting_noise():
    for seed in (0, 1, 2 ** 64 - 1):
        start = comfy.sample.prepare_noise(torch.zeros(2, 4, 8, 8), seed)
        seeds = pack("nodes.host.sampling").renoise_seeds(seed, range(2))
        fresh = pack("pixart.sampling.noise").ImageNoise(seeds, (4, 8, 8))()
        for a in fresh:
            assert all((a - b).abs().max() > 1 for b in start)
        assert (fresh[0] - fresh[1]).abs().max() > 1


def test_the_same_seed_gives_the_same_latent_and_another_seed_another():
    model, positive, given = load("alpha-1024"), condition(text(5)), latent(64, 64)
    assert torch.equal(lcm(model, positive, given), lcm(model, positive, given))
    assert off(lcm(model, positive, given, seed=8), lcm(model, positive, given)) > 0.01


def test_an_image_does_not_depend_on_its_batch():
    model, positive = load("alpha-1024"), condition(text(5))
    both = lcm(model, positive, latent(64, 64, images=3))
    alone = lcm(model, positive, {**latent(64, 64), "batch_index": [2]})
    assert off(alone, both[2:]) < 1e-4


def test_the_schedule_node_with_stock_custom_sampling_gives_the_same():
    model, positive, given = load("alpha-1024"), condition(text(5)), latent(64, 64)
    patched, sampler, sigmas = node("PixArtLCMSigmas")().make(model, 4, "official", 1.0)
    assert sigmas.shape == (5,) and sigmas[-1] == 0 and patched is not model
    noise = comfy.sample.prepare_noise(given["samples"], 7)
    got = comfy.sample.sample_custom(patched, noise, 1.0, sampler, sigmas, positive, positive, given["samples"],
                                     disable_pbar=True, seed=7)
    assert torch.equal(got, lcm(model, positive, given))


def test_the_model_itself_keeps_its_own_prediction():
    model = load("alpha-1024")
    before = model.get_model_object("model_sampling")
    node("PixArtLCMSigmas")().make(model, 4, "official", 1.0)
    lcm(model, condition(text(5)), latent(64, 64))
    assert model.get_model_object("model_sampling") is before


def test_the_stock_lcm_nodes_visit_the_diffusers_steps():
    """ModelSamplingDiscrete (lcm) with scheduler simple on our MODEL: an independent oracle of the rule."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
    model = load("alpha-1024")
    stock = ModelSamplingDiscrete().patch(model, "lcm", False)[0].get_model_object("model_sampling")
    want = comfy.samplers.calculate_sigmas(stock, "simple", 4)
    got = node("PixArtLCMSigmas")().make(model, 4, "diffusers", 1.0)[2]
    assert off(got, want) < 1e-5


def test_denoise_zero_returns_the_latent():
    given = image_latent(64, 64)
    assert torch.equal(lcm(load("alpha-1024"), condition(text(5)), given, denoise=0.0), given["samples"])


def test_outside_of_a_mask_the_image_stays():
    model, given = load("alpha-1024"), image_latent(64, 64)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    result = lcm(model, condition(text(5)), {**given, "noise_mask": mask}, denoise=0.6)
    assert off(result[:, :, 5:], given["samples"][:, :, 5:]) < 1e-5
    assert off(result[:, :, :3], given["samples"][:, :, :3]) > 0.01


def test_inputs_are_left_alone():
    model, positive, given = load("alpha-1024"), condition(text(5)), image_latent(64, 64)
    copies = given["samples"].clone(), positive[0][0].clone(), dict(positive[0][1])
    node("PixArtLCMSampler")().sample(model, positive, given, 1, 2, "official", 0.5)
    assert torch.equal(given["samples"], copies[0]) and torch.equal(positive[0][0], copies[1])
    assert positive[0][1] == copies[2] and set(given) == {"samples"}


def test_cfg_uses_the_negative_prompt():
    model, positive, negative = load("alpha-1024"), condition(text(5)), condition(text(2, seed=4))
    plain = lcm(model, positive, latent(64, 64), negative=negative)
    assert torch.equal(plain, lcm(model, positive, latent(64, 64)))
    assert off(lcm(model, positive, latent(64, 64), negative=negative, cfg=1.5), plain) > 1e-3


def test_dmd_equals_the_library():
    model, context, given = load("alpha-512"), text(6), latent(64, 96, images=2)
    transformer = network(model)
    noise = comfy.sample.prepare_noise(given["samples"], 11)
    want = pack("pixart.sampling.dmd").dmd(lambda x, t: transformer(x, t, context.expand(2, -1, -1)), noise)
    got = node("PixArtDMDSampler")().sample(model, condition(context), given, 11)[0]["samples"]
    assert off(got, want / model.model.latent_format.scale_factor) < 1e-5


def refused(given: dict, **named: object) -> str:
    return refusal(lcm, load("alpha-1024"), condition(text(3)), given, **named)


def test_bad_latents_are_refused():
    broken = image_latent(64, 64)
    broken["samples"][0, 0, 0, 0] = float("nan")
    assert "not finite" in refused(broken)
    assert "16" in refused({"samples": torch.ones(1, 16, 8, 8)})
    assert "Connect PixArt Empty Latent" in refused({"samples": torch.ones(1, 4, 5, 8, 8)})
    assert "Connect PixArt Empty Latent" in refused({"samples": torch.ones(1, 4, 1, 8)})


def test_nested_latents_are_refused():
    class Nested:
        is_nested = True
    assert "PixArt makes single images" in refused({"samples": Nested()})


def test_an_empty_latent_of_another_scale_is_sampled_at_the_size_that_was_asked_for():
    """Empty Flux 2 Latent has 16 pixels a cell. Older hosts do not say so."""
    told = {"samples": torch.zeros(1, 128, 4, 4), "downscale_ratio_spacial": 16}
    drawn = node("PixArtLCMSampler")().sample(load("alpha-1024"), condition(text(3)), told, 1, 1, "official", 1.0)[0]
    new = "downscale_ratio_spacial" in inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    assert drawn["samples"].shape == ((1, 4, 8, 8) if new else (1, 4, 4, 4)) and set(drawn) == {"samples"}


def test_an_empty_latent_of_another_model_is_given_four_channels():
    assert lcm(load("alpha-1024"), condition(text(3)), {"samples": torch.zeros(1, 16, 8, 8)}).shape == (1, 4, 8, 8)


def test_impossible_steps_and_strengths_are_refused():
    given = image_latent(64, 64)
    assert "steps is -3" in refused(given, steps=-3)
    assert "steps is 0" in refused(given, steps=0)
    assert "denoise is 1.5" in refused(given, denoise=1.5)
    assert "between 1 and 2" in refused(given, steps=4, denoise=0.05)
    assert "rule" in refused(given, rule="karras")


def test_cfg_without_a_negative_prompt_is_refused():
    assert "negative" in refused(latent(64, 64), cfg=1.5)


def test_dmd_refuses_an_image():
    message = refusal(node("PixArtDMDSampler")().sample, load("alpha-512"), condition(text(3)), image_latent(64, 64), 1)
    assert "empty latent" in message


def test_another_kind_of_model_is_refused():
    class Other:
        model = torch.nn.Identity()
    message = refusal(node("PixArtLCMSigmas")().make, Other(), 4, "official", 1.0)
    assert "Identity" in message and "Load PixArt" in message


def test_an_interrupt_ends_the_sampling():
    import comfy.model_management as management
    model, steps = load("alpha-1024"), []

    def callback(step: int, *_: object) -> None:
        steps.append(step)
        management.throw_exception_if_processing_interrupted()
        management.interrupt_current_processing()

    patched, sampler, sigmas = node("PixArtLCMSigmas")().make(model, 8, "official", 1.0)
    samples = latent(64, 64)["samples"]
    try:
        comfy.sample.sample_custom(patched, samples, 1.0, sampler, sigmas, condition(text(3)), condition(text(3)),
                                   samples, callback=callback, disable_pbar=True)
    except management.InterruptProcessingException:
        assert len(steps) <= 2
    else:
        raise AssertionError("it went on")
    finally:
        management.interrupt_current_processing(False)


def test_empty_latents_have_trained_sizes():
    make = node("PixArtEmptyLatent")().make
    made, width, height = make("1024", "7:4 (16:9)", 2)
    assert (width, height) == (1344, 768) and made["samples"].shape == (2, 4, 96, 168)
    assert make("512", "4:7 (9:16)", 1)[1:] == (384, 672)
    assert make("128", "4:1", 1)[1:] == (160, 96)
    assert made["samples"].count_nonzero() == 0


def noticed(run) -> list[str]:
    """What is said on nodes and in the log meanwhile."""
    import logging
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = pack("nodes.host.notices").logger
    logger.addHandler(handler)
    try:
        run()
    finally:
        logger.removeHandler(handler)
    return lines


def test_a_size_far_from_the_trained_ones_is_mentioned_by_every_sampler():
    model, prompt = load("alpha-512"), condition(text(3))
    for run in (partial(lcm, model, prompt, steps=1), partial(sample, model, prompt, prompt)):
        assert not [line for line in noticed(partial(run, given=latent(512, 512))) if "far from" in line]
        (line,) = [line for line in noticed(partial(run, given=latent(64, 128))) if "far from" in line]
        assert "128 x 64" in line and "704 x 352" in line


def test_a_fresh_installation_begins_with_the_size_of_mini():
    folders, kind = pack("nodes.host.folders"), node("PixArtEmptyLatent")

    def begins_with(*names: str) -> str:
        with patch.object(folders, "_files_of", lambda category: list(names)):
            return kind.INPUT_TYPES()["required"]["resolution"][1]["default"]
    assert begins_with("pixart-mini/lcm.safetensors") == "128"
    assert begins_with("flux1-dev.safetensors", "pixart-mini/lcm.safetensors") == "128"
    assert begins_with("PixArt-XL-2-1024-MS.pth", "pixart-mini/lcm.safetensors") == "1024"


def test_the_loader_says_which_vae_belongs_to_the_model():
    said = pack("nodes.host.notices").vae_for
    assert "SDXL" in said(tiny.CONFIGS["sigma-1024"]) and "sd-vae-ft-ema" in said(tiny.CONFIGS["alpha-512"])


