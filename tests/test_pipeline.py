"""The standalone pipeline and its command line, end to end on tiny random weights of every part."""
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pixart import __main__ as command_line
from pixart.checkpoint import load, save_checkpoint
from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer
from pixart.pipeline import Guide, Request, encode, generate, sample
from pixart.vae import decode, load_vae

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


def draw(parts: Path, **changes: object) -> torch.Tensor:
    request = Request(**({"prompts": ("a red circle",), "height": 64, "width": 64, "steps": 2} | changes))
    return generate(parts / "model.safetensors", parts / "vae.safetensors", request, parts / "t5", bits=16)[0]


@pytest.mark.parametrize("changes", [
    {}, {"steps": 1}, {"sampler": "dpm", "steps": 3}, {"sampler": "dpm", "steps": 3, "guidance": 1.0},
    {"sampler": "dmd", "steps": 1}, {"rule": "diffusers", "steps": 4}, {"height": 72, "width": 40},
    {"height": 50, "width": 91}, {"prompts": ("a red circle", "", "the blue square on the left")},
    {"prompts": ("",), "sampler": "dpm", "negative": "a blue circle"},
])
def test_every_way_of_drawing_gives_pictures_of_the_asked_size(parts, changes):
    pictures = draw(parts, **changes)
    shape = (len(changes.get("prompts", "1")), 3, changes.get("height", 64), changes.get("width", 64))
    assert pictures.shape == shape and pictures.isfinite().all() and 0 <= pictures.min() <= pictures.max() <= 1


def test_seed_decides_the_picture(parts):
    assert torch.equal(draw(parts, seed=3), draw(parts, seed=3))
    assert not torch.equal(draw(parts, seed=3), draw(parts, seed=4))


def test_picture_of_a_batch_equals_the_picture_alone(parts):
    prompts = ("a red circle", "the blue square on the left")
    for sampler in ("lcm", "dpm"):
        together = draw(parts, prompts=prompts, seed=5, sampler=sampler)
        alone = draw(parts, prompts=prompts[1:], seed=6, sampler=sampler)
        torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_guidance_and_negative_prompt_change_the_picture(parts):
    base = {"sampler": "dpm", "steps": 2}
    plain, strong = draw(parts, **base, guidance=1.0), draw(parts, **base, guidance=4.5)
    other = draw(parts, **base, guidance=4.5, negative="the blue square")
    assert not torch.allclose(plain, strong) and not torch.allclose(strong, other)


def test_progress_tells_every_stage_and_can_stop(parts):
    told = []
    request = Request(("a red circle",), height=32, width=32, steps=3)
    files = (parts / "model.safetensors", parts / "vae.safetensors", request, parts / "t5")
    generate(*files, bits=16, progress=lambda *now: told.append(now))
    assert [now for now in told if now[0] == "sampling"] == [("sampling", i, 3) for i in (1, 2, 3)]
    assert {now[0] for now in told} == {"text", "sampling", "decoding"}

    def stop(stage, done, total):
        if stage == "sampling":
            raise InterruptedError
    with pytest.raises(InterruptedError):
        generate(*files, bits=16, progress=stop)


def test_text_encoder_of_another_width_is_refused_before_loading_the_model(parts, tmp_path):
    wide = replace(CONFIG, caption_width=32)
    save_checkpoint(tmp_path / "wide.safetensors", random_(PixArtTransformer(wide)), wide)
    with pytest.raises(ValueError, match="width 64.*32"):
        generate(tmp_path / "wide.safetensors", parts / "vae.safetensors", Request(("a",), height=32, width=32),
                 parts / "t5", bits=16)


@pytest.mark.parametrize("changes, words", [
    ({"prompts": ()}, "no prompt"), ({"height": 0}, "16 pixels"), ({"width": -64}, "16 pixels"),
    ({"steps": 0}, "at least 1"), ({"sampler": "euler"}, "euler"), ({"sampler": "dmd", "steps": 4}, "1 step"),
    ({"steps": 60}, "between 1 and 50"),
])
def test_impossible_requests_are_refused(parts, changes, words):
    with pytest.raises(ValueError, match=words):
        draw(parts, **changes)


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


def test_command_line_draws_files(parts, tmp_path, monkeypatch, capsys):
    models = ("--model", parts / "model.safetensors", "--t5", parts / "t5", "--vae", parts / "vae.safetensors")
    code = run(monkeypatch, "generate", "a red circle", *models, "--size", "64x48", "--count", 2, "--steps", 1,
               "--bits", 16, "--dtype", "fp32", "--out", tmp_path / "x.png")
    assert code == 0 and "4 of 20 tokens" in capsys.readouterr().out
    assert Image.open(tmp_path / "x.png").size == Image.open(tmp_path / "x-1.png").size == (64, 48)


def test_loras_change_the_picture_by_their_strength_and_never_the_file(parts, tmp_path, monkeypatch):
    from pixart.train.lora import add_lora, save_lora
    model = add_lora(load(parts / "model.safetensors"), rank=2, alpha=None)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.3, generator=torch.Generator().manual_seed(1))
    save_lora(tmp_path / "lora.safetensors", model)
    base = ("generate", "a red circle", "--model", parts / "model.safetensors", "--vae", parts / "vae.safetensors",
            "--t5", parts / "t5", "--bits", 16, "--size", "32x32", "--steps", 1, "--dtype", "fp32")
    before, pictures = (parts / "model.safetensors").read_bytes(), {}
    for name, more in (("none", ()), ("zero", ("--lora-strength", 0)), ("one", ()), ("half", ("--lora-strength", 0.5))):
        lora = () if name == "none" else ("--lora", tmp_path / "lora.safetensors")
        assert run(monkeypatch, *base, *lora, *more, "--out", tmp_path / f"{name}.png") == 0
        pictures[name] = (tmp_path / f"{name}.png").read_bytes()
    assert pictures["none"] == pictures["zero"] and len(set(pictures.values())) == 3
    assert (parts / "model.safetensors").read_bytes() == before


