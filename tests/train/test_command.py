"""The command line of the trainers: every method trains and its file loads; what is wrong is named."""
import argparse
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from train.training_data import TINY, fresh, write_data

from pixart.__main__ import parser
from pixart.checkpoint import load, read_config, save_checkpoint
from pixart.checkpoint.control import read_control
from pixart.checkpoint.lora.read import read_lora
from pixart.commands import pairs
from pixart.config import VARIANTS
from pixart.files.images import read_image
from pixart.mini import SHIPPED, recipe
from pixart.model.transformer import PixArtTransformer
from pixart.sampling.preset import preset_from_header
from pixart.train import command, plan, settings
from pixart.train.base_shapes import read_base_width
from pixart.train.jobs import assemble
from pixart.train.mup import at_width, initialize_mup
from pixart.train.preview import Preview, subject_from_files
from pixart.train.report import Record, duration
from pixart.train.state import read_state, write_state

CONFIGS = Path(settings.__file__).parent / "configs"
TOML = """
[model]
base = "base.safetensors"
[data]
folder = "data"
[train]
steps = 2
batch = 2
learning_rate = 1e-4
[output]
folder = "run"
file = "run/result.safetensors"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration beside its data and its base."""
    write_data(tmp_path / "data")
    save_checkpoint(tmp_path / "base.safetensors", fresh())
    (tmp_path / "train.toml").write_text(TOML)
    return tmp_path / "train.toml"


def run(method: str, *arguments: object) -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(dest="command"))
    command.run(parser.parse_args(["train", method, *map(str, arguments)]))


def changed(path: Path, base: Path) -> bool:
    """Whether training moved the weights."""
    return any(not torch.equal(a, b) for a, b in zip(load(path).parameters(), load(base).parameters()))


@pytest.mark.parametrize("method", ["diffusion", "lcm"])
def test_full_methods_write_a_transformer(file, method):
    run(method, "--config", file, "--output.dtype", "fp32")
    result = file.parent / "run" / "result.safetensors"
    assert read_config(result) == TINY and changed(result, file.parent / "base.safetensors")


def test_a_name_without_ending_makes_a_folder_for_diffusers(file):
    diffusers = pytest.importorskip("diffusers")
    run("lcm", "--config", file, "--output.file", file.parent / "student")
    model = diffusers.PixArtTransformer2DModel.from_pretrained(file.parent / "student")
    assert model.config.num_layers == TINY.depth and load(file.parent / "student").config == TINY
    with pytest.raises(ValueError, match="name of a ControlNet must end in .safetensors"):
        run("controlnet", "--config", file, "--output.file", file.parent / "control")


def test_a_model_that_diffusers_cannot_hold_is_refused_before_it_is_trained(file):
    save_checkpoint(file.parent / "base.safetensors", PixArtTransformer(replace(TINY, qk_norm=True)))
    with pytest.raises(ValueError, match="diffusers has no place for.*qk norm"):
        run("diffusion", "--config", file, "--output.file", file.parent / "student", "--dry-run")


def test_controlnet_writes_a_control_file_from_a_half_precision_base(file):
    run("controlnet", "--config", file, "--set", "method.blocks=1", "--model.dtype", "bf16",
        "--train.precision", "bf16")
    found = read_control(file.parent / "run" / "result.safetensors")
    assert found.blocks == 1 and found.config == TINY
    assert found.state_dict["controlnet.0.after_proj.weight"].abs().max() > 0


@pytest.mark.parametrize("method", ["lora", "lcm-lora"])
def test_lora_methods_write_adapters(file, method):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'pixart-delta[train]'")
    run(method, "--config", file, "--method.rank", "2", "--method.targets", '["attn.qkv", "mlp.fc1"]')
    found = read_lora(file.parent / "run" / "result.safetensors")
    assert {part.module for part in found.parts} == {f"blocks.{i}.{name}" for i in (0, 1)
                                                     for name in ("attn.qkv", "mlp.fc1")}
    assert all(part.rank == 2 and part.scale == 1.0 and part.up.abs().max() > 0 for part in found.parts)


