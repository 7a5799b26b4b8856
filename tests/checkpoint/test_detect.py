"""Which model a file holds: every released one, what cannot be told, and what a user may say about it."""
import logging
import math
from dataclasses import replace
from pathlib import Path

import golden_cases
import pytest
import torch
from checkpoint.samples import full, position_table

from pixart.checkpoint import CheckpointError
from pixart.checkpoint.configure import configure, name_hints
from pixart.checkpoint.detect import Facts, find_layout, measure_positions, measure_shapes, reference_shapes
from pixart.config import VARIANTS, KVCompression, PixArtConfig

REFERENCE = {
    "PixArt-XL-2-SAM-256x256.pth": "alpha-256",
    "PixArt-XL-2-256x256.pth": "alpha-256",
    "PixArt-XL-2-512x512.pth": "alpha-512",
    "PixArt-XL-2-1024-MS.pth": "alpha-1024",
    "PixArt-Sigma-XL-2-256x256.pth": "sigma-256",
    "PixArt-Sigma-XL-2-512-MS.pth": "sigma-512",
    "PixArt-Sigma-XL-2-1024-MS.pth": "sigma-1024",
    "PixArt-Sigma-XL-2-2K-MS.pth": "sigma-2k",
}
DIFFUSERS_NAMES = {
    "PixArt-XL-2-SAM-256x256/transformer": "alpha-256",
    "PixArt-XL-2-512x512/transformer": "alpha-512",
    "PixArt-Alpha-DMD-XL-2-512x512/transformer": "alpha-512",
    "models--PixArt-alpha--PixArt-Sigma-XL-2-512-MS/snapshots/abc256def/transformer": "sigma-512",
    "PixArt-Sigma-XL-2-2K-MS.safetensors": "sigma-2k",
    "pixart_sigma_256.safetensors": "sigma-256",
    "my-finetune.safetensors": "sigma-1024",
}
# sample_size, interpolation_scale, class of the pipeline around it
CONFIG_JSON = {
    "alpha-256": (32, None, "PixArtAlphaPipeline"),
    "alpha-512": (64, None, "PixArtAlphaPipeline"),
    "alpha-1024": (128, None, "PixArtAlphaPipeline"),
    "sigma-256": (32, 0.5, "PixArtSigmaPipeline"),
    "sigma-512": (64, 1, "PixArtSigmaPipeline"),
    "sigma-1024": (128, 2, "PixArtSigmaPipeline"),
    "sigma-2k": (256, 4, "PixArtSigmaPipeline"),
}


def facts_of(tensors: dict, path: Path = Path("file")) -> Facts:
    layout = find_layout(tensors, path)
    positions = tensors[layout.positions] if layout.positions else None
    return measure_shapes(reference_shapes(layout.plan, tensors, path), positions, path)


def detect(tensors: dict, name: str = "file", variant: str | PixArtConfig = "auto", settings: dict | None = None):
    return configure(facts_of(tensors), variant, None, settings or {}, Path(name))


@pytest.mark.parametrize("name, variant", REFERENCE.items())
def test_reference_files_say_everything(name, variant):
    choice = detect(full(variant), "renamed by the user.pth")
    assert choice.config == VARIANTS[variant] and not choice.guessed


@pytest.mark.parametrize("name, variant", DIFFUSERS_NAMES.items())
def test_diffusers_files_alone_are_guessed_by_name(name, variant, caplog):
    with caplog.at_level(logging.WARNING):
        choice = detect(full(variant, diffusers=True), name)
    assert choice.config == VARIANTS[variant] and choice.guessed
    assert "choose variant" in caplog.text and variant in caplog.text


@pytest.mark.parametrize("variant", CONFIG_JSON)
def test_diffusers_pipelines_say_everything(variant, caplog):
    side, scale, pipeline = CONFIG_JSON[variant]
    settings = {"sample_size": side, "interpolation_scale": scale, "num_attention_heads": 16,
                "pipeline_class": pipeline}
    choice = detect(full(variant, diffusers=True), "x", settings=settings)
    assert choice.config == VARIANTS[variant] and not choice.guessed and not caplog.records


