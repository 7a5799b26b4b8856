"""Quantised files in the host: ours in its stock loader and in ours, its own in ours, LoRAs beside them."""
import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import comfy.cli_args
import comfy.hooks
import comfy.model_management
import torch
from host import tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import MODELS, condition, latent, network, off, pack, refusal, sample, text
from torch import Tensor

from pixart.checkpoint import load, open_checkpoint, save_checkpoint
from pixart.checkpoint.lora import Lora, LoraPart, merge_lora
from pixart.checkpoint.lora.write import write_lora
from pixart.config import PixArtConfig
from pixart.quantize import TARGETS
from pixart.quantize.convert import MATRICES, convert

NOT_DYNAMIC = ("test_what_the_host_saves_opens_again",
               "test_a_lora_beside_quantised_weights_is_exact",
               "test_loras_beside_quantised_weights_add_up_and_come_off")

FOLDER = MODELS / "diffusion_models"
CONFIG = tiny.tiny("alpha-512", hidden=192, depth=2)
GIVEN = (torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([500.0]), text(5))
# Root mean square of the difference to the plain model; the host rounds the inputs of some formats as well.
LIMITS = {"float8_e4m3fn": 0.08, "float8_e5m2": 0.15, "int8_tensorwise": 0.04, "int8_convrot": 0.04, "mxfp8": 0.08,
          "nvfp4": 0.25, "convrot_w4a4": 0.6, "asym_w4a8_int8": 0.2}


def known(target: str) -> bool:
    return TARGETS[target].format.name in pack("nodes.host.quantized").host_formats()