@pytest.mark.parametrize("method", ["tdm", "dmd"])
def test_students_of_distribution_matching_say_how_they_are_sampled(file, method):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'pixart-delta[train]'")
    if method == "dmd":
        for command_line in (["pairs", "--data", file.parent / "data", "--model", file.parent / "base.safetensors",
                              "--out", file.parent / "pairs", "--steps", "2", "--device", "cpu"],) * 2:
            pairs.run(parser("pairs").parse_args([str(word) for word in command_line]))
        file.write_text(TOML.replace('folder = "data"', 'folder = "pairs"'))
    run(method, "--config", file, "--output.dtype", "fp32", "--method.fake_learning_rate", "1e-3")
    result = file.parent / "run" / "result.safetensors"
    assert read_config(result) == TINY and changed(result, file.parent / "base.safetensors")
    run(method, "--config", file, "--method.rank", "2", "--output.folder", file.parent / "lora",
        "--output.file", file.parent / "lora.safetensors")
    assert all(part.rank == 2 for part in read_lora(file.parent / "lora.safetensors").parts)
    for path in (result, file.parent / "lora.safetensors"):
        with safe_open(path, "pt") as opened:
            found = preset_from_header(opened.metadata(), path)
        assert found is not None and (found.method, found.sampler) == (method, method)


def test_the_plan_of_two_players_counts_both(file, capsys):
    run("tdm", "--config", file, "--dry-run")
    count = sum(p.numel() for p in fresh().parameters())
    assert f"{2 * count:,} of {3 * count:,} parameters with adamw" in capsys.readouterr().out
    with pytest.raises(ValueError, match="fake_learning_rate"):
        run("tdm", "--config", file, "--method.fake_learning_rate", "0")
    with pytest.raises(ValueError, match="a TDM student takes 1 to 8"):
        run("tdm", "--config", file, "--method.steps", "20")


def test_training_from_nothing_stores_the_null_caption(file):
    values = ", ".join(f"{name} = {getattr(TINY, name)}" for name in (
        "depth", "hidden", "heads", "caption_width", "caption_tokens", "base_size", "position_scale"))
    file.write_text(TOML.replace('base = "base.safetensors"', f"seed = 3\nnew = {{{values}}}"))
    run("diffusion", "--config", file, "--output.dtype", "fp32")
    model = load(file.parent / "run" / "result.safetensors")
    assert model.config == TINY and model.y_embedder.y_embedding.abs().min() > 0


def test_under_mup_a_wide_model_is_trained_with_the_rules_of_its_base_width(file):
    values = ", ".join(f"{name} = {getattr(TINY, name)}" for name in (
        "depth", "hidden", "heads", "caption_width", "caption_tokens", "base_size", "position_scale"))
    file.write_text(TOML.replace('base = "base.safetensors"', f"seed = 3\nnew = {{{values}}}"))
    run("diffusion", "--config", file, "--output.dtype", "fp32", "--train.mup_base_width", "24",
        "--train.optimizer", "adamw8bit")
    result = file.parent / "run" / "result.safetensors"
    assert read_base_width(result.with_suffix(".bsh"), TINY) == 24
    saved = torch.load(file.parent / "run" / "state.pt", weights_only=True)
    factors = [group["rate_factor"] for group in saved["optimizers"][0]["param_groups"]]
    rates = [group["lr"] for group in saved["optimizers"][0]["param_groups"]]
    assert factors == [1.0, 0.5, 0.5] and rates == [rates[0], rates[0] / 2, rates[0] / 2]
    assert not torch.equal(load(result).blocks[0].mlp.fc1.weight,
                           initialize_mup(PixArtTransformer(TINY), 3, 24).blocks[0].mlp.fc1.weight)