@pytest.mark.parametrize("factor, variant", [(0.18215, "alpha-512"), (0.13025, "sigma-512")])
def test_scaling_factor_of_the_vae_beside_it_decides_the_latent_space(factor, variant):
    choice = detect(full(variant, diffusers=True), settings={"sample_size": 64, "vae_scaling_factor": factor})
    assert choice.config == VARIANTS[variant] and not choice.guessed


@pytest.mark.parametrize("tokens, variant", [(120, "alpha-512"), (300, "sigma-512")])
def test_the_length_of_captions_of_the_tokenizer_beside_it_decides_too(tokens, variant):
    choice = detect(full(variant, diffusers=True), settings={"sample_size": 64, "tokens": tokens})
    assert choice.config == VARIANTS[variant] and not choice.guessed


def test_alpha_trained_on_longer_captions_is_alpha_with_these():
    settings = {"sample_size": 64, "pipeline_class": "PixArtAlphaPipeline", "tokens": 300}
    assert detect(full("alpha-512", diffusers=True), settings=settings).config == replace(VARIANTS["alpha-512"],
                                                                                         caption_tokens=300)


def test_alpha_of_another_size_than_its_own_stays_alpha():
    """Sizes beyond 512 px are of Sigma only where nothing says alpha."""
    settings = {"sample_size": 128, "pipeline_class": "PixArtAlphaPipeline"}
    config = detect(full("alpha-512", diffusers=True), settings=settings).config
    assert (config.latent_space, config.caption_tokens, config.base_size) == ("sd", 120, 64)


def test_what_makes_no_pixart_is_named():
    tensors = full("alpha-512")
    with pytest.raises(CheckpointError, match="4 channels go in and 12 come out"):
        detect(tensors | {"final_layer.linear.weight": torch.empty(48, 1152, device="meta")})
    with pytest.raises(CheckpointError, match="2 models in one file, under a., b."):
        detect({f"{prefix}{name}": tensor for name, tensor in tensors.items() for prefix in ("a.", "b.")})
    conv = full("sigma-1024", kv_compression=KVCompression("conv", 2, (3,)))
    with pytest.raises(CheckpointError, match="key/value compression by 1"):
        detect(conv | {"blocks.3.attn.sr.weight": torch.empty(1152, 1, 1, 1, device="meta")})


@pytest.mark.parametrize("table, words", [
    (torch.zeros(1, 15, 72), r"\(1, 15, 72\).*a square number, 72"), (torch.zeros(1, 16, 48), "a square number, 72"),
    (torch.zeros(1, 1, 72), "a square number"), (torch.zeros(16, 72), "a square number"),
    (torch.zeros(1, 16, 72, dtype=torch.int8), "a square number"), (torch.zeros(1, 16, 72), "sines and cosines"),
    (torch.full((1, 16, 72), math.nan), "sines and cosines"), (torch.full((1, 16, 72), -0.5), "sines and cosines")])
def test_a_position_table_that_is_none_is_refused(table, words):
    with pytest.raises(CheckpointError, match=words):
        measure_positions(table, 72, Path("file"))


def test_transformer_folder_without_pipeline_is_guessed():
    choice = detect(full("sigma-512", diffusers=True), "PixArt-Sigma/transformer", settings={"sample_size": 64})
    assert choice.config == VARIANTS["sigma-512"] and choice.guessed


@pytest.mark.parametrize("name, settings, variant", [
    ("my 512.safetensors", {}, "alpha-512"), ("my 1024.safetensors", {}, "sigma-1024"),
    ("mine.safetensors", {"sample_size": 32}, "alpha-256"),
    ("mine.safetensors", {"sample_size": 32, "interpolation_scale": 0.5}, "sigma-256")])
def test_where_nothing_says_the_family_the_size_is_what_is_guessed_by(name, settings, variant):
    choice = detect(full(variant, diffusers=True), name, settings=settings)
    assert choice.config == VARIANTS[variant] and choice.guessed


