"""PixArt Cache on a MODEL: any sampler, size, batch, LoRA and control; nothing carried over; it says what it did."""
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from support import (
    condition,
    image,
    image_latent,
    latent,
    load,
    load_control,
    node,
    off,
    pack,
    refusal,
    sample,
    text,
    vae,
)

from nodes import ControlNetApplyAdvanced, LoraLoaderModelOnly

NOT_DYNAMIC = ("test_a_lora_switched_on_is_not_forgotten",)

DEPTH = 5           # of the tiny model
METHODS = ("fora", "every-n", "delta-dit", "t-gate", "first-block", "steps")


def cached(model, method: str = "every-n", budget: float = 2.0, start: float = 0.0, end: float = 1.0, **more):
    (patched,) = node("PixArtCache")().apply(model, method, budget, start, end, **more)
    return patched


def told() -> list[str]:
    """What the nodes say from now on, in order."""
    said: list[str] = []
    pack("nodes.host.cache").show_text = lambda text, node=None: said.append(text)
    return said


def prompts() -> tuple[list, list]:
    return condition(text(6)), condition(text(2))


def test_a_budget_of_one_changes_no_bit():
    model, given = load("deep-1024"), (*prompts(), latent(64, 96, images=2), 4, 3.0)
    want = sample(model, *given)
    for method in METHODS:
        assert torch.equal(sample(cached(model, method, 1.0), *given), want), method


def test_every_method_reuses_and_says_so():
    model, given = load("deep-1024"), (*prompts(), latent(64, 96), 8, 3.0)
    want = sample(model, *given)
    for method in METHODS:
        said = told()
        got = sample(cached(model, method), *given)
        assert off(got, want) > 1e-5 and got.isfinite().all(), method
        assert "less work" in said[-1] and "branches computed" in said[-1] and " s" in said[-1], said
        counted = said[-1].split("\n")[1].split(" branches")[0].replace(",", "")
        done, whole = map(int, counted.split(" of "))
        assert whole == 3 * DEPTH * 2 * 8 and done < 0.8 * whole, (method, said)


def test_rows_of_a_batch_are_as_alone():
    """With prompts of unequal length; the second image has the noise that it has in the batch."""
    import comfy.sample
    model = load("deep-1024")
    noise = comfy.sample.prepare_noise(torch.zeros(2, 4, 8, 12), 1)

    def run(part: torch.Tensor, method: str) -> torch.Tensor:
        return comfy.sample.sample(cached(model, method), part, 8, 3.0, "euler", "normal",
                                   *(condition(text(n), width=768, height=512) for n in (6, 2)),
                                   torch.zeros_like(part), disable_pbar=True, seed=1)

    for method in METHODS:
        both = run(noise, method)
        assert off(torch.cat([run(noise[:1], method), run(noise[1:], method)]), both) < 2e-5, method


def test_other_size_seed_prompt_and_sampler_are_as_with_a_fresh_node():
    model = load("deep-1024")
    used = cached(model, "first-block")
    first = sample(used, *prompts(), latent(64, 96), 6, 3.0)
    for given in ((*prompts(), latent(96, 64), 6, 3.0), (*prompts(), latent(64, 96), 9, 3.0, 7),
                  (condition(text(4, 3)), condition(text(5)), latent(64, 96, 2), 6, 2.0, 1, "dpmpp_2m")):
        assert torch.equal(sample(used, *given), sample(cached(model, "first-block"), *given))
    assert torch.equal(sample(used, *prompts(), latent(64, 96), 6, 3.0), first)


def test_a_second_pass_at_twice_the_size_image_to_image():
    model, used = load("deep-1024"), cached(load("deep-1024"))
    small = sample(used, *prompts(), latent(64, 64), 6, 3.0)
    large = {"samples": torch.nn.functional.interpolate(small, scale_factor=2)}
    assert torch.equal(sample(used, *prompts(), large, 4, 3.0), sample(cached(model), *prompts(), large, 4, 3.0))


def test_masks_and_images_to_start_from():
    given = image_latent(64, 96)
    given["noise_mask"] = torch.zeros(1, 64, 96)
    given["noise_mask"][..., :48] = 1
    got = sample(cached(load("deep-1024")), *prompts(), given, 6, 3.0)
    assert torch.allclose(got[..., 8:], given["samples"][..., 8:], atol=1e-4) and got.isfinite().all()


def test_control_is_live_in_steps_that_reuse_all():
    model, given = load("deep-1024"), (latent(64, 96), 6, 3.0)
    for method in ("steps", "delta-dit", "every-n"):
        results = []
        for strength in (0.0, 0.8):
            pair = ControlNetApplyAdvanced().apply_controlnet(*prompts(), load_control(), image(64, 96), strength, 0.0,
                                                              1.0, vae=vae())
            results.append(sample(cached(model, method), *pair, *given))
        assert off(*results) > 1e-3, method


def test_a_lora_switched_on_is_not_forgotten():
    def with_lora(model):
        return LoraLoaderModelOnly().load_lora_model_only(model, "tiny-lora.safetensors", 1.0)[0]

    model, given = load("alpha-1024"), (*prompts(), latent(64, 64), 6, 3.0)
    plain, before = cached(model), sample(cached(model), *given)
    changed = sample(cached(with_lora(model)), *given)
    assert off(changed, before) > 1e-3
    assert off(sample(with_lora(cached(model)), *given), changed) < 1e-6
    assert torch.equal(sample(plain, *given), before)


