"""A PT-DiT in the host: Load PixArt opens it, the host's samplers give the library's images, PixArt's nodes refuse."""
import comfy.model_base
import comfy.sample
import torch
from host import tiny
from safetensors.torch import save_file
from support import (
    MODELS,
    condition,
    image,
    latent,
    load,
    load_control,
    network,
    node,
    off,
    off_when_offloaded,
    pack,
    refusal,
    sample,
    text,
    vae,
)

NOT_DYNAMIC = ("test_weights_kept_out_of_the_device_give_the_same",
               "test_a_saved_model_is_loaded_again")

POSITIVE, NEGATIVE = condition(text(4)), condition(text(7, seed=1))


def library():
    """The same file as a network of the library."""
    return pack("pixart.pt_dit.load").load_pt_dit(MODELS / "diffusion_models" / "pt-dit.safetensors")


def drawn(model, steps: int = 5, cfg: float = 1.0, scheduler: str = "simple") -> torch.Tensor:
    samples = latent(128, 192)["samples"]
    return comfy.sample.sample(model, comfy.sample.prepare_noise(samples, 3), steps, cfg, "euler", scheduler, POSITIVE,
                               NEGATIVE, samples, disable_pbar=True, seed=3)


def flow(steps: int, guidance: float) -> torch.Tensor:
    """What the library makes from the noise of the host."""
    sampling, own = pack("pixart.sampling.flow"), library()
    noise = comfy.sample.prepare_noise(latent(128, 192)["samples"], 3)
    shift = own.config.flow_shift(own.config.resolution, own.config.resolution)

    def velocity(x, t):
        cond, uncond = own(x, t, POSITIVE[0][0]), own(x, t, NEGATIVE[0][0])
        return uncond + guidance * (cond - uncond)
    with torch.inference_mode():
        clean = sampling.euler_flow(velocity, noise, sampling.flow_shares(steps, shift))
    return clean / own.config.latent_scale


def test_it_is_a_flow_model_of_its_own():
    model = load("pt-dit")
    assert not isinstance(model.model, comfy.model_base.PixArt)
    schedule = model.get_model_object("model_sampling")
    assert type(schedule).__mro__[1].__name__ == "ModelSamplingDiscreteFlow"
    assert schedule.shift == tiny.PT_DIT.flow_shift(128, 128) == 0.25
    assert float(schedule.timestep(schedule.sigma_max)) == 1000
    assert "PT-DiT 128" in model.model.model_config.description


def test_the_hosts_sampler_gives_what_the_library_gives():
    """With prompts of different lengths in one pass, at guidance and without."""
    model = load("pt-dit")
    for guidance in (1.0, 4.0):
        assert off(drawn(model, 5, guidance), flow(5, guidance)) < 2e-4


def test_prompts_of_different_lengths_share_a_pass():
    model, rows = load("pt-dit"), []
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor, x, *args, **kwargs):
        rows.append(len(x))
        return executor(x, *args, **kwargs)
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", wrapper)
    assert torch.equal(drawn(patched, 2, 4.0), drawn(model, 2, 4.0))
    assert rows == [2, 2]


def test_weights_kept_out_of_the_device_give_the_same():
    assert off_when_offloaded(load("pt-dit")) < 1e-5


def test_a_saved_model_is_loaded_again():
    """As ModelSave writes it: tensors alone. Newer hosts ask the patcher, which merges LoRAs on the way."""
    model = load("pt-dit")
    owner = model if hasattr(model, "state_dict_for_saving") else model.model
    state = {name: tensor.contiguous() for name, tensor in owner.state_dict_for_saving().items()}
    save_file(state, MODELS / "diffusion_models" / "pt-dit-saved.safetensors")
    x, t, context = torch.randn(1, 4, 16, 16), torch.tensor([500.0]), text(5)
    assert torch.equal(network(load("pt-dit-saved"))(x, t, context), network(model)(x, t, context))


def test_bf16_stays_near():
    assert off(drawn(load("pt-dit", "bf16"), 2), drawn(load("pt-dit"), 2)) < 0.1


def test_prompts_are_treated_as_in_its_training():
    rules = pack("nodes.host.text").rules_of(load("pt-dit"))
    assert rules.clean and rules.limit == tiny.PT_DIT.caption_tokens


def test_nodes_for_pixart_refuse_it_by_name():
    model = load("pt-dit")
    policy = refusal(node("PixArtCache")().apply, model, "fora", 2.0, 0.0, 1.0)
    assert "this MODEL is a PTDiT, not a PixArt" in policy
    lcm = refusal(node("PixArtLCMSampler")().sample, model, POSITIVE, latent(128, 128), 0, 4, "official", 1.0)
    assert "this MODEL is a PTDiT, not a PixArt model" in lcm
    assert "the MODEL is PTDiT" in refusal(node("PixArtDeltaLoraLoader")().load, model,
                                               "tiny-lora.safetensors", 1.0)
    assert "not a PixArt model" in refusal(node("PixArtSteps")().make, model, "auto", 0, 0.0, 1.0)
    from nodes import ControlNetApplyAdvanced
    positive, negative = ControlNetApplyAdvanced().apply_controlnet(
        POSITIVE, NEGATIVE, load_control(), image(128, 128), 1.0, 0.0, 1.0, vae())
    told = refusal(sample, model, positive, negative, latent(128, 128))
    assert "cannot control this MODEL (PTDiT" in told


def test_pixart_check_knows_it_and_what_it_cannot_take():
    examine = pack("nodes.host.fitness").examine
    found = examine(load("pt-dit"), None, None, None, 128, 128, 1)
    assert not found.problems and "PT-DiT 128" in found.text and "prompts up to 200 tokens" in found.text
    assert "no place for a ControlNet" in examine(load("pt-dit"), None, None, load_control(), 128, 128, 1).text


def test_patches_for_pixarts_blocks_are_refused():
    model = load("pt-dit").clone()
    model.set_model_patch(lambda given: given, "double_block")
    assert "PT-DiT has no place for the patch double_block" in refusal(sample, model, POSITIVE, POSITIVE,
                                                                       latent(128, 128))


def test_a_variant_of_pixart_and_other_text_are_refused():
    assert "variant alpha-512 was chosen, but the file holds a PT-DiT" in refusal(load, "pt-dit", variant="alpha-512")
    wide = condition(text(4, width=32))
    assert "this PT-DiT takes 64" in refusal(sample, load("pt-dit"), wide, wide, latent(128, 128))