def test_lcm_in_diffusers_layout_is_alpha_1024_without_guessing():
    choice = detect(full("alpha-1024", diffusers=True), "PixArt-LCM-XL-2-1024-MS.safetensors")
    assert choice.config == VARIANTS["alpha-1024"] and not choice.guessed


def test_900m_has_42_blocks_and_is_taken_for_sigma_1024():
    choice = detect(full("sigma-1024", diffusers=True, depth=42), "model.safetensors")
    assert choice.config == replace(VARIANTS["sigma-1024"], depth=42)
    named = detect(full("sigma-512", diffusers=True, depth=42), "my 512.safetensors")
    assert named.config == replace(VARIANTS["sigma-512"], depth=42)


def test_alpha_512_is_not_taken_for_sigma():
    """Hosts look at ar_embedder only and give alpha 256 and 512 the latents of SDXL."""
    assert detect(full("alpha-512")).config.latent_scale == 0.18215
    without_positions = {name: value for name, value in full("alpha-512").items() if name != "pos_embed"}
    assert detect(without_positions).config.latent_scale == 0.18215


@pytest.mark.parametrize("stored, variant", [(1.0, "alpha-256"), (0.5, "sigma-256")])
def test_256_px_scale_is_read_from_the_stored_table(stored, variant):
    config = replace(VARIANTS["alpha-256"], position_scale=stored)
    tensors = full("alpha-256") | {"pos_embed": position_table(config)}
    assert detect(tensors).config == config


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 1.37, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("hidden", [32, 72, 1152])
def test_scale_is_unambiguous_in_every_dtype_and_width(scale, dtype, hidden):
    config = PixArtConfig(hidden=hidden, heads=1, base_size=4, position_scale=scale, micro_conditioning=False)
    base, found = measure_positions(position_table(config).to(dtype), hidden, Path("file"))
    assert base == 4 and math.isclose(found, scale, rel_tol=1e-2)


@pytest.mark.parametrize("name", golden_cases.names("0[1-4]*"))
def test_facts_of_models_built_by_the_official_code(name):
    golden = golden_cases.load(name)
    config, facts = golden.meta["config"], facts_of(golden.weights)
    assert (facts.depth, facts.hidden, facts.caption_width) == (
        config["depth"], config["hidden_size"], config["caption_channels"])
    assert facts.caption_tokens == config["model_max_length"]
    assert facts.micro_conditioning == config["micro_conditioning"] and facts.learned_variance
    assert facts.qk_norm == config.get("qk_norm", False)
    compression = config.get("kv_compress_config") or {"sampling": None}
    assert (facts.kv_compression is not None) == (compression["sampling"] == "conv")
    if any(key.endswith("pos_embed") for key in golden.weights):
        assert facts.base_size == config["input_size"] // 2
        assert facts.position_scale == config.get("lewei_scale", config.get("pe_interpolation"))


def test_compression_and_norm_are_seen():
    compression = KVCompression("conv", 2, (14, 15, 27))
    config = detect(full("sigma-1024", kv_compression=compression, qk_norm=True)).config
    assert config.kv_compression == compression and config.qk_norm


@pytest.mark.parametrize("changes", [{"depth": 7}, {"hidden": 576, "heads": 8}, {"channels": 16},
                                     {"learned_variance": False}, {"caption_width": 2048}, {"patch": 4}])
def test_sizes_come_from_the_weights(changes):
    choice = detect(full("alpha-1024", **changes))
    assert choice.config == replace(VARIANTS["alpha-1024"], **changes)


def test_heads_of_an_odd_width_are_asked_for():
    tensors = full("alpha-512", hidden=96, heads=4)
    with pytest.raises(CheckpointError, match="width 96.*attention heads.*PixArtConfig"):
        detect(tensors)
    assert detect(tensors, settings={"num_attention_heads": 4}).config.heads == 4
    config = replace(VARIANTS["alpha-512"], hidden=96, heads=6)
    assert detect(tensors, variant=config).config is config


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "alpha-1024"])
def test_variant_overrides_what_diffusers_names_cannot_tell(variant):
    choice = detect(full("sigma-1024", diffusers=True), "PixArt-Sigma-1024.safetensors", variant)
    assert choice.config == VARIANTS[variant] and not choice.guessed


