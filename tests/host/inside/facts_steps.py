"""PixArt Steps: what a model's file says about sampling reaches the host's own sampling nodes."""
import shutil

import comfy.sample
import folder_paths
import torch
from safetensors.torch import load_file
from support import MODELS, condition, latent, load, network, node, off, pack, refusal, text


def drawn(parts: tuple, given: dict, context: torch.Tensor, seed: int = 3) -> torch.Tensor:
    """What the stock SamplerCustom makes of the node's outputs."""
    model, sampler, sigmas, _, cfg, _ = parts
    noise = comfy.sample.prepare_noise(given["samples"], seed)
    return comfy.sample.sample_custom(model, noise, cfg, sampler, sigmas, condition(context), condition(context),
                                      given["samples"], disable_pbar=True, seed=seed)


def make(model, method: str = "auto", steps: int = 0, cfg: float = 0.0, denoise: float = 1.0) -> tuple:
    return node("PixArtSteps")().make(model, method, steps, cfg, denoise)


def resaved(name: str, method: str, **changes: object):
    """A tiny model whose file says how it wants to be sampled."""
    from dataclasses import replace
    presets, save = pack("pixart.sampling.preset"), pack("pixart.checkpoint.save")
    path = MODELS / "diffusion_models" / f"{name}.safetensors"
    said = replace(presets.preset(method), **changes)
    save.save_checkpoint(path, load_file(MODELS / "diffusion_models" / "alpha-512.safetensors"),
                         load("alpha-512").model.model_config.pixart, metadata=said.to_header())
    return load(name)


def test_tdm_of_the_file_is_the_library():
    model, context = resaved("said", "tdm"), text(6)
    parts = make(model)
    assert parts[3:5] == (4, 1.0) and "899, 674, 449, 224" in parts[5] and "as said.safetensors says" in parts[5]
    given, transformer = latent(64, 64, 2), network(model)
    noise = comfy.sample.prepare_noise(given["samples"], 3)
    tdm = pack("pixart.sampling.tdm")
    want = tdm.tdm(lambda x, t: transformer(x, t, context.expand(len(x), -1, -1)), noise, tdm.tdm_timesteps())
    got = drawn(parts, given, context)
    assert off(got, want / model.model.latent_format.scale_factor) < 2e-3     # the start differs by 1.4e-4


def test_the_rule_and_steps_of_the_file_are_taken_and_the_users_go_before():
    model = resaved("said-800", "tdm", steps=2, rule="tdm-800")
    assert "799, 399" in make(model)[5] and len(make(model)[2]) == 3
    assert len(make(model, steps=4)[2]) == 5 and make(model, cfg=1.5)[4] == 1.5
    assert make(model, "lcm")[5].startswith("lcm: 4 steps at 999, 759, 519, 279")


def test_lcm_and_dmd_are_the_nodes_of_their_own():
    context, given = text(6), latent(64, 64)
    model = resaved("student-lcm", "lcm")
    want = node("PixArtLCMSampler")().sample(model, condition(context), given, 3, 4, "official", 1.0)[0]["samples"]
    assert off(drawn(make(model), given, context), want) < 1e-6
    model = resaved("student-dmd", "dmd")
    want = node("PixArtDMDSampler")().sample(model, condition(context), given, 3)[0]["samples"]
    assert off(drawn(make(model), given, context), want) < 1e-6
    image = {"samples": torch.ones(1, 4, 8, 8)}         # one step from pure noise, whatever the latent holds
    assert off(drawn(make(model), image, context), want) < 1e-6


def test_a_teacher_is_sampled_as_with_dpm_solver():
    model, context, given = load("alpha-512"), text(6), latent(64, 64)
    parts = make(model, steps=20)
    assert parts[3:5] == (20, 4.5) and "taken for a teacher" in parts[5]
    solver, transformer = pack("pixart.sampling.dpm_solver"), network(model)
    noise = comfy.sample.prepare_noise(given["samples"], 3)
    want = solver.dpm_solver_pp(lambda x, t: transformer(x, t, context), noise, 20, "diffusers")
    got = drawn((*parts[:4], 1.0, ""), given, context)
    assert off(got, want / model.model.latent_format.scale_factor) < 2e-2     # the host starts at sigma times noise


