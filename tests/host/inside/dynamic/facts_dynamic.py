"""With the host's dynamic VRAM, where layers have no memory until they are filled."""
import comfy.model_management
import comfy.ops
import torch
from host import tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import MODELS, condition, latent, load, load_control, network, node, off, pack, sample, text

GIVEN = (torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), torch.tensor([500.0]), text(5))


def plain(name: str, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """The same file outside of the host."""
    return pack("pixart.checkpoint").load(MODELS / "diffusion_models" / f"{name}.safetensors", dtype=dtype)


def stored_as(dtype: torch.dtype) -> str:
    """A copy of a tiny file with all tensors, tables too, in a data type."""
    name = f"alpha-1024-in-{str(dtype).removeprefix('torch.')}"
    with safe_open(MODELS / "diffusion_models" / "alpha-1024.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key).to(dtype) for key in file.keys()}      # noqa: SIM118
        save_file(tensors, MODELS / "diffusion_models" / f"{name}.safetensors", file.metadata())
    return name


def test_the_rehearsal_has_layers_without_memory():
    """Or nothing here would show anything."""
    assert comfy.ops.disable_weight_init.Linear(4, 4).weight is None
    assert comfy.ops.disable_weight_init.Embedding(4, 4).weight.is_meta
    assert load("alpha-1024").is_dynamic()


def test_a_model_loads_and_samples():
    model = load("alpha-1024")
    assert not any(value.is_meta for value in model.model.state_dict().values())
    assert off(network(model)(*GIVEN), plain("alpha-1024")(*GIVEN)) < 1e-5
    result = sample(model, condition(text(3)), condition(text(2)), latent(64, 64), cfg=3.0)
    assert torch.isfinite(result).all() and result.abs().max() > 0


def test_every_data_type_computes_the_same_image():
    want = plain("alpha-1024")(*GIVEN)
    for name, limit in (("fp32", 1e-5), ("bf16", 0.05), ("fp16", 0.01), ("fp8_e4m3fn", 0.3)):
        model = load("alpha-1024", name)
        compute = model.model.manual_cast_dtype or model.model.get_dtype()
        x, t, context = GIVEN
        assert off(network(model)(x.to(compute), t, context.to(compute)), want) < limit, name


def test_weights_stay_views_of_the_file():
    """The host reads them when it needs them, so that a model takes no memory twice."""
    model = load("alpha-1024", "bf16")
    layer = model.model.diffusion_model.blocks[0].attn.qkv
    assert layer.weight.dtype == torch.float32 and layer.weight_comfy_model_dtype == torch.bfloat16


def test_small_tensors_are_exact_whatever_the_file_and_the_weights_are():
    for dtype in ("fp16", "fp8_e4m3fn"):
        transformer = load(stored_as(torch.float16), dtype).model.diffusion_model
        for owner in (*transformer.blocks, transformer.final_layer):
            assert owner.scale_shift_table.weight.dtype == torch.float32
            assert owner.scale_shift_table.weight_comfy_model_dtype == torch.float32
        assert transformer.y_embedder.y_embedding.dtype == torch.float32
        assert transformer.y_embedder.y_embedding_comfy_model_dtype == torch.float32


def test_missing_and_unknown_tensors_are_refused():
    model = load("alpha-1024")
    fill, state = pack("nodes.host.weights").fill, model.model.diffusion_model.state_dict()
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.bias", "x_embedder.proj.weight",
                 "blocks.0.scale_shift_table.weight"):
        for dynamic in (True, False):
            fresh = pack("nodes.host.transformer").HostTransformer(
                tiny.CONFIGS["alpha-1024"], comfy.ops.disable_weight_init, torch.float32, "cpu")
            short = {key: value for key, value in state.items() if key != name}
            assert name in refused(fill, fresh, short, dynamic)
            assert "blocks.0.other.weight" in refused(fill, fresh, {**state, "blocks.0.other.weight": state[name]},
                                                      dynamic)


def refused(function, *arguments) -> str:
    try:
        function(*arguments)
    except RuntimeError as error:
        return str(error)
    raise AssertionError("it was not refused")


def test_without_dynamic_loading_weights_are_of_the_chosen_type():
    """What the host's node for torch.compile asks for; its layers would keep the type of the file."""
    load_model = pack("nodes.host.model").load_model
    path = str(MODELS / "diffusion_models" / "alpha-1024.safetensors")
    for name, dtype in (("bf16", torch.bfloat16), ("fp8_e4m3fn", torch.float8_e4m3fn)):
        model = load_model(path, "auto", name, disable_dynamic=True)
        assert not model.is_dynamic()
        transformer = model.model.diffusion_model
        kept = {key: value.dtype for key, value in transformer.named_parameters()}
        assert {kind for key, kind in kept.items() if "table" not in key} == {dtype}
        assert {kind for key, kind in kept.items() if "table" in key} == {torch.float32}
        assert transformer.y_embedder.y_embedding.dtype == torch.float32


def test_the_host_can_make_a_model_that_is_not_dynamic():
    model = load("alpha-1024")
    again = model.clone(disable_dynamic=True)
    assert not again.is_dynamic() and again.model is not model.model
    assert off(network(again)(*GIVEN), network(model)(*GIVEN)) < 1e-6


def test_policies_ask_the_network_that_samples_not_the_one_they_were_made_for():
    """torch.compile and hooks sample on another, with LoRAs merged into it, which NAG and pooled values left out."""
    lora = {f"diffusion_model.blocks.{index}.cross_attn.proj.weight": ("diff", (torch.ones(48, 48),))
            for index in (0, 1)}
    model = load("alpha-1024").clone()
    assert len(model.add_patches(lora)) == 2
    positive, negative = condition(text(4)), condition(text(3, seed=1))
    nag, cache = node("PixArtNAG")(), pack("nodes.host.cache").with_cache
    choice = pack("pixart.accelerate.choice").CacheChoice("steps", 1.0)
    for make in (lambda given: nag.apply(given, negative, scale=5.0, tau=2.5, alpha=0.5, start=0.0, end=1.0)[0],
                 lambda given: cache(given, choice, pooled_blocks=1)):
        before, behind = make(model).clone(disable_dynamic=True), make(model.clone(disable_dynamic=True))
        images = [sample(each, positive, positive, latent(64, 64)) for each in (before, behind)]
        assert off(*images) < 1e-5


def test_every_weight_can_be_patched():
    model = load("alpha-1024")
    weights = {key: value.clone() for key, value in model.model.diffusion_model.named_parameters()}
    patched = model.clone()
    patches = {f"diffusion_model.{key}": ("diff", (torch.ones_like(value),)) for key, value in weights.items()}
    assert len(patched.add_patches(patches)) == len(weights)
    transformer = network(patched)
    unchanged = [key for key, value in transformer.named_parameters()
                 if torch.equal(value, weights[key]) and not waits(transformer, key)]
    assert unchanged == []
    saved = pack("nodes.host.bare").weights(patched)        # what the host has patched already is not patched again
    for key, value in weights.items():
        assert off(saved[key].to("cpu", torch.float32, copy=True), value + 1) < 1e-6, key
    network(model)


def waits(transformer: torch.nn.Module, key: str) -> bool:
    """Whether the host will patch this weight on its way to the GPU."""
    layer, leaf = key.rsplit(".", 1)
    return getattr(transformer.get_submodule(layer), f"{leaf}_lowvram_function", None) is not None


def test_a_control_net_loads_and_steers():
    control = load_control("control", "fp32")
    values = control.control_model.state_dict()
    assert not any(value.is_meta for value in values.values())
    want = load_file(MODELS / "controlnet" / "control.safetensors")
    for key, value in values.items():
        assert torch.equal(value, want[key.replace("_table.weight", "_table")]), key
    small = load_control("control", "fp8_e4m3fn").control_model
    block = small.controlnet[0]
    assert block.after_proj.weight.dtype == block.copied_block.attn.qkv.weight.dtype == torch.float8_e4m3fn
    assert block.copied_block.scale_shift_table.weight.dtype == torch.float32


def test_t5_loads_and_encodes():
    """It has no weights that the host knows: an address range of size 0, which CUDA refuses."""
    clip = pack("nodes.host.text").load_clip(MODELS / "text_encoders" / "tiny-t5", 16, "auto")
    assert not clip.patcher.is_dynamic()
    assert torch.isfinite(clip.encode_from_tokens_scheduled(clip.tokenize("a cat"))[0][0]).all()
    assert not clip.clone().patcher.is_dynamic()


def test_a_quantised_model_loads_samples_and_takes_a_lora():
    from pixart.checkpoint.lora import LoraPart
    from pixart.checkpoint.lora.write import write_lora
    from pixart.quantize.convert import convert
    source, path = (MODELS / "diffusion_models" / f"{name}.safetensors" for name in ("alpha-1024", "dynamic-quantised"))
    convert(source, "int8_tensorwise", path)
    model = pack("nodes.host.model").load_model(str(path))
    assert model.is_dynamic()
    want = pack("pixart.checkpoint").load(path, dtype=torch.float32)
    compute = model.model.manual_cast_dtype
    x, t, context = GIVEN
    given = (x.to(compute), t, context.to(compute))
    assert off(network(model)(*given), want(*GIVEN)) < 0.05
    part = LoraPart("blocks.0.attn.proj", 0, 1, torch.randn(4, 48), torch.randn(48, 4), 1.0)
    write_lora(MODELS / "loras" / "dynamic-quantised.safetensors", (part,))
    patched = pack("nodes.host.lora").apply_lora(model, MODELS / "loras" / "dynamic-quantised.safetensors", 1.0)[0]
    want.blocks[0].attn.proj.weight.data += part.delta()
    assert off(network(patched)(*given), want(*GIVEN)) < 0.05
    result = sample(model, condition(text(3)), condition(text(2)), latent(64, 64), cfg=3.0)
    assert torch.isfinite(result).all()
