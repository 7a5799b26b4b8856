"""The MODEL: parity with the host's own network, size conditioning, data types, LoRA, offload, saving."""
import copy

import torch
from host import tiny
from support import MODELS, condition, latent, load, network, node, off, off_when_offloaded, pack, refusal, sample, text
from torch import Tensor


def native_network(config, state: dict):
    """The host's own PixArt network of any width, where it can be used: no table in the file, trained size."""
    from comfy import ops
    from comfy.ldm.pixart.pixartms import PixArtMS
    native = PixArtMS(input_size=2 * config.base_size, patch_size=config.patch, in_channels=4,
                      hidden_size=config.hidden, depth=config.depth, num_heads=config.heads,
                      caption_channels=config.caption_width, model_max_length=config.caption_tokens,
                      micro_condition=config.micro_conditioning, pe_interpolation=config.position_scale,
                      dtype=torch.float32, device="cpu", operations=ops.disable_weight_init)
    native.load_state_dict({k.replace("_table.weight", "_table"): v for k, v in state.items()}, strict=False)
    return native.eval()


def test_a_variant_chosen_against_the_file_stands_first_in_the_report():
    _, report = node("PixArtLoader")().load("alpha-512.safetensors", "sigma-512", "fp32")
    assert report.startswith("chosen although its y_embedding has 120 tokens, not 300; "), report
    assert "PixArt-Sigma 512" in report


def test_equals_the_hosts_own_network_where_that_is_right():
    from comfy import ops
    config = tiny.tiny("alpha-512", micro_conditioning=True)
    ours = pack("nodes.host.transformer").HostTransformer(config, ops.disable_weight_init, torch.float32, "cpu")
    ours.load_state_dict(tiny.random_model(config).state_dict(), strict=True)
    native = native_network(config, ours.state_dict())
    x, t, context = torch.randn(2, 4, 64, 64), torch.tensor([999.0, 37.0]), text(5).expand(2, -1, -1)
    size, aspect = torch.tensor([[512.0, 500.0]] * 2), torch.full((2, 1), 1.024)
    want = native(x, t, context, c_size=size, c_ar=aspect, transformer_options={})
    got = ours(x, t, context, c_size=size.int(), c_ar=aspect.view(torch.int32))
    assert off(got, want) < 1e-5


def spy(model) -> list[dict]:
    """Records what reaches the transformer."""
    from comfy.patcher_extension import WrappersMP
    calls = []

    def wrapper(executor, *args, **kwargs):
        calls.append({"x": args[0], "t": args[1], "context": args[2], **kwargs})
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "spy", wrapper)
    return calls


def test_size_and_ratio_reach_a_bf16_model_unrounded():
    model = load("alpha-1024", "bf16").clone()
    calls = spy(model)
    positive = condition(text(3), width=1344, height=767)
    sample(model, positive, positive, latent(64, 64), steps=1)
    (call,) = calls
    assert call["c_size"].tolist() == [[767, 1344]]
    assert call["c_ar"].view(torch.float32).item() == torch.tensor(767 / 1344, dtype=torch.float32).item()
    assert call["t"].dtype == torch.float32 and call["x"].dtype == torch.bfloat16


def test_without_a_size_that_of_the_latent_is_taken():
    model = load("alpha-1024").clone()
    calls = spy(model)
    sample(model, condition(text(3)), condition(text(3)), latent(64, 128), steps=1)
    assert calls[0]["c_size"].tolist() == [[64, 128]]
    assert calls[0]["c_ar"].view(torch.float32).item() == 0.5


def test_a_size_of_zero_is_that_of_the_latent():
    """The stock encode node for PixArt-alpha takes it."""
    model = load("alpha-1024").clone()
    calls = spy(model)
    for given in ({"width": 0, "height": 0}, {"width": 96, "height": 0}, {"width": 0, "height": 96}):
        sample(model, condition(text(3), **given), condition(text(3)), latent(64, 128), steps=1)
    assert [call["c_size"].tolist() for call in calls] == [[[64, 128]], [[64, 96]], [[96, 128]]]