def targets() -> list[str]:
    return [target for target in TARGETS if known(target)]


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Models loaded meanwhile compute in float32."""
    comfy.cli_args.args.force_fp32 = True
    try:
        yield
    finally:
        comfy.cli_args.args.force_fp32 = False


@functools.cache
def plain(config: PixArtConfig = CONFIG) -> Path:
    return save_checkpoint(FOLDER / f"quantised-source-{config.hidden}.safetensors", tiny.random_model(config))


@functools.cache
def quantized(target: str, config: PixArtConfig = CONFIG, by_kernel: bool = False) -> Path:
    """Where the format allows, the host is told not to round inputs, unless its kernels are to be used."""
    path = FOLDER / f"quantised-{target}-{config.hidden}-{by_kernel}.safetensors"
    convert(plain(config), target, path, weights_only=exact(target) and not by_kernel)
    return path


def exact(target: str) -> bool:
    return not TARGETS[target].format.rounds_inputs


def model_of(path: Path, weight_dtype: str = "auto"):
    with in_float32():
        return pack("nodes.host.model").load_model(str(path), "auto", weight_dtype)


def distance(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def test_every_format_of_the_host_runs_quantised():
    want = load(plain())(*GIVEN)
    for target in targets():
        model = model_of(quantized(target, by_kernel=True))
        assert len(list(pack("nodes.host.quantized").quantized_weights(model.model.diffusion_model))) == 14, target
        assert 0 < distance(network(model)(*GIVEN), want) < LIMITS[target], target
        assert torch.isfinite(sample(model, condition(text(3)), condition(text(2)), latent(64, 64), cfg=3.0)).all()


def test_with_weights_only_the_host_computes_what_we_dequantise():
    for target in filter(exact, targets()):
        want = load(quantized(target), dtype=torch.float32)(*GIVEN)
        assert off(network(model_of(quantized(target)))(*GIVEN), want) < 1e-4, target


def test_a_format_of_no_host_is_dequantised_as_it_loads():
    path = quantized("fp4", by_kernel=True)
    model = model_of(path)
    assert not pack("nodes.host.quantized").is_quantized(model)
    assert off(network(model)(*GIVEN), load(path, dtype=torch.float32)(*GIVEN)) < 2e-2      # kept in bfloat16


def test_a_quantised_model_takes_less_memory():
    if not targets():
        return
    whole = model_of(plain(), "fp32").model_size()
    assert model_of(quantized("int8_tensorwise")).model_size() < 0.6 * whole


def test_what_this_host_cannot_run_is_refused_by_name_and_opens_dequantised():
    for target in TARGETS:
        if known(target) or not TARGETS[target].format.runs_in_host:
            continue
        path = quantized(target)
        message = refusal(model_of, path)
        assert f"quantised as {TARGETS[target].format.name}" in message and "weight_dtype bf16" in message
        assert str(path) in message
    for target in ("float8_e4m3fn", "asym_w4a8_int8"):
        want = load(quantized(target), dtype=torch.float32)(*GIVEN)
        assert off(network(model_of(quantized(target), "fp32"))(*GIVEN), want) < 1e-5, target


def stock_config() -> PixArtConfig:
    """What the stock loader takes: it knows one width."""
    return tiny.tiny("alpha-512", hidden=1152, heads=16, depth=1, caption_width=4096)


def stock_model(path: Path):
    import nodes
    return nodes.UNETLoader().load_unet(path.name, "default")[0]


def test_the_stock_loader_opens_every_format():
    given = (torch.randn(1, 4, 64, 64), torch.tensor([500.0]), text(5, width=4096))
    for target in targets():
        path = quantized(target, stock_config())
        native = network(stock_model(path))
        if target in ("float8_e4m3fn", "int8_convrot"):         # it takes no smaller latent than this one
            assert torch.isfinite(native(*given, transformer_options={})).all()
        ours = {layer: each.dequantized() for layer, each in open_checkpoint(path).quantized().items()}
        assert len(ours) == 7
        for layer, want in ours.items():
            got = native.get_submodule(layer).weight.dequantize().float()
            torch.testing.assert_close(got, want, rtol=0.01, atol=1e-4, msg=f"{target} {layer}")
        path.unlink()
        quantized.cache_clear()


def test_files_quantised_by_the_hosts_own_code_open():
    if not targets():
        return
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
    settings = {"int8_tensorwise": {"per_channel": False}, "convrot_w4a4": {"convrot_groupsize": 64},
                "asym_w4a8_int8": {"convrot_groupsize": 64}, "float8_e4m3fn": {"scale": "recalculate"},
                "float8_e5m2": {"scale": "recalculate"}}
    for name, told in QUANT_ALGOS.items():
        tensors, want = load_file(plain()), load_file(plain())
        for key in [key for key in tensors if MATRICES.fullmatch(key)]:
            made = QuantizedTensor.from_float(tensors.pop(key), told["comfy_tensor_layout"], **settings.get(name, {}))
            tensors.update(made.state_dict(key))
            written = {"format": name, **{key: value for key, value in settings.get(name, {}).items() if "size" in key}}
            tensors[key.replace("weight", "comfy_quant")] = torch.tensor(list(str(written).replace("'", '"').encode()),
                                                                         dtype=torch.uint8)
            want[key] = made.dequantize()
        path = FOLDER / f"by-the-host-{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path, header())
        got = load(path, dtype=torch.float32).state_dict()
        for key in want:
            ours = got[key if "table" not in key else f"{key}.weight"]
            torch.testing.assert_close(ours, want[key], rtol=1e-5, atol=1e-6, msg=f"{name} {key}")
        assert network(model_of(path)) is not None


def header() -> dict[str, str]:
    with safe_open(plain(), "pt") as file:
        return file.metadata()


def test_what_the_host_saves_opens_again():
    import comfy.sd
    for target in targets():
        model, path = model_of(quantized(target)), FOLDER / f"saved-{target}.safetensors"
        comfy.sd.save_checkpoint(str(path), model)
        assert off(load(path, dtype=torch.float32)(*GIVEN), load(quantized(target), dtype=torch.float32)(*GIVEN)) < 1e-6


def test_merging_quantised_weights_into_a_model_is_refused_and_into_them_works():
    """The host said that a Linear has no weight_scale."""
    from comfy_extras.nodes_model_merging import ModelAdd, ModelMergeSimple, ModelSubtract
    other = save_checkpoint(FOLDER / "quantised-merged.safetensors", tiny.random_model(CONFIG, seed=9))
    want = network(ModelMergeSimple().merge(model_of(plain(), "fp32"), model_of(other, "fp32"), 0.25)[0])(*GIVEN)
    for target in targets():
        whole, small = model_of(other, "fp32"), model_of(quantized(target))
        for message in (refusal(ModelMergeSimple().merge, whole, small, 0.5), refusal(ModelAdd().merge, small, small),
                        refusal(ModelSubtract().merge, whole, small.clone(), 1.0)):
            assert "quantised: they can neither be merged" in message and "weight_dtype bf16" in message
        merged_into = ModelMergeSimple().merge(small, whole, 0.25)[0]
        assert 0 < distance(network(merged_into)(*GIVEN), want) < LIMITS[target], target
        beside = with_lora(small, 1)
        assert "would keep its strength in a merge" in refusal(ModelMergeSimple().merge, beside, whole, 0.25)


def test_hooks_that_would_change_quantised_weights_are_refused():
    hooks = comfy.hooks.create_hook_lora(load_file(MODELS / "loras" / lora_file(1)), 1.0, 0.0)
    positive = comfy.hooks.set_hooks_for_conditioning(condition(text(3)), hooks)
    for target in targets()[:1]:
        model = model_of(quantized(target))
        assert "nor be changed by hooks" in refusal(sample, model, positive, condition(text(2)), latent(64, 64))
        assert torch.isfinite(sample(model, condition(text(3)), condition(text(2)), latent(64, 64))).all()


def lora(seed: int, dora: bool = False) -> Lora:
    """A change of parts of fused weights, of a whole one, and of one that is not quantised."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"blocks.0.attn.qkv": (192, 192, 1, 3), "blocks.1.cross_attn.kv_linear": (192, 192, 0, 2),
              "blocks.1.mlp.fc1": (768, 192, 0, 1), "t_block.1": (1152, 192, 0, 1)}
    parts = []
    for module, (rows, columns, part, count) in shapes.items():
        magnitude = 1 + torch.rand(rows, generator=generator) if dora else None
        parts.append(LoraPart(module, part, count, 0.1 * torch.randn(4, columns, generator=generator),
                              0.1 * torch.randn(rows, 4, generator=generator), 0.5, magnitude))
    return Lora(tuple(parts))