@pytest.mark.parametrize("held, asked, reason", [("alpha-1024", "alpha-512", "has size conditioning"),
                                                ("alpha-512", "alpha-1024", "has no size conditioning")])
def test_variant_that_the_tensors_rule_out_is_refused_naming_both(held, asked, reason):
    with pytest.raises(CheckpointError, match=f"variant {asked}.*{reason}.*auto or .*{held}"):
        detect(full(held), variant=asked)


@pytest.mark.parametrize("held, asked, notice", [
    ("alpha-512", "sigma-512", "120 tokens, not 300"),
    ("sigma-512", "sigma-2k", "pos_embed is of a 512 px model"),
    ("alpha-256", "sigma-256", "pos_embed has scale 1, not 0.5"),
])
def test_a_chosen_variant_wins_and_what_speaks_against_it_is_logged(held, asked, notice, caplog):
    choice = detect(full(held), variant=asked)
    tokens = VARIANTS[held].caption_tokens                  # of the tensor that is there
    assert choice.config == replace(VARIANTS[asked], caption_tokens=tokens) and not choice.guessed
    assert notice in caplog.text and f"used as {asked}, as chosen" in caplog.text
    assert notice in choice.against and not detect(full(held), variant=held).against


def one_trainer(variant: str) -> dict:
    """As OneTrainer's converter writes every variant: no null caption, a table of 64 x 64 at scale 1."""
    table = position_table(replace(VARIANTS[variant], base_size=64, position_scale=1.0))
    return {name: tensor for name, tensor in full(variant).items() if "y_embedding" not in name} | {"pos_embed": table}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "mup" not in name])
def test_fine_tunes_of_onetrainer_are_what_their_name_or_the_user_says(variant, caplog):
    by_choice = detect(one_trainer(variant), "fine-tune.safetensors", variant)
    assert by_choice.config == VARIANTS[variant] and not by_choice.guessed
    assert "1024 px at scale 1" in caplog.text and "is ignored" in caplog.text
    by_name = detect(one_trainer(variant), f"my-PixArt-{variant}.safetensors")
    assert by_name.config == VARIANTS[variant] and by_name.guessed == (variant != "alpha-1024")


def test_a_table_of_another_training_size_is_believed():
    config = replace(VARIANTS["sigma-1024"], base_size=48, position_scale=1.5)
    assert detect(full("sigma-1024") | {"pos_embed": position_table(config)}).config == config


def test_unknown_variant_lists_the_known_ones():
    with pytest.raises(CheckpointError, match="unknown variant 'sigma'.*sigma-2k"):
        detect(full("alpha-512"), variant="sigma")


def test_configuration_against_the_weights_is_refused():
    with pytest.raises(CheckpointError, match="depth is 28 by its weights, but 27"):
        detect(full("alpha-512"), variant=replace(VARIANTS["alpha-512"], depth=27))


def test_a_given_compression_may_be_one_that_leaves_no_trace_and_no_other():
    averaged, by_weights = (replace(VARIANTS["sigma-1024"], kv_compression=KVCompression(mode, 2, (1,)))
                            for mode in ("ave", "conv"))
    assert detect(full("sigma-1024"), variant=averaged).config is averaged
    with pytest.raises(CheckpointError, match="kv_compression is None by its weights, but KVCompression"):
        detect(full("sigma-1024"), variant=by_weights)


@pytest.mark.parametrize("name, hints", [
    ("PixArt-alpha--PixArt-Sigma-XL-2-1024-MS.pth", ("sigma", 1024)),
    ("dmd.safetensors", ("alpha", 512)),
    ("900M-base.safetensors", ("sigma", 1024)),
    ("step_15120.safetensors", (None, None)),
    ("pixart 2K.safetensors", (None, 2048)),
])
def test_hints_in_names(name, hints):
    assert name_hints(Path(name)) == hints