def test_mup_refuses_what_it_has_no_rules_for(file):
    for method, option, message in (("lora", "train.steps=2", "no muP rule for the parameter"),
                                    ("controlnet", "method.blocks=1", "muP trains whole PixArt transformers"),
                                    ("diffusion", "train.optimizer=muon", "its rules are Adam's")):
        with pytest.raises(ValueError, match=message):
            run(method, "--config", file, "--set", "train.mup_base_width=24", "--set", option)


def test_auto_precision_is_what_suits_the_machine(file, monkeypatch):
    from pixart.train import precision
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "no")):
        monkeypatch.setattr(precision, "faster_dtype", lambda width, dtype=dtype: dtype)
        run("diffusion", "--config", file, "--train.precision", "auto", "--output.folder", file.parent / name)
        assert torch.load(file.parent / name / "state.pt", weights_only=True)["settings"]["precision"] == name


def test_it_goes_on_where_it_was_and_refuses_another_method(file, caplog):
    caplog.set_level(logging.INFO)
    run("diffusion", "--config", file)
    run("diffusion", "--config", file, "--train.steps", "4")
    assert "going on from step 2" in caplog.text
    with pytest.raises(ValueError, match="caption_dropout was 0.1 and is now None"):
        run("lcm", "--config", file)


def test_another_base_or_fewer_steps_do_not_go_on(file):
    run("diffusion", "--config", file)
    with pytest.raises(ValueError, match="2 steps were made already, more than the 1 asked for.*state.pt"):
        run("diffusion", "--config", file, "--train.steps", "1")
    other = fresh()
    torch.nn.init.zeros_(other.final_layer.linear.weight)
    save_checkpoint(file.parent / "other.safetensors", other)
    with pytest.raises(ValueError, match=r"base was 'base.safetensors .* and is now 'other.safetensors"):
        run("diffusion", "--config", file, "--model.base", file.parent / "other.safetensors")
    state = read_state(file.parent / "run" / "state.pt")
    del state["settings"]["base"]                   # as older versions wrote it
    write_state(file.parent / "run" / "state.pt", state)
    run("diffusion", "--config", file, "--train.steps", "3")
    assert read_state(file.parent / "run" / "state.pt")["settings"]["base"].startswith("base.safetensors")


def test_a_result_that_has_no_place_is_refused_before_any_work(file):
    (file.parent / "lora").write_text("precious")
    for name, message in (("base.safetensors", "output.file is model.base itself"), ("lora", "the result is a folder")):
        with pytest.raises((ValueError, NotADirectoryError), match=message):
            run("diffusion", "--config", file, "--output.file", file.parent / name)
    assert (file.parent / "lora").read_text() == "precious" and not (file.parent / "run").exists()


def test_dry_run_says_the_plan_and_writes_nothing(file, capsys):
    before = sorted(file.parent.rglob("*"))
    run("lcm", "--config", file, "--dry-run", "--train.accumulation", "2", "--train.steps", "8")
    told = capsys.readouterr().out
    count = sum(p.numel() for p in fresh().parameters())
    assert f"{count:,} of {2 * count:,} parameters with adamw" in told
    assert "2 x 1 processes x 2 accumulated = 4 images a step" in told
    assert "8 = 32 images, 1.0 times the 32 prepared" in told
    assert "a step, measured; about" in told and "GiB a process, measured on the CPU" in told
    assert sorted(file.parent.rglob("*")) == before


def test_the_plan_is_measured_as_it_will_be_trained(file, monkeypatch):
    seen = []
    monkeypatch.setattr(plan, "probe_seconds", lambda training: seen.append(torch.get_num_threads()) or 1.0)
    chosen = settings.read_settings("diffusion", file, {"train.threads": "3", "train.ema_decays": "[0.5, 0.9]"})
    made = plan.make_plan(assemble(chosen), chosen)
    assert seen == [3] and torch.get_num_threads() != 3
    assert made.fixed["their average"] == 3 * made.fixed["trained weights"]