def test_a_size_far_from_the_latents_changes_the_image():
    model = load("alpha-1024")
    small, large = condition(text(3)), condition(text(3), width=2048, height=512)
    assert off(sample(model, large, large, latent(64, 64)), sample(model, small, small, latent(64, 64))) > 1e-3


def test_prompts_of_one_length_get_no_mask_and_others_get_one():
    model = load("alpha-1024").clone()
    calls = spy(model)
    masks = [torch.tensor([[1, 1, 1, 0]]), torch.tensor([[0, 1, 1, 1]])]      # three real tokens, wherever they are
    for negative in (condition(text(3)), condition(text(4), attention_mask=masks[0]), condition(text(5))):
        sample(model, condition(text(4), attention_mask=masks[1]), negative, latent(64, 64), steps=1, cfg=2.0)
    assert [call["text_mask"].shape for call in calls] == [(2, 0), (2, 0), (2, 5)]
    assert calls[2]["text_mask"].dtype == torch.int32 and sorted(calls[2]["text_mask"].sum(1).tolist()) == [3, 5]
    for real in (text(4)[0, :3], text(4)[0, 1:]):       # what a mask excludes is not there, wherever it was
        assert any(torch.equal(row, real) for row in calls[1]["context"])
    mask_of = pack("nodes.host.conditioning").mask_of
    assert mask_of(calls[0]["text_mask"]) is None and mask_of(calls[2]["text_mask"]).dtype == torch.bool
    both = torch.cat([text(4, 1), text(4, 2)])          # two prompts of one conditioning, one of them shorter
    padded = condition(both, attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
    sample(model, padded, padded, latent(64, 64, images=2), steps=1)
    assert calls[3]["text_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_a_padded_prompt_gives_what_it_gives_alone():
    transformer = network(load("alpha-1024"))
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 20.0]), text(6).repeat(2, 1, 1)
    mask = torch.tensor([[1] * 6, [1] * 2 + [0] * 4], dtype=torch.int32)
    together = transformer(x, t, context, text_mask=mask)
    for row, tokens in enumerate((6, 2)):
        alone = transformer(x[row:row + 1], t[row:row + 1], context[:1, :tokens], text_mask=mask[:1, :0])
        assert off(together[row:row + 1], alone) < 1e-5


def test_conditions_are_on_the_device_before_the_first_step():
    """Moved there once, not in every pass."""
    made = load("alpha-1024").model.extra_conds(cross_attn=text(4), device=torch.device("meta"), width=64, height=96,
                                                attention_mask=torch.tensor([[1, 1, 1, 0]]))
    ours = ("c_crossattn", "text_mask", "c_size", "c_ar")
    assert {name: made[name].cond.device.type for name in ours} == dict.fromkeys(ours, "meta")


def test_a_pack_that_runs_tiles_as_a_batch_gets_what_tiles_give_alone():
    """Tiled Diffusion: it repeats whatever is a tensor for its tiles, and cuts the answer."""
    import comfy.utils

    def tiles_of(x: torch.Tensor) -> list[torch.Tensor]:
        return [x[..., left:left + 8] for left in (0, 4, 8)]

    def together(apply, arguments: dict) -> torch.Tensor:
        x, t, c = arguments["input"], arguments["timestep"], arguments["c"]
        rows = 3 * x.shape[0]
        repeated = {name: comfy.utils.repeat_to_batch_size(value, rows) if torch.is_tensor(value) else value
                    for name, value in c.items()}
        return joined(apply(torch.cat(tiles_of(x)), t.repeat(3), **repeated).chunk(3), x)

    def one_by_one(apply, arguments: dict) -> torch.Tensor:
        x, t, c = arguments["input"], arguments["timestep"], arguments["c"]
        return joined([apply(tile, t, **c) for tile in tiles_of(x)], x)

    def joined(tiles, x: torch.Tensor) -> torch.Tensor:
        sums, counts = torch.zeros_like(x), torch.zeros_like(x)
        for tile, left in zip(tiles, (0, 4, 8)):
            sums[..., left:left + 8] += tile
            counts[..., left:left + 8] += 1
        return sums / counts

    results = []
    for wrapper in (together, one_by_one):
        model = load("alpha-1024").clone()
        model.set_model_unet_function_wrapper(wrapper)
        results.append(sample(model, condition(text(7)), condition(text(2)), latent(64, 128, images=2), cfg=3.0))
    assert off(*results) < 1e-5


