"""Files of FlexDiT: found by `load`, what they say is checked, and what does not fit them is refused by name."""
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixart import Pipeline, load, load_lora, save_checkpoint
from pixart import __main__ as command_line
from pixart.checkpoint import CheckpointError, read_config
from pixart.checkpoint.header import CONFIG_KEY, to_tensors
from pixart.config import PixArtConfig
from pixart.generation.request import Request
from pixart.mini import SHIPPED
from pixart.model.controlnet import PixArtControlNet
from pixart.model.flexdit import FlexDiT
from pixart.model.flexdit_config import Density, FlexDiTConfig, Segments
from pixart.model.to_flexdit import to_flexdit
from pixart.model.transformer import PixArtTransformer
from pixart.text.encoded import Encoded

CONFIG = PixArtConfig(depth=8, hidden=48, heads=4, caption_width=16, caption_tokens=8, base_size=4)


def plain_model(**changes: object) -> PixArtTransformer:
    torch.manual_seed(0)
    return PixArtTransformer(replace(CONFIG, **changes)).eval().requires_grad_(False)


def flexdit(**changes: object) -> FlexDiT:
    return to_flexdit(plain_model(**changes), density=Density(0.5, 0.8, pieces=2))


def given() -> tuple[torch.Tensor, ...]:
    return torch.ones(1, 4, 8, 8), torch.tensor([700.0]), torch.ones(1, 3, 16)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_file_gives_back_what_was_saved(tmp_path, qk_norm):
    model = flexdit(qk_norm=qk_norm)
    path = save_checkpoint(tmp_path / "flex.safetensors", model)
    back = load(path)
    assert type(back) is FlexDiT and back.config == model.config == read_config(path)
    assert all(torch.equal(one, other) for one, other in zip(back.state_dict().values(), model.state_dict().values(),
                                                             strict=True))
    # Where in memory weights begin decides on some processors in which order they are summed up: hence float64.
    doubled = [tensor.double() for tensor in given()]
    torch.testing.assert_close(back.double()(*doubled), model.double()(*doubled), rtol=0, atol=1e-12)


def test_in_half_precision_it_computes_too(tmp_path):
    path, model = save_checkpoint(tmp_path / "flex.safetensors", flexdit(), dtype=torch.float16), flexdit()
    half = load(path, dtype=torch.bfloat16)
    latent, t, context = given()
    got = half(latent.bfloat16(), t, context.bfloat16())
    assert got.dtype == torch.bfloat16 and (got.float() - model(*given())).norm() < 0.05 * model(*given()).norm()


def test_a_host_that_saves_tensors_alone_keeps_it_a_flexdit(tmp_path):
    model = flexdit()
    state = {name.replace("table.weight", "table"): tensor for name, tensor in model.state_dict().items()}
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in (state | to_tensors(model.config)).items()},
              tmp_path / "host.safetensors")
    assert load(tmp_path / "host.safetensors").config == model.config


def test_a_configuration_among_tensors_that_is_no_text_is_refused(tmp_path):
    model = flexdit()
    state = {name.replace("table.weight", "table"): tensor for name, tensor in model.state_dict().items()}
    for wrong in (torch.zeros(8), torch.zeros(2, 8, dtype=torch.uint8), torch.zeros(1 << 17, dtype=torch.uint8)):
        save_file(state | {CONFIG_KEY: wrong}, tmp_path / "host.safetensors")
        with pytest.raises(CheckpointError, match=f"{CONFIG_KEY} among its tensors is .*the bytes of a text"):
            load(tmp_path / "host.safetensors")


def test_it_is_said_what_it_is(tmp_path, caplog):
    caplog.set_level("INFO")
    load(save_checkpoint(tmp_path / "flex.safetensors", flexdit()))
    assert "FlexDiT of 1 pooling, 1 x (merge, 3 sparse, recover, 1 dense), 1 dense, 20 to 50 % of the tokens" \
        in caplog.text


def test_every_converted_model_samples_with_guidance(tmp_path):
    """PixArt-mini's own teacher, through the pipeline; batched as alone."""
    model = to_flexdit(load(SHIPPED.teacher))
    pipe = Pipeline.of(model, decoder=lambda latents: latents[:, :3])
    prompts = Encoded(torch.randn(2, 4, 128, generator=torch.Generator().manual_seed(0)),
                      torch.ones(2, 4, dtype=torch.bool), [None, None])
    request = Request(("a", "b"), height=96, width=160, sampler="dpm", steps=3, guidance=2.5)
    null = Encoded(prompts.context[:1] * 0.1, prompts.mask[:1], [None])
    both = pipe.sample(request, prompts, null)
    assert both.shape == (2, 4, 12, 20) and both.isfinite().all()
    alone = pipe.sample(request, prompts, null, batch=1)
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-4)


