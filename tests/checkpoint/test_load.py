"""Every layout and container gives the same numbers; what is saved comes back; memory stays that of the file."""
import json
import logging
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint.samples import TINY, equal, reference
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import pixart
from pixart.checkpoint import CheckpointError, expected_shapes, read_checkpoint, save_checkpoint, to_diffusers
from pixart.config import KVCompression, PixArtConfig

ROOT = Path(__file__).resolve().parents[2]
SIGMA = replace(TINY, micro_conditioning=False, caption_tokens=300, latent_space="sdxl")


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def plain(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if name != "pos_embed"}


CONTAINERS = {
    "bare": lambda weights: weights,
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3, "optimizer": {"state": {}}},
    "ema beside it": lambda weights: {"state_dict": weights, "state_dict_ema": reference(seed=9)},
    "ema alone": lambda weights: {"state_dict_ema": weights},
    "model": lambda weights: {"model": weights, "epoch": 3},
    "model.state_dict": lambda weights: {"model": {"state_dict": weights}, "step": 1},
    "lone key": lambda weights: {"anything": weights},
    "scalars beside": lambda weights: {**weights, "epoch": 3},
}
PREFIXES = ["module.", "model.", "model.diffusion_model.", "diffusion_model.", "net.", "base_model.",
            "module.base_model.", "_orig_mod.", "generator."]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_containers(container, zipped, tmp_path):
    weights = reference()
    torch.save(CONTAINERS[container](weights), tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    assert equal(checkpoint.state_dict, plain(weights)) and checkpoint.config == TINY
    assert not checkpoint.guessed and checkpoint.has_null_caption


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("diffusers", [False, True])
def test_prefixes(prefix, diffusers, tmp_path):
    weights = reference()
    named = contiguous(to_diffusers(weights, null_caption=True)) if diffusers else weights
    save_file(prefixed(prefix, named), tmp_path / "model.safetensors")
    assert equal(read_checkpoint(tmp_path / "model.safetensors").state_dict, plain(weights))


def test_averaged_weights_on_request(tmp_path):
    plain_weights, averaged = reference(seed=1), reference(seed=2)
    torch.save({"state_dict": plain_weights, "state_dict_ema": averaged}, tmp_path / "both.pth")
    torch.save({"state_dict": plain_weights}, tmp_path / "one.pth")
    assert equal(read_checkpoint(tmp_path / "both.pth").state_dict, plain(plain_weights))
    assert equal(read_checkpoint(tmp_path / "both.pth", ema=True).state_dict, plain(averaged))
    with pytest.raises(CheckpointError, match="no averaged weights"):
        read_checkpoint(tmp_path / "one.pth", ema=True)


def test_control_bundle_gives_its_base_and_says_so(tmp_path, caplog):
    weights = reference()
    control = {f"controlnet.{i}.after_proj.weight": torch.zeros(72, 72) for i in range(3)}
    control |= {"controlnet.0.copied_block.attn.qkv.weight": torch.zeros(216, 72)}
    torch.save({"state_dict": prefixed("base_model.", weights) | control}, tmp_path / "control.pth")
    with caplog.at_level(logging.INFO):
        checkpoint = read_checkpoint(tmp_path / "control.pth")
    assert equal(checkpoint.state_dict, plain(weights))
    assert "left out 4 control tensors" in caplog.text and "ControlNet loader" in caplog.text


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_whole_checkpoint_gives_its_transformer(prefix, tmp_path, caplog):
    weights = reference()
    beside = {"vae.decoder.conv_in.weight": torch.zeros(2), "text_encoders.t5xxl.shared.weight": torch.zeros(2),
              "vae.decoder.conv_out.weight": torch.zeros(2)}
    save_file(prefixed(prefix, weights) | beside, tmp_path / "all.safetensors")
    with caplog.at_level(logging.INFO):
        assert equal(read_checkpoint(tmp_path / "all.safetensors").state_dict, plain(weights))
    assert "left out 3 tensors beside the transformer" in caplog.text


def test_community_null_caption_in_reference_layout(tmp_path):
    weights = reference()
    renamed = {name.replace("y_embedder.y_embedding", "caption_projection.y_embedding"): tensor
               for name, tensor in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    assert equal(read_checkpoint(tmp_path / "model.safetensors").state_dict, plain(weights))


def test_diffusers_file_without_null_caption_says_so(tmp_path):
    save_file(contiguous(to_diffusers(reference(SIGMA))), tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path / "model.safetensors", variant="sigma-512")
    assert not checkpoint.has_null_caption and not checkpoint.guessed
    assert checkpoint.state_dict["y_embedder.y_embedding"].shape == (300, 16)
    assert not checkpoint.state_dict["y_embedder.y_embedding"].any()
    assert checkpoint.config == replace(SIGMA, base_size=32, position_scale=1.0)


@pytest.fixture(scope="module")
def diffusers_model():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=16, num_layers=2, cross_attention_dim=48, caption_channels=16,
        sample_size=64, interpolation_scale=1, use_additional_conditions=False)


@pytest.mark.parametrize("arguments", [{}, {"max_shard_size": "100KB"}, {"safe_serialization": False},
                                       {"variant": "fp16"}])
def test_diffusers_folder(diffusers_model, arguments, tmp_path):
    folder = tmp_path / "PixArt-Sigma-XL-2-512-MS" / "transformer"
    diffusers_model.save_pretrained(folder, **arguments)
    (folder.parent / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    files = [file for file in folder.iterdir() if file.name != "config.json"]
    assert len(files) > 2 or "max_shard_size" not in arguments
    for path in [folder, folder.parent, *(file for file in files if "max_shard_size" not in arguments)]:
        checkpoint = read_checkpoint(path)
        assert equal(contiguous(to_diffusers(checkpoint.state_dict)), diffusers_model.state_dict())
        assert checkpoint.config == replace(SIGMA, hidden=48, heads=3, base_size=32, position_scale=1.0)
        assert not checkpoint.guessed


def test_a_description_names_its_folder(diffusers_model, tmp_path):
    """Also where the weights have a name of their own, of which config.json beside them need not speak."""
    folder = tmp_path / "pipeline" / "transformer"
    diffusers_model.save_pretrained(folder)
    (folder.parent / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "mine.safetensors")
    for path in (folder, folder / "config.json", folder.parent / "model_index.json"):
        found = read_checkpoint(path)
        assert found.config == replace(SIGMA, hidden=48, heads=3, base_size=32, position_scale=1.0), path
        assert not found.guessed


@pytest.mark.parametrize("tokens, space", [(120, "sd"), (300, "sdxl"), (512, None)])
def test_the_tokenizer_of_a_pipeline_tells_its_family(diffusers_model, tokens, space, tmp_path):
    diffusers_model.save_pretrained(tmp_path / "pipeline" / "transformer")
    (tmp_path / "pipeline" / "tokenizer").mkdir()
    (tmp_path / "pipeline" / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": tokens}))
    found = read_checkpoint(tmp_path / "pipeline")
    assert found.guessed == (space is None)
    assert space is None or (found.config.latent_space, found.config.caption_tokens) == (space, tokens)


def test_index_of_shards_is_a_path_too(diffusers_model, tmp_path):
    diffusers_model.save_pretrained(tmp_path, max_shard_size="100KB")
    index = next(tmp_path.glob("*.index.json"))
    assert equal(read_checkpoint(index, "alpha-512").state_dict, read_checkpoint(tmp_path, "alpha-512").state_dict)


@pytest.mark.parametrize("config", [
    TINY, SIGMA, replace(TINY, hidden=48, heads=3, base_size=8, position_scale=0.7),
    replace(TINY, kv_compression=KVCompression("uniform", 2, (0,)), qk_norm=True),
    replace(TINY, kv_compression=KVCompression("conv", 3, (1,)))])
def test_saved_file_comes_back_with_its_configuration(config, tmp_path):
    weights = plain(reference(config))
    path = save_checkpoint(tmp_path / "new" / "model.safetensors", weights, config, metadata={"recipe": "x"})
    checkpoint = read_checkpoint(path)
    assert equal(checkpoint.state_dict, weights) and checkpoint.config == config and not checkpoint.guessed
    with safe_open(path, "pt") as file:
        assert file.metadata()["recipe"] == "x" and json.loads(file.metadata()["pixart_config"])["depth"] == 2
    assert list(path.parent.iterdir()) == [path]


def test_a_chosen_variant_wins_over_the_header_unless_tensors_are_missing(tmp_path, caplog):
    save_checkpoint(tmp_path / "model.safetensors", reference(), TINY)
    assert read_checkpoint(tmp_path / "model.safetensors", "alpha-1024").config == TINY
    with pytest.raises(CheckpointError, match="variant sigma-512.*has size conditioning"):
        read_checkpoint(tmp_path / "model.safetensors", "sigma-512")
    save_checkpoint(tmp_path / "sigma.safetensors", reference(SIGMA), SIGMA)
    config = read_checkpoint(tmp_path / "sigma.safetensors", "sigma-2k").config
    assert config == replace(SIGMA, base_size=128, position_scale=4.0) and "its header is of a 1024 px" in caplog.text
    config = read_checkpoint(tmp_path / "sigma.safetensors", "alpha-512").config
    assert config == replace(SIGMA, base_size=32, position_scale=1.0, latent_space="sd")
    assert "its header says sdxl latents" in caplog.text


def test_header_against_the_weights_is_refused(tmp_path):
    header = {"pixart_config": json.dumps({"depth": 3, "hidden": 72, "heads": 1, "caption_width": 16})}
    save_file(plain(reference()), tmp_path / "model.safetensors", header)
    with pytest.raises(CheckpointError, match="depth is 2 by its weights, but 3 by the configuration in its header"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_model_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model = pixart.PixArtTransformer(TINY)
    again = pixart.load(save_checkpoint(tmp_path / "model.safetensors", model))
    assert again.config == TINY and again.dtype == torch.float32 and not again.training
    assert equal(dict(again.state_dict()), dict(model.state_dict()))
    inputs = torch.randn(1, 4, 6, 8), torch.tensor([500.0]), torch.randn(1, 5, 16)
    with torch.no_grad():
        assert torch.equal(model.eval()(*inputs), again(*inputs))


def test_diffusers_names_are_saved_in_reference_names(tmp_path):
    weights = reference()
    path = save_checkpoint(tmp_path / "model.safetensors", to_diffusers(weights, null_caption=True), TINY)
    assert equal(read_checkpoint(path).state_dict, plain(weights))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_when_saving_and_loading(dtype, tmp_path):
    small = save_checkpoint(tmp_path / "small.safetensors", reference(), TINY, dtype=dtype)
    large = save_checkpoint(tmp_path / "large.safetensors", reference(), TINY)
    model, converted = pixart.load(small), pixart.load(large, dtype=dtype)
    assert model.dtype == converted.dtype == dtype
    assert torch.equal(model.blocks[0].attn.qkv.weight, converted.blocks[0].attn.qkv.weight)
    assert converted.blocks[0].attn.qkv.weight.dtype == dtype
    assert converted.blocks[0].scale_shift_table.weight.dtype == torch.float32


def in_eight_bits(weights: dict[str, Tensor], *starts: str) -> dict[str, Tensor]:
    """bf16 weights with the matrices of these names in fp8."""
    return {name: tensor.to(torch.float8_e4m3fn if name.startswith(starts) and tensor.ndim == 2 and
                            "table" not in name else torch.bfloat16) for name, tensor in weights.items()}


@pytest.mark.parametrize("starts", ["blocks.1.", "y_embedder.y_proj", "blocks."])
def test_some_layers_in_8_bits_make_the_model_compute_in_bf16(tmp_path, starts):
    """Whichever they are: files often keep the first or last blocks in 16 bits."""
    save_file(in_eight_bits(reference(), starts), tmp_path / "model.safetensors")
    model = pixart.load(tmp_path / "model.safetensors")
    tables = {name for name in model.state_dict() if "scale_shift_table" in name}
    assert {tensor.dtype for name, tensor in model.state_dict().items() if name not in tables} == {torch.bfloat16}
    x, text = torch.zeros(1, 4, 4, 4, dtype=torch.bfloat16), torch.zeros(1, 2, TINY.caption_width)
    assert model(x, torch.zeros(1), text).dtype == torch.bfloat16


def test_a_part_in_8_bits_does_not_round_the_others(tmp_path):
    weights = in_eight_bits(contiguous(to_diffusers(reference())), "transformer_blocks.0.attn1.to_q")
    save_file(weights, tmp_path / "model.safetensors")
    _, key, value = read_checkpoint(tmp_path / "model.safetensors").state_dict["blocks.0.attn.qkv.weight"].chunk(3)
    assert torch.equal(key, weights["transformer_blocks.0.attn1.to_k.weight"])
    assert torch.equal(value, weights["transformer_blocks.0.attn1.to_v.weight"])


def test_weights_without_configuration_or_of_another_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="pass config"):
        save_checkpoint(tmp_path / "model.safetensors", reference())
    with pytest.raises(CheckpointError, match="3 blocks"):
        save_checkpoint(tmp_path / "model.safetensors", reference(), replace(TINY, depth=3))
    assert not list(tmp_path.iterdir())


def test_failed_save_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "model.safetensors", reference(), TINY)
    before = path.read_bytes()
    weights = reference(seed=5)
    weights["blocks.0.attn.qkv.weight"] = weights["blocks.0.attn.qkv.weight"].to("meta")     # has no bytes to write
    with pytest.raises(NotImplementedError):
        save_checkpoint(path, weights, TINY)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_one_log_line_says_what_was_found(tmp_path, caplog):
    torch.save(reference(), tmp_path / "model.pth")
    with caplog.at_level(logging.INFO):
        pixart.load(tmp_path / "model.pth", TINY)
    assert [record.getMessage() for record in caplog.records] == [
        "model.pth: PixArt-alpha 1024, 2 blocks, width 72, 120 tokens, SD latents (0.18215), fp32, reference layout"]


def test_guess_is_visible_in_log_and_description(tmp_path, caplog):
    save_file(contiguous(to_diffusers(reference(SIGMA))), tmp_path / "mine.safetensors")
    checkpoint = read_checkpoint(tmp_path / "mine.safetensors")
    assert checkpoint.guessed and "guessed; choose variant" in checkpoint.description
    assert any(record.levelno == logging.WARNING and "sigma-1024" in record.getMessage() for record in caplog.records)


def test_loading_changes_neither_file_nor_its_copy_in_memory(tmp_path):
    path = save_checkpoint(tmp_path / "model.safetensors", reference(), TINY)
    before = path.read_bytes()
    model = pixart.load(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert path.read_bytes() == before


def test_import_is_light():
    code = ("import sys, pixart; assert 'torch' not in sys.modules and callable(pixart.load); "
            "print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


BIG = PixArtConfig(depth=3, hidden=1152, heads=16, caption_width=1024, micro_conditioning=False)
MEASURE = """
    import sys, torch
    import pixart, pixart.checkpoint, pixart.model.transformer
    torch.set_num_threads(1)
    def status(key):
        return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024
    pixart.load(sys.argv[3])                          # what torch itself needs for its first load is not meant
    open("/proc/self/clear_refs", "w").write("5")     # reset the high-water mark
    before = status("VmRSS")
    model = pixart.load(sys.argv[1], variant="alpha-512", dtype=getattr(torch, sys.argv[2], None))
    sum(float(parameter.flatten()[::512].sum()) for parameter in model.parameters())   # touches every page
    print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def big_files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("big")
    weights = {name: torch.full(shape, 0.5) for name, shape in expected_shapes(BIG).items()}
    torch.save({"state_dict": weights}, folder / "reference.pth")
    save_file(contiguous(to_diffusers(weights)), folder / "diffusers.safetensors")
    return {file.name: file for file in folder.iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name, dtype", [("reference.pth", "as stored"), ("reference.pth", "bfloat16"),
                                         ("diffusers.safetensors", "as stored"), ("diffusers.safetensors", "bfloat16")])
def test_loading_needs_no_more_memory_than_the_file_plus_a_fifth(name, dtype, big_files, tmp_path):
    tiny = save_checkpoint(tmp_path / "tiny.safetensors", reference(), TINY)
    size = big_files[name].stat().st_size
    assert size > 290e6
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(big_files[name]), dtype, str(tiny)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout)
    print(f"{name} {dtype}: peak {peak / size:.2f} of the file")
    assert peak < 1.2 * size
    assert peak > 0.3 * size      # the measurement sees the weights at all