def test_two_models_at_once():
    one, other = load("deep-1024"), load("alpha-1024")
    given = (*prompts(), latent(64, 64), 6, 3.0)
    apart = [sample(cached(each), *given) for each in (one, other)]
    both = [cached(one), cached(other)]
    assert all(torch.equal(sample(model, *given), want) for model, want in zip(both * 2, apart * 2))


def test_a_cancelled_run_leaves_nothing():
    def cancel(step: int, *_: object) -> None:
        if step == 2:
            raise comfy.model_management.InterruptProcessingException()

    model = load("deep-1024")
    for method in METHODS:
        used, given = cached(model, method), (*prompts(), latent(64, 96), 6, 3.0)
        try:
            sample(used, *given, callback=cancel)
            raise AssertionError("it was not cancelled")
        except comfy.model_management.InterruptProcessingException:
            pass
        assert torch.equal(sample(used, *given), sample(cached(model, method), *given)), method


def test_samplers_that_look_twice_are_right():
    """A budget of 1 is exact, and with reuse the images of a batch stay apart from each other."""
    model = load("deep-1024")
    for sampler in ("heun", "dpm_2", "dpmpp_2s_ancestral"):
        given = (*prompts(), latent(64, 64), 6, 3.0, 1, sampler)
        want = sample(model, *given)
        assert torch.equal(sample(cached(model, "steps", 1.0), *given), want)
        for method in METHODS:
            got = sample(cached(model, method, 1.5), *given)
            assert got.isfinite().all() and off(got, want) > 1e-6, (sampler, method)


def test_guidance_ends_at_the_gate():
    from comfy.patcher_extension import WrappersMP
    model, sizes = load("deep-1024").clone(), []

    def count(executor, *args, **kwargs):
        sizes.append(args[0].shape[0])
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    said = told()
    sample(cached(model, "t-gate", 1.8), *prompts(), latent(64, 64), 8, 3.0)
    gate = sizes.index(1)
    assert sizes == [2] * gate + [1] * (8 - gate) and f"gate {gate}," in said[0]
    assert f"{8 - gate} passes for negative prompts left out" in said[-1]


def test_the_lcm_sampler_of_this_pack():
    model, positive = load("deep-1024"), condition(text(6))
    run = pack("nodes.host.sampling").run_lcm

    def drawn(model, steps: int) -> torch.Tensor:
        return run(model, positive, None, latent(64, 64, 2), 3, steps, "official", 1.0, 1.0)["samples"]

    for method in METHODS:
        assert torch.equal(drawn(cached(model, method, 1.0), 4), drawn(model, 4)), method
        assert drawn(cached(model, method, 1.5), 4).isfinite().all(), method
    assert off(drawn(cached(model, "steps"), 4), drawn(model, 4)) > 1e-4


def test_a_connected_vae_compares_with_the_run_without_reuse():
    model, said = load("deep-1024"), told()
    given = (*prompts(), latent(64, 64), 6, 3.0, 1, "euler_ancestral")
    got = sample(cached(model, vae=vae()), *given)
    assert torch.equal(got, sample(cached(model), *given)) and "PSNR of the images" in " ".join(said)
    said.clear()
    sample(cached(model, "steps", 1.0, vae=vae()), *given)
    assert "inf dB" in said[-1]


def test_a_schedule_file_is_followed_and_a_wrong_one_refused():
    accelerate = pack("pixart.accelerate")
    folder = folder_paths.models_dir + "/pixart_schedules"
    Path(folder).mkdir(exist_ok=True)
    for depth in (DEPTH, 28):
        accelerate.write_ecad(Path(folder, f"d{depth}.json"),
                              accelerate.every_n(6, depth, 3))
    model, given = load("deep-1024"), (*prompts(), latent(64, 64), 6, 3.0)
    names = node("PixArtCache").INPUT_TYPES()["optional"]["schedule"][0]
    assert {"none", f"d{DEPTH}.json", "d28.json"} <= set(names)
    followed = cached(model, "ecad", schedule=f"d{DEPTH}.json")
    assert torch.equal(sample(followed, *given), sample(cached(model, "every-n", 2.9), *given))
    Path(folder, "sub").mkdir(exist_ok=True)
    Path(folder, "sub", "own.json").write_bytes(Path(folder, f"d{DEPTH}.json").read_bytes())
    assert torch.equal(sample(cached(model, "ecad", schedule="sub\\own.json"), *given), sample(followed, *given))
    for arguments, found in (((cached(model, "ecad", schedule="d28.json"), *given), "28 blocks, this model has 5"),
                             ((followed, *prompts(), latent(64, 64), 8, 3.0), "6 steps, this sampling takes 8")):
        message = refusal(sample, *arguments)
        assert found in message and ".json" in message, message
    assert "for the method ecad" in refusal(cached, model, "fora", schedule=f"d{DEPTH}.json")


def test_other_models_and_odd_shares_are_refused():
    class Other:
        model = torch.nn.Identity()

    assert "Load PixArt" in refusal(cached, Other())
    assert "start <= end" in refusal(cached, load("deep-1024"), start=0.8, end=0.2)
    assert "no schedule for 5 blocks and 6 steps" in refusal(
        sample, cached(load("deep-1024"), "ecad"), *prompts(), latent(64, 64), 6, 3.0)