def test_what_the_hosts_own_network_says_about_itself_ours_says_too():
    """Nodes such as RenormCFG look there."""
    from comfy import ops
    config = tiny.tiny("alpha-512", micro_conditioning=True)
    ours = pack("nodes.host.transformer").HostTransformer(config, ops.disable_weight_init, torch.float32, "cpu")
    native = native_network(config, ours.state_dict())
    said = {name: value for name, value in vars(native).items() if not name.startswith("_") and name != "training"}
    assert {"in_channels", "out_channels", "patch_size", "hidden_size", "depth", "num_heads", "dtype"} <= set(said)
    assert {name: getattr(ours, name) for name in said} == said


def test_stock_renorm_cfg_works():
    from comfy_extras.nodes_lumina2 import RenormCFG
    made = getattr(RenormCFG, "execute", None) or RenormCFG().patch
    result = made(load("alpha-1024"), 100.0, 1.0)
    patched = result[0] if isinstance(result, tuple) else result.result[0]
    got = sample(patched, condition(text(5)), condition(text(3)), latent(64, 64), cfg=4.0)
    assert off(got, sample(load("alpha-1024"), condition(text(5)), condition(text(3)), latent(64, 64), cfg=4.0)) > 1e-4


def test_blocks_compiled_one_by_one_are_compiled_once():
    """The modulation tables are of one class, and no layer of the host ends a graph."""
    from comfy import ops
    from torch._dynamo.testing import CompileCounter
    for layers in (ops.disable_weight_init, ops.manual_cast):
        torch._dynamo.reset()
        config = tiny.tiny("alpha-512", depth=10)
        network = pack("nodes.host.transformer").HostTransformer(config, layers, torch.float32, "cpu")
        network.load_state_dict(tiny.random_model(config).state_dict(), strict=True)
        given = (torch.randn(1, 4, 8, 8), torch.tensor([500.0]), text(5))
        want, counter = network(*given), CompileCounter()
        for block in network.blocks:
            block.compile(backend=counter, fullgraph=True)
        assert torch.equal(network(*given), want)
        assert counter.frame_count == 1, layers
    torch._dynamo.reset()


def test_two_prompts_in_one_conditioning_are_two_images():
    model = load("sigma-1024")
    a, b = text(4, 1), text(4, 2)
    both = sample(model, condition(torch.cat([a, b])), condition(a), latent(64, 64, images=2))
    noise = torch.zeros(2, 4, 8, 8)
    import comfy.sample
    second = comfy.sample.prepare_noise(noise, 1)[1:]
    alone = comfy.sample.sample(model, second, 2, 1.0, "euler", "normal", condition(b), condition(a),
                                noise[:1], disable_pbar=True, seed=1)
    assert off(both[1:], alone) < 1e-5


def test_text_of_another_width_is_refused_before_the_first_step():
    model, steps = load("alpha-1024"), []
    wrong = condition(text(3, width=77))
    message = refusal(sample, model, wrong, wrong, latent(64, 64), callback=lambda *_: steps.append(1))
    assert "77" in message and str(tiny.WIDTH) in message and "text encoder" in message
    assert steps == []


def test_a_mask_of_another_length_is_refused():
    wrong = condition(text(6), attention_mask=torch.ones(1, 4))
    assert "mask" in refusal(sample, load("alpha-1024"), wrong, wrong, latent(64, 64))


def test_an_all_zero_mask_is_refused():
    wrong = condition(text(6), attention_mask=torch.zeros(1, 6))
    assert "excludes every text token" in refusal(sample, load("alpha-1024"), wrong, wrong, latent(64, 64))


def test_control_of_another_family_is_refused():
    transformer = network(load("alpha-512"))
    foreign = {"input": [torch.zeros(1, 320, 8, 8)], "middle": [], "output": []}
    assert "ControlNet" in refusal(transformer, torch.zeros(1, 4, 8, 8), torch.zeros(1), text(3), control=foreign)