@functools.cache
def lora_file(seed: int, dora: bool = False) -> str:
    path = MODELS / "loras" / f"quantised-{seed}-{dora}.safetensors"
    write_lora(path, lora(seed, dora).parts)
    return path.name


def with_lora(model, seed: int, strength: float = 1.0, dora: bool = False):
    return pack("nodes.lora").PixArtDeltaLoraLoader().load(model, lora_file(seed, dora), strength)[0]


def merged(path: Path, *loras: tuple[int, float, bool]) -> Tensor:
    model = load(path, dtype=torch.float32)
    for seed, strength, dora in loras:
        merge_lora(model, lora(seed, dora), strength)
    return model(*GIVEN)


def test_a_lora_beside_quantised_weights_is_exact():
    """Equal to merging it into the dequantised weights, which the host's patches of quantised weights are far from."""
    for target in filter(exact, targets()):
        path = quantized(target)
        model = model_of(path)
        bare = network(model)(*GIVEN).clone()
        want = merged(path, (1, 0.8, False))
        assert off(want, bare) > 1e-2
        patched = with_lora(model, 1, 0.8)          # the host takes off what hangs on a MODEL that nobody holds
        assert off(network(patched)(*GIVEN), want) < 1e-4, target
        assert torch.equal(network(model)(*GIVEN), bare), target


def test_a_lora_adds_its_product_to_what_the_layer_says():
    x = torch.randn(2, 7, 192)
    for target in targets():
        model = model_of(quantized(target))
        patched = with_lora(model, 1, 0.8)
        for part in lora(1).parts[:3]:
            bare, changed = (network(each).get_submodule(part.module)(x) for each in (model, patched))
            start, count = part.rows((bare.shape[-1], 192))
            want = torch.zeros_like(bare)
            want[..., start:start + count] = x @ (0.8 * part.delta()).T
            assert off(changed - bare, want) < 1e-4, (target, part.module)


def test_loras_beside_quantised_weights_add_up_and_come_off():
    if not targets():
        return
    path = quantized("float8_e4m3fn")
    model = model_of(path)
    bare = network(model)(*GIVEN).clone()
    one, dora = with_lora(model, 1), with_lora(model, 2, 0.5, dora=True)
    both = with_lora(one, 2, -0.3)
    for patched, loras in ((both, ((1, 1.0, False), (2, -0.3, False))), (one, ((1, 1.0, False),)),
                           (dora, ((2, 0.5, True),)), (both, ((1, 1.0, False), (2, -0.3, False)))):
        assert off(network(patched)(*GIVEN), merged(path, *loras)) < 1e-4
    assert torch.equal(network(model)(*GIVEN), bare)
    assert with_lora(model, 1, 0.0) is model
    comfy.model_management.unload_all_models()
    assert off(network(both)(*GIVEN), merged(path, (1, 1.0, False), (2, -0.3, False))) < 1e-4
    network(model)


def test_the_hosts_bypass_of_a_lora_around_ours_comes_off_whole():
    """The host takes them off in the order in which it hung them on, so ours lies beneath the other one then."""
    import comfy.sd
    import comfy.utils
    if not targets() or not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        return
    model = model_of(quantized("float8_e4m3fn"))
    bare = network(model)(*GIVEN).clone()
    ours = with_lora(model, 1)
    want = network(ours)(*GIVEN).clone()
    file = comfy.utils.load_torch_file(str(MODELS / "loras" / lora_file(2)))
    both = comfy.sd.load_bypass_lora_for_models(ours, None, file, 0.5, 0)[0]
    with_both = network(both)(*GIVEN).clone()
    assert off(with_both, want) > 1e-4
    for _ in range(2):
        for given, expected in ((model, bare), (both, with_both), (ours, want)):
            assert torch.equal(network(given)(*GIVEN), expected)
    network(model)


def test_a_file_that_would_lack_the_lora_is_not_saved():
    import comfy.sd
    if not targets():
        return
    model = model_of(quantized("float8_e4m3fn"))
    patched, path = with_lora(model, 1), FOLDER / "saved-without-lora.safetensors"
    assert "cannot hold the LoRA" in refusal(comfy.sd.save_checkpoint, str(path), patched)
    assert not path.exists()
    comfy.sd.save_checkpoint(str(path), model)
    path.unlink()


def test_training_on_quantised_weights_is_refused():
    if targets():
        message = refusal(pack("nodes.host.bare").bare_transformer, model_of(quantized("nvfp4")), torch.float32, 64)
        assert "cannot be trained" in message