def test_names_are_looked_at_where_files_say_nothing():
    from shutil import copy
    folder = MODELS / "diffusion_models"
    for name, method in (("PixArt-LCM-x", "lcm"), ("my_tdm", "tdm"), ("alpha-DMD-512", "dmd")):
        copy(folder / "alpha-512.safetensors", folder / f"{name}.safetensors")
        folder_paths.filename_list_cache.clear()
        line = make(load(name))[5]
        assert line.startswith(method) and "guessed by the name" in line, line


def test_a_lora_that_says_something_goes_before_its_model():
    library, presets = pack("pixart.checkpoint.lora"), pack("pixart.sampling.preset")
    path = MODELS / "loras" / "few.safetensors"
    path.parent.mkdir(exist_ok=True)
    part = library.LoraPart("blocks.0.attn.proj", 0, 1, torch.randn(2, 48), torch.randn(48, 2), 1.0)
    pack("pixart.checkpoint.lora.write").write_lora(path, [part], metadata=presets.preset("tdm").to_header())
    apply = pack("nodes.host.lora").apply_lora
    model = load("alpha-512")
    assert make(apply(model, path, 1.0)[0])[5].startswith("tdm")
    assert make(model)[5].startswith("teacher") and make(apply(model, path, 0.0)[0])[5].startswith("teacher")


def heard_as_lcm(model) -> list[str]:
    """What is logged while the LCM sampler works with a MODEL."""
    import logging
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    handler, root = Keep(), logging.getLogger()
    root.addHandler(handler)
    try:
        node("PixArtLCMSampler")().sample(model, condition(text(3)), latent(64, 64), 1, 1, "official", 1.0)
    finally:
        root.removeHandler(handler)
    return [line for line in records if "made for the sampler" in line]


def test_a_tdm_file_with_the_lcm_rule_gives_a_notice():
    (line,) = heard_as_lcm(resaved("said", "tdm"))
    assert "made for the sampler tdm" in line and "sampled with lcm" in line


def test_a_published_base_model_sampled_as_an_lcm_gives_a_notice_unless_a_lora_may_have_made_it_one():
    name = "PixArt-XL-2-1024-MS"
    shutil.copy(MODELS / "diffusion_models" / "alpha-1024.safetensors",
                MODELS / "diffusion_models" / f"{name}.safetensors")
    model = load(name)
    (line,) = heard_as_lcm(model)
    assert "made for the sampler dpm (teacher, 20 steps)" in line and name in line
    patched = model.clone()                 # by the stock LoRA loader, which says nothing of the file
    assert patched.add_patches({"diffusion_model.final_layer.linear.bias": (torch.ones(32),)})
    assert heard_as_lcm(patched) == []


def test_image_to_image_keeps_the_last_steps():
    model = resaved("said", "tdm")
    whole, half = make(model)[2], make(model, denoise=0.5)[2]
    assert torch.equal(half, whole[2:]) and len(make(model, denoise=0.0)[2]) == 0


def test_what_cannot_be_is_refused():
    model = resaved("student-dmd", "dmd")
    assert "leave steps at 0" in refusal(make, model, steps=4)
    assert "starts from pure noise" in refusal(make, model, denoise=0.5)
    assert "exactly 1 step" in refusal(make, load("alpha-512"), "dmd", 3)


def test_a_schedule_of_fifty_timesteps_is_for_lcm_alone():
    """What the stock ModelSamplingDiscrete makes of a MODEL with lcm chosen."""
    from compatibility import call
    (model,) = call("ModelSamplingDiscrete", {"model": load("alpha-1024"), "sampling": "lcm", "zsnr": False})
    for method in ("auto", "teacher", "tdm"):
        assert "has 50 timesteps" in refusal(make, model, method), method
    assert len(make(model, "lcm")[2]) == 5