def relative_rms(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.float() - want).pow(2).mean() / want.pow(2).mean()).sqrt().item()


def test_fp8_weights_stay_fp8_and_compute_in_another_type():
    exact = network(load("alpha-1024"))
    x, t, context = torch.randn(1, 4, 32, 32), torch.tensor([500.0]), text(5)
    want = exact(x, t, context)
    for name, dtype in (("fp8_e4m3fn", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)):
        model = load("alpha-1024", name)
        transformer = network(model)
        assert transformer.blocks[0].attn.qkv.weight.dtype == dtype
        assert transformer.blocks[0].scale_shift_table.weight.dtype == torch.float32
        assert transformer.y_embedder.y_embedding.dtype == torch.float32
        compute = model.model.manual_cast_dtype
        assert compute in (torch.float32, torch.bfloat16)
        assert relative_rms(transformer(x.to(compute), t, context.to(compute)), want) < 0.3
        finite = sample(model, condition(context), condition(context), latent(64, 64))
        assert torch.isfinite(finite).all()


def test_bf16_is_within_two_percent_of_float32():
    x, t, context = torch.randn(1, 4, 64, 64), torch.tensor([500.0]), text(5)
    want = network(load("alpha-1024"))(x, t, context)
    got = network(load("alpha-1024", "bf16"))(x.bfloat16(), t, context.bfloat16())
    assert got.dtype == torch.bfloat16 and relative_rms(got, want) < 0.02


def test_fp16_weights_sample_on_a_cpu():
    model = load("alpha-1024", "fp16")
    result = sample(model, condition(text(3)), condition(text(3)), latent(64, 64))
    assert network(model).blocks[0].attn.qkv.weight.dtype == torch.float16 and torch.isfinite(result).all()


def test_auto_takes_what_the_trial_found_faster():
    module = pack("nodes.host.model")
    usual = module.faster_dtype
    try:
        for dtype in (torch.float32, torch.bfloat16):
            module.faster_dtype = lambda width, dtype=dtype: dtype
            model = load("alpha-1024", "auto")
            assert network(model).blocks[0].attn.qkv.weight.dtype == dtype
            assert model.model.manual_cast_dtype is None
    finally:
        module.faster_dtype = usual


def test_start_options_of_the_host_win_over_the_trial():
    from comfy.cli_args import args
    module = pack("nodes.host.model")
    usual, args.fp32_unet, module.faster_dtype = module.faster_dtype, True, lambda width: torch.bfloat16
    try:
        assert network(load("alpha-1024", "auto")).blocks[0].attn.qkv.weight.dtype == torch.float32
    finally:
        args.fp32_unet, module.faster_dtype = False, usual


def test_the_attention_that_a_start_option_names_is_used_on_a_cpu_too():
    """Without one it is torch's, whatever the host would take."""
    from comfy.cli_args import args
    from comfy.ldm.modules import attention
    calls, usual, given = [], attention.optimized_attention, (torch.randn(1, 4, 16, 16), torch.tensor([500.0]), text(5))

    def counted(*inputs: object, **named: object) -> Tensor:
        calls.append(inputs)
        return attention.attention_sub_quad(*inputs, **named)

    model, attention.optimized_attention = network(load("alpha-1024")), counted
    want = model(*given)
    assert not calls
    args.use_quad_cross_attention = True
    try:
        assert off(model(*given), want) < 1e-5 and len(calls) == 2 * len(model.blocks)
    finally:
        args.use_quad_cross_attention, attention.optimized_attention = False, usual


def test_double_precision_as_a_start_option_computes_in_it():
    from comfy.cli_args import args
    given = (torch.randn(1, 4, 16, 16), torch.tensor([500.0]), text(5))
    want, args.fp64_unet = network(load("alpha-1024"))(*given), True
    try:
        model = load("alpha-1024", "auto")
        got = network(model)(given[0].double(), given[1], given[2].double())
        assert model.model.get_dtype() == torch.float64 and model.model.manual_cast_dtype is None
        assert got.dtype == torch.float64 and 0 < off(got, want) < 1e-5
    finally:
        args.fp64_unet = False


