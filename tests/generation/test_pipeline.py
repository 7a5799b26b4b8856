"""The standalone pipeline and its command line, end to end on tiny random weights of every part."""
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model.reuse import ReuseBlock, ReuseBranches
from PIL import Image
from safetensors.torch import save_file
from torch._dynamo.testing import CompileCounter

from pixart import __main__ as command_line
from pixart.checkpoint import load, read_config, save_checkpoint
from pixart.checkpoint.save_diffusers import save_diffusers
from pixart.commands.generate import chosen_control
from pixart.config import VARIANTS, PixArtConfig
from pixart.control.control_image import ControlImage
from pixart.generation.pipeline import Pipeline
from pixart.generation.request import Request
from pixart.generation.result import Images
from pixart.generation.sample import sample
from pixart.mini import SHIPPED
from pixart.model.transformer import PixArtTransformer
from pixart.sampling.preset import preset
from pixart.text.encoded import Encoded, load_embeddings, save_embeddings
from pixart.text.quantized import usual_bits
from pixart.train.preview import encode_request
from pixart.vae import decode, encode_images, load_tiny, load_vae
from pixart.weights import CheckpointError

CONFIG = PixArtConfig(depth=2, hidden=48, heads=4, caption_width=64, caption_tokens=20, base_size=4, position_scale=1.0)
WORDS = ("a", "red", "blue", "circle", "square", "on", "the", "left")