def damaged(tmp_path: Path, change) -> Path:
    path = save_checkpoint(tmp_path / "flex.safetensors", flexdit())
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    tensors, config = load_file(path), json.loads(metadata[CONFIG_KEY])
    change(tensors, config)
    told = {**metadata, CONFIG_KEY: json.dumps(config)} if config else None
    save_file(tensors, tmp_path / "damaged.safetensors", told)
    return tmp_path / "damaged.safetensors"


def told(**changes: object):
    return lambda tensors, config: config["flexdit"].update(changes)


DAMAGES = {
    "newer": (told(version=2), "a FlexDiT of version 2, newer than 1"),
    "no token": (told(r_max=1.0), "r_max is 1, a density that leaves no token"),
    "wrong depth": (told(pooling=3), "the segments have 10 blocks, the model 8"),
    "text": (told(groups="x"), "groups is 'x'"),
    "unknown": (lambda t, c: c["flexdit"].pop("top"), "does not say top"),
    "other roles": (told(sparse=2, top=2), "another shape|unknown|missing"),
    "no table": (lambda t, c: c.update(flexdit=3), "flexdit of pixart_config of its header is a int"),
    "without header": (lambda t, c: c.clear(), "a FlexDiT without the header"),
    "a plain model's header": (lambda t, c: c.pop("flexdit"), "missing"),
    "lost layer": (lambda t, c: t.pop("blocks.5.from_sparse.bias"), "1 tensors are missing, the first is blocks.5"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage, tmp_path):
    change, message = DAMAGES[damage]
    with pytest.raises(CheckpointError, match=message):
        load(damaged(tmp_path, change))


def test_a_plain_header_says_nothing_of_it(tmp_path):
    """Files of plain models stay readable by earlier versions."""
    with safe_open(save_checkpoint(tmp_path / "plain.safetensors", plain_model()), "pt") as file:
        assert "flexdit" not in file.metadata()[CONFIG_KEY]


def test_another_size_of_the_family_keeps_its_segments(tmp_path):
    path = save_checkpoint(tmp_path / "flex.safetensors", flexdit())
    config = read_config(path, "alpha-1024")
    assert isinstance(config, FlexDiTConfig) and config.base_size == 64 and config.segments == Segments(1, 1, 3, 1, 1)


def test_a_controlnet_and_a_lora_are_refused_by_name(tmp_path):
    model, hint = flexdit(), torch.ones(1, 4, 8, 8)
    control = PixArtControlNet.copy_of(plain_model(), 2)
    with pytest.raises(ValueError, match="a FlexDiT cannot follow a ControlNet"):
        control(model, hint, *given())
    lora = {f"transformer.transformer_blocks.0.attn1.to_q.lora_{side}.weight": torch.ones(shape)
            for side, shape in (("A", (2, 48)), ("B", (48, 2)))}
    save_file(lora, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="a LoRA does not fit a FlexDiT.*lora.safetensors"):
        load_lora(model, tmp_path / "lora.safetensors")


# -- the command -------------------------------------------------------------------------------------------------------

def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pixart", *map(str, arguments)])
    return command_line.main()


def test_the_command_converts_and_what_it_wrote_generates(tmp_path, monkeypatch, capsys):
    out = tmp_path / "flex.safetensors"
    assert run(monkeypatch, "flexdit", SHIPPED.teacher, "--out", out, "--r-max", 0.75, "--pieces", 0) == 0
    assert "FlexDiT of 1 pooling" in capsys.readouterr().out
    config = read_config(out)
    assert isinstance(config, FlexDiTConfig) and config.density == Density(0.61, 0.75, 0)
    parts = ("--model", out, "--vae", SHIPPED.vae, "--t5", SHIPPED.t5, "--bits", 16)
    assert run(monkeypatch, "generate", "a red circle", *parts, "--sampler", "dpm", "--steps", 2, "--size", "96x64",
               "--out", tmp_path / "x.png") == 0
    assert (tmp_path / "x.png").exists()


@pytest.mark.parametrize(("more", "words"), [
    (("--top", 3), "the segments have 10 blocks, the model 8"), (("--r-max", 1), "a density that leaves no token"),
    (("--out", "folder"), "must end in .safetensors")])
def test_what_the_command_cannot_do_is_one_line(more, words, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "flexdit", SHIPPED.teacher, "--out", tmp_path / "flex.safetensors", *more) == 1
    shown = capsys.readouterr().err
    assert words in shown and shown.count("\n") == 1


def test_pooled_blocks_are_an_option_of_generate(tmp_path, monkeypatch):
    images = {}
    for name, more in (("plain", ()), ("pooled", ("--pooled-blocks", 2)),
                       ("both", ("--pooled-blocks", 2, "--cache", "steps"))):
        assert run(monkeypatch, "generate", "a red circle", "--steps", 4, "--size", "64x64", "--dtype", "fp32", *more,
                   "--out", tmp_path / f"{name}.png") == 0
        images[name] = (tmp_path / f"{name}.png").read_bytes()
    assert len(set(images.values())) == 3
