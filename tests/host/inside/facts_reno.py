"""PixArt ReNO inside the host: it begins with the host's own image, gains, and leaves everything as it was."""
import functools
from types import SimpleNamespace

import comfy.model_management
import torch
from support import MODELS, condition, latent, load, network, node, off, pack, refusal, text, vae

PROMPT = "a red circle above a green ring on white"


def wanted(**changes: object) -> dict:
    given = {"positive": condition(text(6)), "vae": vae(), "latent": latent(32, 48), "prompt": PROMPT, "seed": 3,
             "sampler": "lcm", "steps": 2, "rule": "official", "iterations": 3, "rate": 5.0, "clip": 0.1,
             "regularisation": 0.01, "judge": 1.0, "clip_score": 0.0, "pickscore": 0.0, "hpsv2": 0.0,
             "imagereward": 0.0, "save_memory": True}
    return {**given, **changes}


def found(model, **changes: object) -> tuple:
    return node("PixArtReNO")().optimise(model, **wanted(**changes))


@functools.cache
def model():
    return load("alpha-1024")


def drawn(noise, steps: int = 2):
    """What the stock SamplerCustomAdvanced makes of NOISE with PixArt LCM Schedule, and its image."""
    from comfy_extras import nodes_custom_sampler as custom
    patched, sampler, sigmas = node("PixArtLCMSigmas")().make(model(), steps, "official", 1.0)
    guider = custom.BasicGuider().execute(patched, condition(text(6)))[0] if hasattr(custom.BasicGuider, "execute") \
        else custom.BasicGuider().get_guider(patched, condition(text(6)))[0]
    advanced = custom.SamplerCustomAdvanced
    run = advanced.execute if hasattr(advanced, "execute") else advanced().sample
    samples = run(noise, guider, sampler, sigmas, latent(32, 48))[0]
    return vae().decode(samples["samples"])


def test_one_iteration_is_the_image_of_the_sampler_node():
    image, noise, *_ = found(model(), iterations=1)
    own = node("PixArtLCMSampler")().sample(model(), condition(text(6)), latent(32, 48), 3, 2, "official", 1.0)[0]
    assert image.shape == (1, 32, 48, 3)
    assert off(image, vae().decode(own["samples"])) < 1e-4
    assert torch.equal(noise.noise, comfy.sample.prepare_noise(latent(32, 48)["samples"], 3))


def test_it_gains_and_its_noise_gives_its_image_in_stock_nodes():
    image, noise, started, log, curve = found(model(), iterations=6, clip=1.0)
    first = found(model(), iterations=1)
    assert log.splitlines()[0].startswith("reward ") and len(log.splitlines()) == 7
    assert not torch.equal(noise.noise, first[1].noise)
    assert off(image, drawn(noise)) < 1e-4
    assert curve.shape == (1, 160, 512, 3) and curve.std() > 0.01
    refused = refusal(noise.generate_noise, latent(64, 64))
    assert "is for latents of shape (1, 4, 4, 6)" in refused


def test_the_latent_starts_a_sampler_that_adds_no_noise_with_the_same_noise():
    _, noise, started, *_ = found(model(), iterations=1)
    asked = []

    def first(model_function, options):
        asked.append(options["input"])
        return model_function(options["input"], options["timestep"], **options["c"])
    patched = model().clone()
    patched.set_model_unet_function_wrapper(first)
    from nodes import KSamplerAdvanced
    KSamplerAdvanced().sample(patched, "disable", 0, 2, 1.0, "euler", "normal", condition(text(6)), condition(text(6)),
                              started, 0, 2, "disable")
    sigma = float(model().get_model_object("model_sampling").sigma_max)
    assert off(asked[0][:1] / (1 + sigma ** 2) ** 0.5, noise.noise) < 1e-5


def test_the_latent_starts_each_few_step_sampler_as_the_noise_does():
    for method, steps in (("lcm", 2), ("tdm", 2), ("dmd", 1)):
        _, noise, started, *_ = found(model(), sampler=method, steps=steps, iterations=1)
        patched, sampler, sigmas, *_ = node("PixArtSteps")().make(model(), method, steps, 1.0, 1.0)
        empty, given = torch.zeros_like(noise.noise), condition(text(6))
        added, begun = (comfy.sample.sample_custom(patched, added, 1.0, sampler, sigmas, given, given, begin, seed=3)
                        for added, begin in ((noise.noise, empty), (empty, started["samples"])))
        assert added.std() > 0.01 and off(begun, added) < 1e-3, method