def random_(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return module.eval()


def write_t5(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5Config, T5EncoderModel
    T5EncoderModel(T5Config(vocab_size=32, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4,
                            feed_forward_proj="gated-gelu")).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_taesd(path: Path) -> torch.nn.Module:
    """A random TAESD in the host's single-file layout; returns diffusers' model with the same weights."""
    from diffusers import AutoencoderTiny
    model, state = random_(AutoencoderTiny()), {}
    for name, value in model.state_dict().items():
        part, _, rest = name.partition(".layers.")
        index, _, leaf = rest.partition(".")
        state[f"taesd_{part}.{int(index) + (part == 'decoder')}.{leaf}"] = value.contiguous()
    save_file(state | {"vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}, path)
    return model


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    save_checkpoint(folder / "model.safetensors", random_(PixArtTransformer(CONFIG)), CONFIG)
    write_t5(folder / "t5")
    write_taesd(folder / "vae.safetensors")
    return folder


@pytest.fixture(scope="module")
def control(parts) -> Path:
    from pixart.checkpoint import save_control
    from pixart.model.controlnet import PixArtControlNet
    torch.manual_seed(4)
    network = PixArtControlNet(CONFIG, 1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return save_control(parts / "control.safetensors", network)


@pytest.fixture(scope="module")
def lora(parts) -> Path:
    from pixart.train.lora import add_lora, save_lora
    model = add_lora(load(parts / "model.safetensors"), rank=2, alpha=None)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.3, generator=torch.Generator().manual_seed(1))
    save_lora(parts / "lora.safetensors", model)
    return parts / "lora.safetensors"


@pytest.fixture(scope="module")
def pipe(parts, control) -> Pipeline:
    return Pipeline.open(parts / "model.safetensors", parts / "vae.safetensors", parts / "t5", "cpu", torch.float32,
                         bits=16, controlnet=control)


def edge_image(height: int = 64, width: int = 64) -> torch.Tensor:
    map_ = torch.zeros(1, 3, height, width)
    map_[:, :, height // 4:height // 4 + 2] = 1
    return map_


def draw(pipe: Pipeline, prompts: str | tuple[str, ...] = "a red circle", **changes: object) -> torch.Tensor:
    return pipe(prompts, **({"height": 64, "width": 64, "steps": 2, "sampler": "lcm"} | changes)).pixels


@pytest.mark.parametrize("changes", [
    {}, {"steps": 1}, {"sampler": "dpm", "steps": 3}, {"sampler": "dpm", "steps": 3, "guidance": 1.0},
    {"sampler": "dmd", "steps": 1}, {"rule": "diffusers", "steps": 4}, {"height": 72, "width": 40},
    {"height": 50, "width": 91}, {"prompts": ("a red circle", "", "the blue square on the left")},
    {"prompts": ("",), "sampler": "dpm", "negative": "a blue circle"},
])
def test_every_way_of_sampling_gives_images_of_the_asked_size(pipe, changes):
    images = draw(pipe, **changes)
    shape = (len(changes.get("prompts", "1")), 3, changes.get("height", 64), changes.get("width", 64))
    assert images.shape == shape and images.isfinite().all() and 0 <= images.min() <= images.max() <= 1


def test_seed_decides_the_image(pipe):
    assert torch.equal(draw(pipe, seed=3), draw(pipe, seed=3))
    assert not torch.equal(draw(pipe, seed=3), draw(pipe, seed=4))


def test_image_of_a_batch_equals_the_image_alone(pipe):
    prompts = ("a red circle", "the blue square on the left")
    for sampler in ("lcm", "dpm"):
        together = draw(pipe, prompts=prompts, seed=5, sampler=sampler)
        alone = draw(pipe, prompts=prompts[1:], seed=6, sampler=sampler)
        torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_guidance_and_negative_prompt_change_the_image(pipe):
    base = {"sampler": "dpm", "steps": 2}
    plain, strong = draw(pipe, **base, guidance=1.0), draw(pipe, **base, guidance=4.5)
    other = draw(pipe, **base, guidance=4.5, negative="the blue square")
    assert not torch.allclose(plain, strong) and not torch.allclose(strong, other)


def test_attention_guidance_makes_a_negative_prompt_work_with_every_sampler(pipe):
    left = {"negative": "the blue square on the left"}
    for base in ({"sampler": "lcm"}, {"sampler": "tdm"}, {"sampler": "dmd", "steps": 1},
                 {"sampler": "dpm", "guidance": 1.0}, {"sampler": "dpm", "guidance": 3.0, **left}):
        plain, away = draw(pipe, **base), draw(pipe, **{**base, **left, "nag": 5.0})
        assert not torch.allclose(plain, away)
        assert not torch.allclose(away, draw(pipe, **{**base, "nag": 5.0, "negative": "a"}))
    prompts = ("a red circle", "on", "the blue square")
    whole, parts = (pipe(prompts, height=64, width=64, steps=2, batch=batch, nag=5.0, sampler="lcm", **left)
                    for batch in (3, 2))
    torch.testing.assert_close(whole.pixels, parts.pixels, rtol=1e-4, atol=1e-4)
    known = pipe.encode(left["negative"])
    padded = Encoded(torch.nn.functional.pad(known.context, (0, 0, 0, 3), value=9.0),
                     torch.nn.functional.pad(known.mask, (0, 3)), known.reports)
    for negative in (known, padded):
        again = pipe(prompts, negative, height=64, width=64, steps=2, batch=3, nag=5.0, sampler="lcm")
        assert torch.equal(whole.pixels, again.pixels)


def test_a_prompt_alone_is_a_prompt_in_a_list(pipe):
    assert torch.equal(draw(pipe, "a red circle"), draw(pipe, ("a red circle",)))


def test_batches_of_any_size_give_the_same_images(pipe, control):
    """Prompts, seeds and edge maps stay with their image."""
    prompts, edges = ("a red circle", "", "the blue square", "a", "on"), torch.rand(5, 1, 64, 64)
    for base in ({}, {"control": ControlImage(edges)}, {"control": ControlImage(edges[:1])},
                 {"sampler": "dpm", "negative": "left"}):
        whole, parts = (pipe(prompts, height=64, width=64, steps=2, seed=3, batch=batch, **base) for batch in (5, 2))
        torch.testing.assert_close(whole.pixels, parts.pixels, rtol=1e-4, atol=1e-4)
        assert whole.seeds == parts.seeds == [3, 4, 5, 6, 7] and len(parts) == 5
        assert [report.prompt for report in parts.reports] == list(prompts)


def test_features_stand_for_prompts(pipe):
    caption, null = pipe.encode(["a red circle", "the blue square"]), pipe.encode("left")
    assert torch.equal(draw(pipe, caption), draw(pipe, ("a red circle", "the blue square")))
    guided = {"sampler": "dpm", "steps": 2}
    assert torch.equal(draw(pipe, caption, negative=null, **guided),
                       draw(pipe, ("a red circle", "the blue square"), negative="left", **guided))


def test_networks_in_memory_give_what_their_files_give(pipe, parts):
    """Edge maps by their latents, batches in parts; decoding is whatever it is given."""
    request = Request(("a red circle", "a", "on"), height=64, width=64, sampler="dpm", steps=2, seed=3)
    caption, null, edges = pipe.encode(list(request.prompts)), pipe.encode(""), torch.rand(3, 1, 64, 64)
    hints = encode_images(pipe.vae, edges.expand(-1, 3, -1, -1), CONFIG.latent_scale)[0]
    mine = Pipeline.of(pipe.transformer, lambda latents: latents[:, :3].sigmoid(), pipe.controlnet)
    for control, known in ((None, None), (ControlImage(edges), ControlImage(edges, latent=hints))):
        latents = pipe.sample(request, caption, null, control)
        assert torch.equal(mine.sample(request, caption, null, known), latents)
        assert torch.equal(mine.decode(latents), latents[:, :3].sigmoid())
        parted = mine.sample(request, caption, null, known, batch=2)
        torch.testing.assert_close(parted, latents, rtol=1e-4, atol=1e-4)
        whole = pipe(caption, null, height=64, width=64, sampler="dpm", steps=2, seed=3, control=control)
        assert torch.equal(whole.pixels, pipe.decode(latents))


def test_what_networks_in_memory_lack_is_said(pipe):
    bare = Pipeline.of(pipe.transformer)
    caption, request = pipe.encode("a red circle"), Request(("a red circle",), height=64, width=64)
    for call, lack in ((lambda: bare("a red circle"), "no text encoder"),
                       (lambda: bare.decode(torch.zeros(1, 4, 8, 8)), "no autoencoder"),
                       (lambda: bare(caption, sampler="lcm", image=torch.zeros(1, 3, 64, 64), denoise=0.5),
                        "to `sample`, as an Origin"),
                       (lambda: bare.sample(request, caption, caption, ControlImage(edge_image())), "a ControlNet")):
        with pytest.raises(ValueError, match=lack):
            call()


def test_compiled_blocks_give_the_same_and_are_compiled_once(parts, control, pipe, monkeypatch):
    """For all blocks, images and steps; once more for the ControlNet's mask-free pass and for each branch."""
    from pixart.generation import pipeline
    torch._dynamo.reset()
    counter, compile_blocks = CompileCounter(), pipeline.compile_blocks
    monkeypatch.setattr(pipeline, "compile_blocks", lambda found, device: compile_blocks(found, device, counter))
    compiled = Pipeline.open(parts / "model.safetensors", parts / "vae.safetensors", parts / "t5", "cpu", torch.float32,
                             bits=16, controlnet=control, compile=True)
    assert compiled.transformer is not pipe.transformer and compiled.controlnet is not pipe.controlnet
    counter.clear()                                             # of the trial whether the machine can compile
    policy = ReuseBlock()
    for seed, policies, frames in ((1, (), 1), (2, (), 1), (2, (policy,), 1), (3, (ReuseBranches(),), 4)):
        got = draw(compiled, seed=seed, policies=policies, steps=4)
        again = [type(one)() for one in policies]
        torch.testing.assert_close(got, draw(pipe, seed=seed, policies=again, steps=4), rtol=0, atol=1e-5)
        assert counter.frame_count == frames, (seed, frames)
    assert policy.computed < 4
    guided = {"control": ControlImage(edge_image()), "seed": 4}
    torch.testing.assert_close(draw(compiled, **guided), draw(pipe, **guided), rtol=0, atol=1e-5)
    assert counter.frame_count == 4                             # the copies are blocks of the same kind
    torch._dynamo.reset()


def test_nothing_is_compiled_where_the_machine_cannot(parts, pipe, monkeypatch, caplog):
    from pixart.model import compiled
    monkeypatch.setattr(compiled, "why_not", lambda device, backend: "no compiler here")
    other = Pipeline.open(parts / "model.safetensors", parts / "vae.safetensors", parts / "t5", "cpu", torch.float32,
                          bits=16, compile=True)
    assert torch.equal(draw(other), draw(pipe)) and "no compiler here" in caplog.text


def test_every_file_is_opened_once_for_any_number_of_images(parts, control, monkeypatch):
    """A job with everything: guidance, control, a second prompt. The transformer's file is recognised once, too."""
    from pixart.generation import pipeline
    from pixart.text import on_demand
    reading, opened = sys.modules["pixart.checkpoint.load"], []

    def spy(module: object, name: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **named: (opened.append(name), original(*args, **named))[1])

    for module, name in ((reading, "open_network"), (reading, "configure"), (pipeline, "load_vae"),
                         (pipeline, "load_control"), (on_demand, "T5Encoder")):
        spy(module, name)
    pipe = Pipeline.open(parts / "model.safetensors", parts / "vae.safetensors", parts / "t5", "cpu", torch.float32,
                         bits=16, controlnet=control, keep_t5=True)
    for prompt in ("a red circle", "the blue square"):
        draw(pipe, prompt, sampler="dpm", control=ControlImage(edge_image()))
    assert sorted(opened) == ["T5Encoder", "configure", "load_control", "load_vae", "open_network"]


@pytest.mark.parametrize("keep, free, stays", [(True, 0, True), (False, 1 << 40, False), (None, 1 << 40, True),
                                               (None, 0, False), (None, 10_000, False), (None, None, False)])
def test_t5_is_freed_before_the_transformer_is_read_where_memory_is_short(parts, monkeypatch, keep, free, stays):
    from pixart.checkpoint.load import OpenCheckpoint
    from pixart.text import on_demand
    monkeypatch.setattr(on_demand, "free_bytes", lambda device: free)
    pipe, load_, seen = Pipeline.open(parts / "model.safetensors", parts / "vae.safetensors", parts / "t5", "cpu",
                                      torch.float32, bits=16, keep_t5=keep), OpenCheckpoint.load, []

    def load_and_look(self: OpenCheckpoint, *args: object) -> torch.nn.Module:
        seen.append(pipe.t5.encoder is not None)
        return load_(self, *args)
    monkeypatch.setattr(OpenCheckpoint, "load", load_and_look)
    first = draw(pipe, "a red circle")
    assert seen == [stays]
    again = draw(pipe, "a red circle")                          # remembered: T5 is not read again
    assert torch.equal(first, again) and (pipe.t5.encoder is not None) == stays
    assert not torch.equal(draw(pipe, "the blue square"), first) and seen == [stays]


def test_loras_are_merged_once_at_their_strength(parts, lora, pipe):
    files = (parts / "model.safetensors", parts / "vae.safetensors", parts / "t5", "cpu", torch.float32)
    plain, none, full = (draw(Pipeline.open(*files, bits=16, loras=loras))
                         for loras in ((), ((lora, 0.0),), ((lora, 1.0),)))
    assert torch.equal(plain, none) and torch.equal(plain, draw(pipe)) and not torch.allclose(plain, full)


def test_a_lora_at_strength_0_does_not_say_how_to_sample(parts, lora, tmp_path):
    from pixart.checkpoint.lora import read_lora, write_lora
    path = write_lora(tmp_path / "style.safetensors", read_lora(lora), metadata=preset("tdm").to_header())
    methods = [Pipeline.open(parts / "model.safetensors", parts / "vae.safetensors", parts / "t5", "cpu", bits=16,
                             loras=((path, strength),)).preset.method for strength in (0.0, 0.5)]
    assert methods == ["teacher", "tdm"]


def test_policies_reach_the_model_with_their_steps(pipe):
    """Guided rows have a lane each, and a policy that computes everything changes nothing."""
    from pixart.model.policy import Lane, Policy
    seen = []

    class Watch(Policy):
        def stack(self, p, go):
            seen.append(p.step)
            return go(p)
    plain = draw(pipe, ("a", "on"), sampler="dpm", steps=3)
    assert torch.equal(draw(pipe, ("a", "on"), sampler="dpm", steps=3, policies=[Watch()]), plain)
    assert [(step.index, step.total) for step in seen] == [(0, 3), (1, 3), (2, 3)]
    assert [step.timestep for step in seen] == pytest.approx([999, 666, 333])
    assert seen[0].lanes == tuple(Lane(image, prompt, prompt == "negative") for prompt in ("negative", "prompt")
                                  for image in (0, 1))
    assert len({id(step.run) for step in seen}) == 1


def test_progress_tells_every_stage_and_can_stop(parts):
    told = []
    pipe = Pipeline.open(parts / "model.safetensors", parts / "vae.safetensors", parts / "t5", "cpu", torch.float32,
                         bits=16)
    draw(pipe, ("a", "on"), steps=3, batch=1, progress=lambda *now: told.append(now))
    assert [now for now in told if now[0] == "sampling"] == [("sampling", i, 6) for i in (1, 2, 3, 4, 5, 6)]
    assert [now[0] for now in told if now[1] == now[2]] == ["reading T5", "encoding", "sampling", "decoding"]

    def stop(stage, done, total):
        if stage == "sampling":
            raise InterruptedError
    with pytest.raises(InterruptedError):
        draw(pipe, progress=stop)


def test_text_encoder_of_another_width_is_refused_before_loading_the_model(parts, tmp_path):
    wide = replace(CONFIG, caption_width=32)
    save_checkpoint(tmp_path / "wide.safetensors", random_(PixArtTransformer(wide)), wide)
    pipe = Pipeline.open(tmp_path / "wide.safetensors", parts / "vae.safetensors", parts / "t5", "cpu", bits=16)
    with pytest.raises(ValueError, match="width 64.*32"):
        draw(pipe, "a")
    assert "transformer" not in vars(pipe)


def test_weights_that_overflow_are_one_error_and_no_black_image(parts, tmp_path):
    model = random_(PixArtTransformer(CONFIG))
    with torch.no_grad():
        model.final_layer.linear.weight.mul_(1e38)
    save_checkpoint(tmp_path / "huge.safetensors", model, CONFIG)
    pipe = Pipeline.open(tmp_path / "huge.safetensors", parts / "vae.safetensors", parts / "t5", "cpu", torch.float32,
                         bits=16)
    with pytest.raises(FloatingPointError, match="the transformer gave values that are not finite"):
        draw(pipe)


def test_a_size_far_from_the_trained_ones_is_noticed(pipe, caplog):
    with caplog.at_level("WARNING"):
        draw(pipe, height=128, width=128, steps=1)
        assert not caplog.text
        draw(pipe, height=512, width=512, steps=1)
    assert "512 x 512: far from the trained sizes. Use " in caplog.text


def test_running_out_of_memory_while_sampling_is_advice(pipe, monkeypatch):
    from pixart.generation import pipeline

    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")
    monkeypatch.setattr(pipeline, "sample", full)
    with pytest.raises(MemoryError, match="not enough memory on cpu while sampling; generate fewer images at once"):
        draw(pipe)


def test_a_result_can_be_saved_in_the_format_of_its_name(pipe, tmp_path):
    drawn = pipe(("a", "on"), height=32, width=48, steps=1)
    assert drawn.save(tmp_path / "x.png", first=2) == [tmp_path / "x-2.png", tmp_path / "x-3.png"]
    assert Image.open(tmp_path / "x-3.png").size == drawn.images()[1].size == (48, 32)
    assert Image.open(drawn.save(tmp_path / "x.jpg")[0]).format == "JPEG"
    with pytest.raises(ValueError, match="ending '.xyz'; use .png"):
        drawn.save(tmp_path / "x.xyz")
    assert isinstance(drawn, Images)


@pytest.mark.parametrize("given, error, words", [
    ({"model": "m"}, ValueError, "model needs vae"), ({"model": "m", "vae": "v"}, ValueError, "model needs t5"),
    ({"model": "PixArt-alpha/PixArt-XL-2-1024-MS"}, FileNotFoundError, "MS here, and names on Hugging Face are not"),
    ({"model": "some/model.pth"}, ValueError, "model needs vae"),
    ({"t5": "nowhere"}, FileNotFoundError, "for t5 .*nowhere"), ({"vae": "nowhere"}, FileNotFoundError, "nowhere"),
    ({"controlnet": "nowhere"}, FileNotFoundError, "for controlnet .*nowhere"),
    ({"loras": [("nowhere", 1.0)]}, FileNotFoundError, "for loras .*nowhere"), ({"bits": 5}, ValueError, "not 5"),
    ({"device": "foo"}, ValueError, "'foo' is not a device; use cpu"),
    ({"device": "cuda:99"}, ValueError, "'cuda:99' was asked for, but this torch sees"),
])
def test_what_cannot_be_opened_is_said_at_once(given, error, words):
    with pytest.raises(error, match=words):
        Pipeline.open(**given)


@pytest.mark.parametrize("changes, words", [
    ({"prompts": ()}, "no prompt"), ({"height": 0}, "16 pixels"), ({"width": -64}, "16 pixels"),
    ({"steps": 0}, "at least 1"), ({"sampler": "euler"}, "euler"), ({"sampler": "dmd", "steps": 4}, "1 step"),
    ({"steps": 60}, "between 1 and 50"),
])
def test_impossible_requests_are_refused(pipe, changes, words):
    with pytest.raises(ValueError, match=words):
        draw(pipe, **changes)


def test_taesd_file_decodes_like_diffusers(tmp_path):
    want = write_taesd(tmp_path / "vae.safetensors")
    latents = torch.randn(2, 4, 6, 8)
    with torch.no_grad():
        expected = (want.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decode(load_vae(tmp_path / "vae.safetensors"), latents, 0.18215), expected)


def test_full_vae_is_given_unscaled_latents(tmp_path):
    from diffusers import AutoencoderKL
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=8).eval()
    vae.save_pretrained(tmp_path / "vae")
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = (vae.decode(latents / 0.13025).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decode(load_vae(tmp_path / "vae"), latents, 0.13025), expected)


def test_files_that_are_no_vae_are_named(tmp_path):
    save_file({"blocks.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10")
    for name, error in (("other.safetensors", ValueError), ("broken.safetensors", ValueError),
                        ("missing.safetensors", FileNotFoundError)):
        with pytest.raises(error, match=name):
            load_vae(tmp_path / name)


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pixart", *map(str, arguments)])
    return command_line.main()


def test_command_line_writes_files(parts, tmp_path, monkeypatch, capsys):
    models = ("--model", parts / "model.safetensors", "--t5", parts / "t5", "--vae", parts / "vae.safetensors")
    code = run(monkeypatch, "generate", "a red circle", *models, "--size", "64x48", "--count", 2, "--steps", 1,
               "--bits", 16, "--dtype", "fp32", "--out", tmp_path / "x.png")
    assert code == 0 and "4 of 20 tokens" in capsys.readouterr().out
    assert Image.open(tmp_path / "x.png").size == Image.open(tmp_path / "x-1.png").size == (64, 48)


def test_the_command_samples_a_base_model_as_one_and_a_student_as_it_was_trained(parts, tmp_path, monkeypatch, capsys):
    """Sigma and alpha were sampled in 4 LCM steps without guidance, which is a blur, and nothing was said."""
    rest = ("--vae", parts / "vae.safetensors", "--t5", parts / "t5", "--bits", 16, "--size", "32x32",
            "--dtype", "fp32", "--no-metadata")
    images = {}
    for name, given in (("PixArt-Sigma-XL-2-1024-MS", ()), ("PixArt-LCM-XL-2-1024-MS", ()),
                        ("PixArt-Alpha-DMD-XL-2-512x512", ()), ("dpm", ("dpm", 4.5)), ("lcm", ("lcm", None))):
        model = shutil.copy(parts / "model.safetensors", tmp_path / f"{name}.safetensors")
        chosen = () if not given else ("--sampler", given[0]) + (() if given[1] is None else ("--guidance", given[1]))
        place = tmp_path / f"{name}.png"
        assert run(monkeypatch, "generate", "a red circle", "--model", model, *rest, *chosen, "--out", place) == 0
        images[name] = place.read_bytes()
    assert images["PixArt-Sigma-XL-2-1024-MS"] == images["dpm"] != images["lcm"] == images["PixArt-LCM-XL-2-1024-MS"]
    assert images["PixArt-Alpha-DMD-XL-2-512x512"] not in (images["dpm"], images["lcm"])
    capsys.readouterr()
    (tmp_path / "list.csv").write_text("prompt,negative\na red circle,blue\n")
    sigma = tmp_path / "PixArt-Sigma-XL-2-1024-MS.safetensors"
    assert run(monkeypatch, "batch", tmp_path / "list.csv", "--model", sigma, *rest, "--out", tmp_path / "batch") == 0
    assert "1 images in" in capsys.readouterr().out


def test_the_folder_of_a_diffusers_pipeline_brings_vae_and_t5(parts, tmp_path, monkeypatch, capsys):
    """As it is downloaded: the tokenizer in a folder beside the text encoder."""
    pipeline = tmp_path / "PixArt-XL-2"
    save_diffusers(pipeline / "transformer", load(parts / "model.safetensors"))
    shutil.copytree(parts / "t5", pipeline / "text_encoder")
    (pipeline / "tokenizer").mkdir()
    (pipeline / "text_encoder" / "tokenizer.json").rename(pipeline / "tokenizer" / "tokenizer.json")
    load_tiny(parts / "vae.safetensors").save_pretrained(pipeline / "vae")
    rest = ("--size", "32x32", "--steps", 1, "--bits", 16, "--dtype", "fp32", "--no-metadata")
    named = ("--model", parts / "model.safetensors", "--vae", parts / "vae.safetensors", "--t5", parts / "t5")
    everywhere = ("--model", pipeline, "--vae", pipeline, "--t5", pipeline)
    images = []
    for number, models in enumerate((named, ("--model", pipeline), everywhere)):
        place = tmp_path / f"{number}.png"
        assert run(monkeypatch, "generate", "a red circle", *models, *rest, "--out", place) == 0, capsys.readouterr()
        images.append(place.read_bytes())
    assert images[0] == images[1] == images[2]
    shutil.rmtree(pipeline / "vae")
    assert run(monkeypatch, "generate", "a red circle", "--model", pipeline, *rest, "--out", tmp_path / "x.png") == 1
    assert "--model needs --vae" in capsys.readouterr().err
    assert Pipeline.open(pipeline, parts / "vae.safetensors", bits=16).t5.path == pipeline / "text_encoder"


def test_loras_change_the_image_by_their_strength_and_never_the_file(parts, lora, tmp_path, monkeypatch):
    base = ("generate", "a red circle", "--model", parts / "model.safetensors", "--vae", parts / "vae.safetensors",
            "--t5", parts / "t5", "--bits", 16, "--size", "32x32", "--steps", 1, "--dtype", "fp32")
    before, images = (parts / "model.safetensors").read_bytes(), {}
    for name, more in (("none", ()), ("zero", ("--lora-strength", 0)), ("one", ()), ("half", ("--lora-strength", 0.5))):
        given = () if name == "none" else ("--lora", lora)
        assert run(monkeypatch, *base, *given, *more, "--out", tmp_path / f"{name}.png") == 0
        images[name] = (tmp_path / f"{name}.png").read_bytes()
    assert images["none"] == images["zero"] and len(set(images.values())) == 3
    assert (parts / "model.safetensors").read_bytes() == before


def test_saved_embeddings_give_the_same_image(parts, tmp_path, monkeypatch):
    """A machine too small for T5 generates from what another one encoded."""
    base = ("generate", "a red circle", "--model", parts / "model.safetensors", "--vae", parts / "vae.safetensors",
            "--size", "32x32", "--sampler", "lcm", "--steps", 1, "--dtype", "fp32")
    assert run(monkeypatch, "encode", "a red circle", "--t5", parts / "t5", "--bits", 16, "--clean", "--max-tokens", 20,
               "--out", tmp_path / "p.safetensors") == 0
    assert run(monkeypatch, *base, "--embeddings", tmp_path / "p.safetensors", "--out", tmp_path / "a.png") == 0
    assert run(monkeypatch, *base, "--t5", parts / "t5", "--bits", 16, "--out", tmp_path / "b.png") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    alone = (base[0], *base[2:], "--embeddings", tmp_path / "p.safetensors")
    assert run(monkeypatch, *alone, "--out", tmp_path / "c.png") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize("model, more, unread", [
    (SHIPPED.teacher, ("--guidance", 2.5, "--steps", 2), ("--guidance", 1)),
    (SHIPPED.student, ("--nag", 5, "--steps", 1), ())])
def test_a_saved_negative_prompt_guides_as_its_text_does(model, more, unread, tmp_path, monkeypatch, capsys):
    """A machine too small for T5 could not sample with guidance: "--embeddings holds no negative prompt"."""
    prompt, negative, out = tmp_path / "p.safetensors", tmp_path / "n.safetensors", tmp_path / "x.png"
    for place, words in ((prompt, "a large red circle"), (negative, "a blue square")):
        assert run(monkeypatch, "encode", words, "--t5", SHIPPED.t5, "--bits", 16, "--family", "mini",
                   "--out", place) == 0
    base = ("generate", "--model", model, "--vae", SHIPPED.vae, "--size", "32x32", "--device", "cpu", "--dtype", "fp32")
    text = ("--t5", SHIPPED.t5, "--bits", 16, "--negative", "a blue square", "--out", tmp_path / "text.png")
    assert run(monkeypatch, "generate", "a large red circle", *base[1:], *more, *text) == 0
    saved = (*base, "--embeddings", prompt, "--out", out)
    assert run(monkeypatch, *saved, *more, "--negative-embeddings", negative) == 0
    assert out.read_bytes() == (tmp_path / "text.png").read_bytes()
    out.unlink()
    capsys.readouterr()
    assert run(monkeypatch, *saved, *more, "--negative", "a blue square") == 1
    assert "--embeddings holds none; give --negative-embeddings FILE, one" in capsys.readouterr().err
    assert run(monkeypatch, *saved, *unread, "--negative-embeddings", negative) == 1
    assert "--negative-embeddings has no effect with" in capsys.readouterr().err and not out.exists()


def test_a_prompt_is_encoded_as_its_family_was_trained(parts, tmp_path, monkeypatch, capsys):
    texts = {}
    for family, limit in ((None, 120), ("alpha", 120), ("sigma", 300), ("mini", 256)):
        chosen = () if family is None else ("--family", family)
        assert run(monkeypatch, "encode", "A RED circle", "--t5", parts / "t5", "--bits", 16, *chosen,
                   "--out", tmp_path / "p.safetensors") == 0
        assert f"of {limit} tokens" in capsys.readouterr().out
        texts[family] = load_embeddings(tmp_path / "p.safetensors").reports[0].text
    assert texts == {None: "a red circle", "alpha": "a red circle", "sigma": "A RED circle", "mini": "a red circle"}


def test_a_file_of_several_prompts_is_refused(parts, pipe, tmp_path, monkeypatch, capsys):
    """The images of one batch were saved under the names of the next."""
    save_embeddings(tmp_path / "p.safetensors", pipe.encode(["a red circle", "the blue square"]))
    assert run(monkeypatch, "generate", "--model", parts / "model.safetensors", "--vae", parts / "vae.safetensors",
               "--embeddings", tmp_path / "p.safetensors") == 1
    assert "--embeddings holds 2 prompts, and one is expected" in capsys.readouterr().err


def test_a_prompt_beside_a_saved_one_that_is_another_is_refused(parts, tmp_path, monkeypatch, capsys):
    """The saved one was used and the other one passed over."""
    assert run(monkeypatch, "encode", "a red circle", "--t5", parts / "t5", "--bits", 16,
               "--out", tmp_path / "p.safetensors") == 0
    assert run(monkeypatch, "generate", "a blue square", "--model", parts / "model.safetensors", "--vae",
               parts / "vae.safetensors", "--embeddings", tmp_path / "p.safetensors") == 1
    assert "--embeddings holds another prompt, 'a red circle'; leave the prompt out" in capsys.readouterr().err
    assert run(monkeypatch, "generate", "--lora", tmp_path / "p.safetensors", "a blue square") == 1
    assert "the prompt is missing" in capsys.readouterr().err


def test_words_that_no_token_stands_for_are_named(parts, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "generate", "a red \U0001f98a", "--model", parts / "model.safetensors", "--vae",
               parts / "vae.safetensors", "--t5", parts / "t5", "--bits", 16, "--size", "32x32", "--steps", 1,
               "--dtype", "fp32", "--out", tmp_path / "x.png") == 0
    assert "has no tokens for: \U0001f98a" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["model", "vae", "t5", "controlnet", "loras"])
def test_opening_refuses_a_wrong_file_of_any_part(parts, part, tmp_path):
    """T5, ControlNet and LoRA were looked at after minutes of work with the others."""
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    wrong = tmp_path / "other.safetensors"
    given = {"model": parts / "model.safetensors", "vae": parts / "vae.safetensors", "t5": parts / "t5", "bits": 16,
             part: [(wrong, 1.0)] if part == "loras" else wrong}
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        Pipeline.open(**given)


@pytest.mark.parametrize("changes, words", [
    ({"latent_space": "sdxl", "micro_conditioning": False}, "for PixArt-alpha or delta .*, beside a model of PixArt-S"),
    ({"hidden": 96}, "48 wide with 4 heads, beside a model 96 wide with 4"),
])
def test_the_controlnet_of_another_model_is_refused_before_anything_is_read(parts, control, changes, words, tmp_path):
    """That of alpha has the shapes of Sigma, with which it made nonsense; other widths were found out after T5."""
    config = replace(CONFIG, **changes)
    model = save_checkpoint(tmp_path / "other.safetensors", random_(PixArtTransformer(config)), config)
    with pytest.raises(CheckpointError, match=f"{words}.*control.safetensors"):
        Pipeline.open(model, parts / "vae.safetensors", parts / "t5", "cpu", bits=16, controlnet=control)


def test_loras_without_strengths_are_refused_with_what_to_write():
    with pytest.raises(ValueError, match=r"write \[\(file, 1\.0\)\]"):
        Pipeline.open(loras=["lora.safetensors"])


def test_an_apple_gpu_gets_no_precision_that_it_has_no_kernels_for():
    """`encode` took 8 bits there, which was refused."""
    assert [usual_bits(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [8, 8, 16]


@pytest.mark.parametrize("arguments, words", [
    (("--model", "nowhere.safetensors", "--t5", "t5", "--vae", "vae"), "nowhere.safetensors"),
    (("--model", "x.safetensors"), "--vae"), (("--model", "PixArt-alpha/PixArt-XL-2-1024-MS"), "download --list"),
    (("--negative", "dog"), "with --nag 5 it has"),
    (("--nag", "5", "--embeddings", "x.safetensors"), "--nag needs a negative prompt"),
    (("--nag", "0.5"), "NAG with scale 0.5"),
    (("--negative", "dog", "--sampler", "dpm", "--guidance", 1), "no effect with --guidance 1"),
    (("--guidance", "3"), "--guidance has no effect"), (("--controlnet", "x"), "no effect without --control"),
    (("--strength", "0.5"), "no effect without --control"), (("--lora-strength", "2"), "no effect without --lora"),
    (("--control", "x.png", "--hed", "x.pth"), "--hed has no effect with --edges canny"),
    (("--device", "foo"), "not a device"),
    (("--out", "x.xyz"), "use .png"), (("--control", "tests"), "tests"),
    (("--out", "no/such/folder/x.png"), "create it first"),
])
def test_command_line_errors_are_one_line(arguments, words, monkeypatch, capsys):
    assert run(monkeypatch, "generate", "a cat", *arguments) == 1
    shown = capsys.readouterr().err
    assert words in shown and shown.count("\n") == 1 and "Traceback" not in shown


@pytest.mark.parametrize("option, value, words", [
    ("--size", "1024", "WIDTHxHEIGHT"), ("--size", "1000000x1000000", "sides of 16 to 8192 pixels"),
    ("--size", "0x64", "WIDTHxHEIGHT"), ("--size", "\u00b2x64", "WIDTHxHEIGHT"), ("--count", "0", "at least 1"),
    ("--guidance", "nan", "must be a finite number"), ("--strength", "x", "must be a finite number"),
    ("--steps", "-1", "at least 1"),
])
def test_bad_values_of_options_are_explained(monkeypatch, capsys, option, value, words):
    with pytest.raises(SystemExit):
        run(monkeypatch, "generate", "a cat", option, value)
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_the_edges_of_pixart_mini_are_those_of_its_controlnet_however_it_is_named(tmp_path):
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).save(tmp_path / "x.png")
    words = ["generate", "x", "--control", str(tmp_path / "x.png")]
    args = command_line.parser("generate").parse_args(words)
    named = command_line.parser("generate").parse_args([*words, "--model", "teacher.safetensors"])
    config = read_config(SHIPPED.teacher)
    maps = [chosen_control(each, config, 128, 128).edges for each in (args, named)]
    assert torch.equal(*maps)
    assert not torch.equal(maps[0], chosen_control(named, VARIANTS["alpha-512"], 128, 128).edges)


@pytest.mark.parametrize("name, content, words", [
    ("cut.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "cut.png"), ("empty.png", b"", "it is empty: .*empty.png"),
    ("text.png", b"hello", "it is not an image: .*text.png"), ("bomb.png", None, "bomb.png"),
])
def test_broken_images_are_one_line_with_the_name_of_the_file(tmp_path, monkeypatch, capsys, name, content, words):
    if content is None:         # a small file that claims 40,000 x 40,000 pixels
        import struct
        import zlib
        header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / name).write_bytes(content)
    assert run(monkeypatch, "generate", "a cat", "--control", tmp_path / name) == 1
    shown = capsys.readouterr().err
    assert re.search(words, shown) and shown.count("\n") == 1 and "cannot be used" in shown


def test_weights_of_whole_numbers_are_refused_in_one_line(parts, tmp_path, monkeypatch, capsys):
    from safetensors.torch import load_file
    state = {name: tensor.to(torch.int8) for name, tensor in load_file(parts / "model.safetensors").items()}
    save_file(state, tmp_path / "int8.safetensors")
    assert run(monkeypatch, "generate", "a cat", "--model", tmp_path / "int8.safetensors", "--t5", parts / "t5",
               "--vae", parts / "vae.safetensors", "--bits", 16) == 1
    shown = capsys.readouterr().err
    assert "int8" in shown and shown.count("\n") == 1 and "Traceback" not in shown


def test_a_negative_prompt_that_nothing_reads_is_refused(pipe):
    for sampler, steps, because in (("lcm", 2, "sampler lcm"), ("dpm", 2, "guidance 1")):
        with pytest.raises(ValueError, match=f"no effect with {because}"):
            draw(pipe, negative="the blue square", sampler=sampler, steps=steps, guidance=1.0)


def test_several_negative_prompts_are_refused_whatever_the_batch(pipe):
    two = pipe.encode(["a red circle", "a blue square"])
    for batch in (1, 2):
        with pytest.raises(ValueError, match="2 negative prompts; give one"):
            pipe(two, negative=two, sampler="dpm", steps=2, batch=batch, width=64, height=64)
        with pytest.raises(ValueError, match="2 negative prompts; give one"):
            pipe(two, negative=two, nag=5.0, steps=2, batch=batch, width=64, height=64)


def test_encoding_frees_the_encoder(parts, monkeypatch):
    from pixart.text.t5 import T5Encoder
    closed = []
    original = T5Encoder.close
    monkeypatch.setattr(T5Encoder, "close", lambda self: (closed.append(self), original(self)))
    encode_request(parts / "t5", Request(("a",), height=32, width=32), 20, True, bits=16)
    assert len(closed) == 1 and closed[0].model is None


def test_sampling_in_bf16_stays_near_fp32(parts):
    """Relative root mean square difference of 2-step latents stays under 5 %."""
    from pixart.checkpoint import load
    request = Request(("a red circle",), height=64, width=64, steps=2)
    caption, null = encode_request(parts / "t5", request, 20, True, bits=16)
    exact, rough = (sample(load(parts / "model.safetensors", dtype=dtype), request, caption, null)
                    for dtype in (torch.float32, torch.bfloat16))
    assert ((exact - rough).norm() / exact.norm()).item() < 0.05


def guided(pipe: Pipeline, edges: torch.Tensor, strength: float = 1.0, start: float = 0.0, end: float = 1.0,
           **changes: object) -> torch.Tensor:
    return draw(pipe, control=ControlImage(edges, strength, start, end), **changes)


def test_control_changes_the_image_and_strength_0_does_not(pipe):
    plain = draw(pipe)
    assert torch.equal(guided(pipe, edge_image(), strength=0.0), plain)
    assert not torch.equal(guided(pipe, edge_image()), plain)
    assert not torch.equal(guided(pipe, edge_image()), guided(pipe, edge_image().flip(2)))


def test_control_is_in_force_for_its_share_of_the_steps(pipe):
    """Steps of LCM 2: timesteps 999 and 499, shares 0 and 0.5."""
    plain, always = draw(pipe), guided(pipe, edge_image())
    assert torch.equal(guided(pipe, edge_image(), start=0.6, end=1.0), plain)
    assert torch.equal(guided(pipe, edge_image(), start=0.0, end=0.6), always)
    first, second = (guided(pipe, edge_image(), start=a, end=b) for a, b in ((0, 0.2), (0.4, 1)))
    assert not torch.equal(first, second) and not torch.equal(first, always) and not torch.equal(second, plain)


@pytest.mark.parametrize("changes", [{"sampler": "dpm", "steps": 3}, {"prompts": ("a red circle", "")},
                                     {"height": 50, "width": 91}])
def test_control_works_with_guidance_batches_and_any_size(pipe, changes):
    images = guided(pipe, edge_image(90, 40), **changes)
    assert images.isfinite().all() and not torch.equal(images, draw(pipe, **changes))


def test_bad_guides_are_refused():
    with pytest.raises(ValueError, match="start <= end"):
        ControlImage(edge_image(), start=0.5, end=0.2)
    with pytest.raises(ValueError, match="1 or 3, height, width"):
        ControlImage(edge_image()[0])


def test_a_teacher_takes_the_guidance_of_its_family(parts):
    """PixArt-mini's less than the published ones."""
    mini = Pipeline.open(SHIPPED.teacher, SHIPPED.vae, SHIPPED.t5, "cpu")
    other = Pipeline.open(parts / "model.safetensors", parts / "vae.safetensors", parts / "t5", "cpu", bits=16)
    assert [pipe.preset.method for pipe in (mini, other)] == ["teacher"] * 2
    assert [pipe.preset.guidance for pipe in (mini, other)] == [2.5, 4.5]


def test_auto_samples_as_the_file_says(tmp_path, caplog):
    """A student of TDM by its header, the shipped LCM by its name; another sampler is a notice, once."""
    pipe = Pipeline.open(device="cpu")
    assert (pipe.preset.method, pipe.wanted("auto").steps) == ("lcm", 4)
    path = save_checkpoint(tmp_path / "student.safetensors", load(SHIPPED.student),
                           metadata=preset("tdm").to_header())
    pipe = Pipeline.open(path, SHIPPED.vae, SHIPPED.t5, "cpu")
    want = pipe("a red circle", sampler="tdm", seed=3)
    assert "made for" not in caplog.text
    for got in (pipe("a red circle", seed=3), pipe("a red circle", sampler="auto", seed=3)):
        assert torch.equal(got.pixels, want.pixels)
    for _ in range(2):
        pipe("a red circle", sampler="lcm", steps=1)
    assert caplog.text.count("made for the sampler tdm") == 1
    assert pipe.wanted("auto", 2, None, "tdm-800").rule == "tdm-800"