def test_saved_embeddings_give_the_same_picture(parts, tmp_path, monkeypatch):
    """A machine too small for T5 draws what another one encoded."""
    base = ("generate", "a red circle", "--model", parts / "model.safetensors", "--vae", parts / "vae.safetensors",
            "--size", "32x32", "--steps", 1, "--dtype", "fp32")
    assert run(monkeypatch, "encode", "a red circle", "--t5", parts / "t5", "--bits", 16, "--clean", "--max-tokens", 20,
               "--out", tmp_path / "p.safetensors") == 0
    assert run(monkeypatch, *base, "--embeddings", tmp_path / "p.safetensors", "--out", tmp_path / "a.png") == 0
    assert run(monkeypatch, *base, "--t5", parts / "t5", "--bits", 16, "--out", tmp_path / "b.png") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("arguments, words", [
    (("--model", "nowhere.safetensors", "--t5", "t5", "--vae", "vae"), "nowhere.safetensors"),
    (("--model", "x.safetensors"), "--vae"), (("--negative", "dog"), "no effect"), (("--count", "0"), "at least 1"),
    (("--out", "no/such/folder/x.png"), "create it first"),
])
def test_command_line_errors_are_one_line(arguments, words, monkeypatch, capsys):
    assert run(monkeypatch, "generate", "a cat", *arguments) == 1
    shown = capsys.readouterr().err
    assert words in shown and shown.count("\n") == 1 and "Traceback" not in shown


def test_bad_size_is_explained(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "generate", "a cat", "--size", "1024")
    assert "WIDTHxHEIGHT" in capsys.readouterr().err


def test_encoding_frees_the_encoder(parts, monkeypatch):
    from pixart.text.t5 import T5Encoder
    closed = []
    original = T5Encoder.close
    monkeypatch.setattr(T5Encoder, "close", lambda self: (closed.append(self), original(self)))
    encode(parts / "t5", Request(("a",), height=32, width=32), 20, True, bits=16)
    assert len(closed) == 1 and closed[0].model is None


def test_sampling_in_bf16_stays_near_fp32(parts):
    """Relative root mean square difference of 2-step latents stays under 5 %."""
    from pixart.checkpoint import load
    request = Request(("a red circle",), height=64, width=64, steps=2)
    caption, null = encode(parts / "t5", request, 20, True, bits=16)
    exact, rough = (sample(load(parts / "model.safetensors", dtype=dtype), request, caption, null)
                    for dtype in (torch.float32, torch.bfloat16))
    assert ((exact - rough).norm() / exact.norm()).item() < 0.05


@pytest.fixture(scope="module")
def control(parts) -> Path:
    from pixart.checkpoint import save_control
    from pixart.model.controlnet import PixArtControlNet
    torch.manual_seed(4)
    network = PixArtControlNet(CONFIG, 1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return save_control(parts / "control.safetensors", network)


def guided(parts: Path, control: Path, edges: torch.Tensor, strength: float = 1.0, start: float = 0.0, end: float = 1.0,
           **changes: object) -> torch.Tensor:
    request = Request(**({"prompts": ("a red circle",), "height": 64, "width": 64, "steps": 2} | changes))
    return generate(parts / "model.safetensors", parts / "vae.safetensors", request, parts / "t5", bits=16,
                    control=(control, Guide(edges, strength, start, end)))[0]


def edge_picture(height: int = 64, width: int = 64) -> torch.Tensor:
    map_ = torch.zeros(1, 3, height, width)
    map_[:, :, height // 4:height // 4 + 2] = 1
    return map_


def test_control_changes_the_picture_and_strength_0_does_not(parts, control):
    plain = draw(parts)
    assert torch.equal(guided(parts, control, edge_picture(), strength=0.0), plain)
    assert not torch.equal(guided(parts, control, edge_picture()), plain)
    assert not torch.equal(guided(parts, control, edge_picture()), guided(parts, control, edge_picture().flip(2)))


def test_control_is_in_force_for_its_share_of_the_steps(parts, control):
    """Steps of LCM 2: timesteps 999 and 499, shares 0 and 0.5."""
    plain, always = draw(parts), guided(parts, control, edge_picture())
    assert torch.equal(guided(parts, control, edge_picture(), start=0.6, end=1.0), plain)
    assert torch.equal(guided(parts, control, edge_picture(), start=0.0, end=0.6), always)
    first, second = (guided(parts, control, edge_picture(), start=a, end=b) for a, b in ((0, 0.2), (0.4, 1)))
    assert not torch.equal(first, second) and not torch.equal(first, always) and not torch.equal(second, plain)


@pytest.mark.parametrize("changes", [{"sampler": "dpm", "steps": 3}, {"prompts": ("a red circle", "")},
                                     {"height": 50, "width": 91}])
def test_control_works_with_guidance_batches_and_any_size(parts, control, changes):
    pictures = guided(parts, control, edge_picture(90, 40), **changes)
    assert pictures.isfinite().all() and not torch.equal(pictures, draw(parts, **changes))


def test_bad_guides_are_refused():
    with pytest.raises(ValueError, match="start <= end"):
        Guide(edge_picture(), start=0.5, end=0.2)
    with pytest.raises(ValueError, match=r"\(pictures, 3, height, width\)"):
        Guide(edge_picture()[0])