def test_diffusers_lora_changes_just_its_part_of_the_fused_weights():
    import comfy.utils
    model, hidden = load("alpha-1024"), tiny.SHAPE["hidden"]
    lora = comfy.utils.load_torch_file(str(MODELS / "loras" / "tiny-lora.safetensors"))
    patches = comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_unet(model.model, {}))
    before = copy.deepcopy(network(model).state_dict())
    patched = model.clone()
    assert len(patched.add_patches(patches, 1.0)) == 3
    after = network(patched).state_dict()
    prefix = "transformer.transformer_blocks.0.attn1.to_q.lora_"
    delta = lora[f"{prefix}B.weight"] @ lora[f"{prefix}A.weight"]
    change = after["blocks.0.attn.qkv.weight"] - before["blocks.0.attn.qkv.weight"]
    assert off(change[:hidden], delta) < 1e-4 and change[hidden:].abs().max() == 0
    value = after["blocks.1.cross_attn.kv_linear.weight"] - before["blocks.1.cross_attn.kv_linear.weight"]
    assert value[:hidden].abs().max() == 0 and value[hidden:].abs().max() > 0
    network(model)


def test_every_weight_can_be_patched():
    model = load("alpha-1024")
    weights = {key: value.clone() for key, value in network(model).named_parameters()}
    patched = model.clone()
    patches = {f"diffusion_model.{key}": ("diff", (torch.ones_like(value),)) for key, value in weights.items()}
    assert len(patched.add_patches(patches)) == len(weights)
    unchanged = [key for key, value in network(patched).named_parameters() if torch.equal(value, weights[key])]
    network(model)
    assert unchanged == []


def test_layer_by_layer_offload_with_lora_gives_the_same():
    model = load("alpha-1024")
    patched = model.clone()
    delta = torch.randn(3 * tiny.SHAPE["hidden"], tiny.SHAPE["hidden"])
    patched.add_patches({"diffusion_model.blocks.0.attn.qkv.weight": ("diff", (delta,)),
                         "diffusion_model.blocks.0.scale_shift_table.weight": ("diff", (torch.ones(6, 48),))})
    assert off_when_offloaded(patched) < 1e-5


def test_saved_under_the_names_of_published_files():
    model = load("alpha-1024")
    saved = model.model.model_config.process_unet_state_dict_for_saving(network(model).state_dict())
    assert "model.diffusion_model.blocks.0.scale_shift_table" in saved
    assert not any(key.endswith("scale_shift_table.weight") for key in saved)


def test_hosts_that_reload_models_can_reload_ours():
    model = load("alpha-1024")
    if hasattr(model, "cached_patcher_init"):
        function, arguments = model.cached_patcher_init[:2]
        again = function(*arguments, disable_dynamic=True)
        assert again.model is not model.model


def test_the_loader_says_what_it_found():
    from support import node
    loader = node("PixArtLoader")
    assert "alpha-512.safetensors" in loader.INPUT_TYPES()["required"]["file"][0]
    _, report = loader().load("alpha-512.safetensors", "auto", "fp32")
    assert "PixArt-alpha 512" in report and "2 blocks" in report


def test_a_missing_file_is_named_with_its_folders():
    from support import node
    message = refusal(node("PixArtLoader")().load, "nowhere.safetensors", "auto", "fp32")
    assert "nowhere.safetensors" in message and "diffusion_models" in message


def test_names_cannot_leave_the_model_folders():
    module = pack("nodes.host.folders")
    for name in ("../notes.json", "..\\notes.json", "/etc/passwd", "", ".", "no file found"):
        message = refusal(module.model_path, name)
        assert "is not there" in message or "no file to choose from" in message


def test_a_damaged_file_is_named():
    from support import node
    message = refusal(node("PixArtLoader")().load, "truncated.safetensors", "auto", "fp32")
    assert "truncated.safetensors" in message


def test_a_file_of_another_family_is_named():
    from support import node
    assert "Flux" in refusal(node("PixArtLoader")().load, "flux.safetensors", "auto", "fp32")


def test_a_wrong_variant_is_refused():
    assert "alpha-1024" in refusal(load, "alpha-512", variant="alpha-1024")