def test_a_model_with_policies_or_patches_is_refused():
    """Noise would be optimised for the plain network and sampled with another."""
    steered = node("PixArtNAG")().apply(model(), condition(text(3)), 5.0, 2.5, 0.5, 0.0, 1.0)[0]
    patched = model().clone()
    patched.set_model_attn1_patch(lambda q, k, v, extra: (q, k, v))
    for each in (steered, patched):
        assert "connect the MODEL from before that node" in refusal(found, each)


def test_images_of_a_batch_do_not_depend_on_each_other():
    both = found(model(), latent=latent(32, 48, 2), iterations=4)
    alone = found(model(), iterations=4)
    assert off(both[0][:1], alone[0]) < 1e-3


def test_saving_memory_changes_nothing_else():
    assert off(found(model())[0], found(model(), save_memory=False)[0]) < 1e-4


def test_everything_is_left_as_it_was():
    """The host's tensors are those of inference mode; it must find them unchanged, and itself in that mode."""
    given = wanted()
    networks = (network(model()), vae().first_stage_model)
    before = [tensor.clone() for part in networks for tensor in part.state_dict().values()]
    context, samples = given["positive"][0][0].clone(), given["latent"]["samples"].clone()
    seed = torch.get_rng_state()
    found(model(), **given)
    assert torch.is_inference_mode_enabled()
    after = [tensor for part in networks for tensor in part.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert torch.equal(given["positive"][0][0], context) and torch.equal(given["latent"]["samples"], samples)
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(tensor.grad is None for part in networks for tensor in part.parameters())


def test_cancelled_it_keeps_the_best_and_says_where():
    from pathlib import Path

    import folder_paths
    folder = Path(folder_paths.get_output_directory()) / "pixart-reno"
    watch = pack("nodes.host.reno").RenoWatch
    call = watch.__call__

    def stopping(self, done, images):
        if done.number == 2:
            comfy.model_management.interrupt_current_processing()
        call(self, done, images)
    watch.__call__ = stopping
    try:
        found(model(), iterations=40)
    except comfy.model_management.InterruptProcessingException:
        assert not comfy.model_management.processing_interrupted()
    else:
        raise AssertionError("it was not interrupted")
    finally:
        watch.__call__ = call
    kept = pack("pixart.reward.record").load_noise(folder / "seed-3-1-noise.safetensors")
    assert kept.shape == (1, 4, 4, 6) and (folder / "seed-3-1.png").is_file()


def test_what_is_wrong_is_said_before_any_work():
    for changes, message in (
            ({"judge": 0.0}, "every reward has the weight 0"),
            ({"prompt": "a photo of a cat"}, "PixArt-mini's judge cannot read this sentence"),
            ({"hpsv2": 5.0}, "put HPS_v2.1_compressed.pt (xswu/HPSv2 on Hugging Face) into models/rewards"),
            ({"positive": condition(text(6)) * 2}, "has 2 parts"),
            ({"vae": SimpleNamespace(latent_channels=3, encode=None)}, "makes latents of 3 channels, PixArt's have 4"),
            ({"positive": condition(text(6), control=object())}, "has control, which"),
            ({"positive": condition(text(6), width=96, height=0)}, "tells the model 96 x 32, the latent is 48 x 32"),
            ({"iterations": 0}, "iterations is 0; expected a whole number from 1 to 1000")):
        assert message in refusal(found, model(), **changes), changes
    assert "HPS_v2.1" in node("PixArtReNO").VALIDATE_INPUTS(hpsv2=1.0)
    assert node("PixArtReNO").VALIDATE_INPUTS(hpsv2=0.0) is True
    empty = MODELS / "rewards" / "pickscore"
    empty.mkdir(parents=True)
    assert node("PixArtReNO").VALIDATE_INPUTS(pickscore=1.0) is True
    assert "no weights in this folder" in refusal(found, model(), pickscore=1.0)
    empty.rmdir()