@pytest.mark.parametrize(("option", "message"), [
    ("train.stepz=3", "--set train.stepz is unknown; known are steps, batch"),
    ("trane.steps=3", "train.toml: trane is unknown; known are model, data, train"),
    ("train.steps=many", "--set train.steps is 'many'; expected a whole number"),
    ("train.steps=2.5", "--set train.steps is 2.5; expected a whole number"),
    ("train.recompute=1", "--set train.recompute is 1; expected true or false"),
    ("train.betas=[0.9]", "--set train.betas is .0.9.; expected a list of 2 values"),
    ("train.precision=fp8", r"train.toml: train: unknown precision 'fp8'; use auto, no, bf16, fp16"),
    ("train.learning_rate=-1", "learning rate -1.0 must be positive"),
    ("model.dtype=fp16", "model.dtype is fp16, which needs train.precision bf16 or fp16"),
    ("model.variant=beta", "train.toml: model: variant is 'beta'; use auto, alpha-256"),
    ("method.caption_dropout=1.5", "caption_dropout is 1.5"),
    ('validate.prompts=["a cat"]', "train.toml: validate: prompts need vae and t5"),
    ("steps=3", "expected SECTION.FIELD=VALUE"),
    ("data.folder=elsewhere", "elsewhere holds no prepared training data"),
])
def test_wrong_values_are_named(file, option, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run("diffusion", "--config", file, "--set", option)
    assert not (file.parent / "run" / "state.pt").exists()


def test_folders_may_be_named_like_numbers_and_days(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    (file.parent / "data").rename(file.parent / "2024")
    run("diffusion", "--config", file, "--data.folder", "2024", "--output.folder", "2024-11-28")
    assert (file.parent / "2024-11-28" / "state.pt").exists()


def test_errors_in_the_file_name_the_file(file):
    for wrong, message in (("steps = 'x'", "train.toml: train.steps is 'x'"),
                           ("", "train.toml: train.steps is missing"),
                           ("steps = ", "this is not a TOML file.*train.toml")):
        file.write_text(TOML.replace("steps = 2", wrong))
        with pytest.raises(ValueError, match=message):
            run("diffusion", "--config", file)
    with pytest.raises(FileNotFoundError, match="no configuration file .*nowhere.toml"):
        run("diffusion", "--config", file.parent / "nowhere.toml")


def test_relative_paths_are_relative_to_where_they_stand(file, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    read = settings.read_settings("diffusion", file, {"output.file": "here.safetensors"})
    assert read.data.folder == file.parent / "data"
    assert read.output.file == Path("here.safetensors")


def test_data_of_another_model_is_refused(file):
    save_checkpoint(file.parent / "base.safetensors", recipe_like(caption_width=16))
    with pytest.raises(ValueError, match="have width 8, the model reads 16"):
        run("diffusion", "--config", file)


def recipe_like(**changes: object):
    return PixArtTransformer(replace(TINY, **changes))


METHOD_OF = {"lcm": "lcm", "lcm-lora": "lcm-lora", "controlnet": "controlnet", "lora": "lora", "finetune": "diffusion",
             "mini-teacher": "diffusion", "mini-lcm": "lcm", "mini-lcm-lora": "lcm-lora", "mini-lora": "lora",
             "mini-controlnet": "controlnet", "mup": "diffusion", "tdm": "tdm", "mini-tdm": "tdm", "dmd": "dmd",
             "mini-dmd": "dmd", "ilf": "ilf", "mini-ilf": "ilf", "reward-lora": "reward-lora",
             "mini-reward-lora": "reward-lora", "flexdit": "flexdit", "mini-flexdit": "flexdit", "pt-dit": "pt-dit",
             "mini-pt-dit": "pt-dit"}


def ready(name: str) -> settings.Settings:
    """A shipped configuration with the paths a user would give."""
    paths = {"data.folder": "data", "output.folder": "run", "output.file": "out.safetensors"}
    if not name.startswith(("mini", "mup")):
        paths["model.base"] = "model.safetensors"
    method = METHOD_OF[max((known for known in METHOD_OF if name.startswith(known)), key=len)]
    return settings.read_settings(method, CONFIGS / f"{name}.toml", paths)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.toml")))
def test_shipped_configurations_are_valid(name):
    found = ready(name)
    assert found.model.base is None or found.model.base.name == "model.safetensors" or found.model.base.exists()


def test_mini_configurations_are_the_recipe():
    made = recipe.MiniRecipe()
    teacher = ready("mini-teacher")
    assert teacher.train == made.teacher and teacher.model.new == recipe.MINI_CONFIG and teacher.model.seed == made.seed
    assert (teacher.method.timesteps, teacher.method.weighting) == (made.timesteps, made.weighting)
    assert teacher.method.weighting_cap == made.weighting_cap
    for name, stage in (("lcm-lora", "student"), ("tdm", "tdm"), ("dmd", "dmd")):
        found = ready(f"mini-{name}")
        assert found.train == getattr(made, stage) and found.method == getattr(made, f"{stage}_method"), name


def test_mup_configurations_differ_in_width_alone():
    proxy, target = ready("mup-proxy-256"), ready("mup-target-256")
    assert at_width(proxy.model.new, 1152) == target.model.new == replace(VARIANTS["alpha-256"])
    assert replace(proxy.train, steps=1) == replace(target.train, steps=1)
    assert (proxy.train.learning_rate, proxy.train.mup_base_width) == (2 ** -10, proxy.model.new.hidden)


def test_published_lcm_recipe():
    found = ready("lcm-1024")
    assert (found.train.batch, found.train.learning_rate, found.train.ema, found.train.clip) == (12, 2e-5, 0.95, 0.01)
    assert (found.method.guidance, found.method.huber_c) == (4.5, 0.001)
    sigma = ready("lcm-sigma-1024").train
    assert (sigma.optimizer, sigma.learning_rate, sigma.betas, sigma.batch) == ("came", 1e-5, (0.9, 0.999), 12)
    assert ready("lcm-lora-1024").method.rank == 32 and ready("controlnet-512").method.blocks == 13


def test_published_dmd_recipe():
    found = ready("dmd-512")
    assert (found.train.learning_rate, found.train.clip, found.train.accumulation) == (1e-6, 10.0, 2)
    assert (found.method.fake_learning_rate, found.method.fake_clip) == (1e-6, 10.0)
    assert (found.method.guidance, found.method.regression, found.train.epsilon) == (3.0, 0.25, 1e-6)


def test_published_tdm_recipe():
    found = ready("tdm-512")
    assert (found.train.learning_rate, found.method.fake_learning_rate) == (4e-6, 2e-5)
    assert (found.train.betas, found.train.weight_decay, found.train.clip) == ((0.0, 0.95), 0.01, 1.0)
    assert (found.method.guidance, found.method.rule, found.method.fake_clip) == (4.5, "official", float("inf"))


def test_previews_show_prompts_with_captions_and_the_same_images_each_time(tmp_path):
    pytest.importorskip("diffusers")
    prompts = ("a red circle", "a blue star")
    values = settings.ValidateSettings(prompts=prompts, every=2, vae=SHIPPED.vae, t5=SHIPPED.t5, bits=16, sampler="lcm",
                                       steps=2, width=64, height=48)
    model = load(SHIPPED.student, dtype=torch.float32)
    subject = subject_from_files(values, model.config, "cpu")
    preview = Preview(subject, values.every, lambda average: (average, None), tmp_path)
    before = torch.get_rng_state()
    for step in (1, 2, 3, 4):
        preview(Record(step, 5, 0.0, 0.0, 0.0, 0.0, 0.0), model)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-0000002.png", "step-0000004.png"]
    first, second = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert first == second and torch.equal(torch.get_rng_state(), before)
    sheet = preview.sheet(model)
    assert sheet.size == (128, 48 + 40) and len(set(sheet.crop((0, 48, 128, 88)).getdata())) > 1


def test_durations_read_well():
    assert [duration(s) for s in (45, 100, 720, 12_000)] == ["45 s", "2 min", "12 min", "3 h 20 min"]


def test_every_method_has_its_job():
    from pixart.train.jobs import OF_WHOLE_NETWORKS, ON_FROZEN_BASE
    from pixart.train.method_settings import RewardLoraMethod
    assert {*OF_WHOLE_NETWORKS, *ON_FROZEN_BASE, RewardLoraMethod} == set(settings.METHOD_CLASSES.values())


@pytest.mark.parametrize("method", settings.METHOD_CLASSES)
def test_help_has_a_meaning_for_every_option(method, capsys):
    found = list(settings.options(method))
    assert [option.key for option in found if not option.meaning] == []
    with pytest.raises(SystemExit):
        command.method_parser(method).parse_args(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for option in found:
        assert f"--{option.key} VALUE {option.help}".replace("- ", "-") in told.replace("- ", "-"), option.key


def test_the_documentation_lists_every_option():
    """Rows of the tables in docs/training.md; what is missing can be copied from the message."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    rows = {f"| `{option.key}` | {option.meaning} | {option.default} |"
            for method in settings.METHOD_CLASSES for option in settings.options(method)}
    missing = sorted(row for row in rows if row not in text)
    assert not missing, "\n".join(missing)


def test_timesteps_and_weights_come_from_the_file_and_the_command_line(file):
    with file.open("a") as toml:
        toml.write("[method]\nweighting = 'v'\n[method.timesteps]\nkind = 'range'\nlow = 100\n")
    run("diffusion", "--config", file, "--method.timesteps.high", "700", "--set", "method.timesteps.stratified=true")
    saved = torch.load(file.parent / "run" / "state.pt", weights_only=True)["settings"]
    assert (saved["weighting"], saved["timesteps.kind"]) == ("v", "range")
    assert (saved["timesteps.low"], saved["timesteps.high"], saved["timesteps.stratified"]) == (100, 700, True)
    with pytest.raises(ValueError, match="method.timesteps: timesteps.low is 100, high 50"):
        run("diffusion", "--config", file, "--method.timesteps.high", "50")
    with pytest.raises(ValueError, match="method.timesteps.kindd is unknown; known are kind, centre"):
        run("diffusion", "--config", file, "--set", "method.timesteps.kindd=range")


@pytest.mark.parametrize(("method", "name", "files"), [
    ("diffusion", "result.safetensors", ["result-ema-0.5.safetensors", "result-ema-0.safetensors"]),
    ("lcm", "student", ["student-ema-0", "student-ema-0.5"])])
def test_further_averages_are_written_beside_the_result(file, method, name, files):
    run(method, "--config", file, "--train.ema_decays", "[0.5, 0.0]", "--output.dtype", "fp32",
        "--output.file", file.parent / "out" / name)
    assert sorted(path.name for path in (file.parent / "out").iterdir()) == sorted([name, *files])
    networks = [load(path) for path in sorted((file.parent / "out").iterdir())]
    assert not torch.equal(networks[0].final_layer.linear.weight, networks[1].final_layer.linear.weight)


def test_all_methods_of_noise_prediction_take_timesteps_and_weights(file):
    for method, more in (("lora", ()), ("controlnet", ("--method.blocks", "1"))):
        run(method, "--config", file, "--method.weighting", "min-snr", "--method.timesteps.kind", "laplace",
            "--output.folder", file.parent / method, *more)
        saved = torch.load(file.parent / method / "state.pt", weights_only=True)["settings"]
        assert (saved["weighting"], saved["timesteps.kind"]) == ("min-snr", "laplace")
    with pytest.raises(ValueError, match="method.weighting is unknown; known are guidance"):
        run("lcm", "--config", file, "--set", "method.weighting=v")


def test_a_hint_turned_by_its_metadata_is_read_upright(tmp_path):
    """Phones keep images lying on their side and say so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2), "red").save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").shape == (1, 4, 4, 2)
    (tmp_path / "text.png").write_text("x")
    with pytest.raises(ValueError, match="cannot be used, it is not an image: .*text.png"):
        read_image(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match="there is no image .*none.png"):
        read_image(tmp_path / "none.png")
