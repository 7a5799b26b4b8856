"""What the host's own PixArt gets wrong and ours gets right; N1 to N14 are its known defects."""
import math

import torch
from host import tiny
from support import MODELS, condition, latent, load, network, off, pack, sample, text


def finite_at(model, height: int, width: int) -> None:
    result = sample(model, condition(text(4)), condition(text(2)), latent(height, width), steps=1)
    assert result.shape[-2:] == (height // 8, width // 8)
    assert torch.isfinite(result).all()


def test_n1_small_images_do_not_divide_by_zero():
    model = load("alpha-512")
    for height, width in ((256, 256), (128, 128), (64, 64), (16, 16)):
        finite_at(model, height, width)


def test_n1_extreme_shapes_sample():
    model = load("sigma-1024")
    for height, width in ((64, 4096), (4096, 64), (1080, 1920)):
        finite_at(model, height, width)


def test_n2_a_256_px_file_with_its_position_table_is_finite_at_larger_sizes():
    config = tiny.tiny("alpha-256", hidden=144, heads=2)
    positions = pack("pixart.model.positions").position_table(16, 16, 144, 16, 1.0, torch.device("cpu"), torch.float32)
    state = {key.replace("_table.weight", "_table"): value
             for key, value in tiny.random_model(config).state_dict().items()}
    path = MODELS / "PixArt-XL-2-256x256.pth"
    torch.save({"state_dict": {**state, "pos_embed": positions.reshape(1, 256, 144)}}, path)
    model = pack("nodes.host.model").load_model(str(path), "auto", "fp32")
    assert (model.model.model_config.pixart.base_size, model.model.model_config.pixart.position_scale) == (16, 1.0)
    finite_at(model, 512, 768)


def test_n3_alpha_without_size_conditioning_has_the_latent_scale_of_alpha():
    for name, scale, preview in (("alpha-256", 0.18215, "taesd_decoder"), ("alpha-512", 0.18215, "taesd_decoder"),
                                 ("alpha-1024", 0.18215, "taesd_decoder"), ("sigma-1024", 0.13025, "taesdxl_decoder")):
        form = load(name).get_model_object("latent_format")
        assert form.scale_factor == scale, name
        assert form.taesd_decoder_name == preview, name


def official_positions(height: int, width: int, hidden: int, base: int, scale: float) -> torch.Tensor:
    """The formula of the paper's code, element by element in double precision: columns first, then rows."""
    quarter = hidden // 4

    def waves(position: float) -> list[float]:
        angles = [position / 10000 ** (k / quarter) for k in range(quarter)]
        return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]

    rows = [waves(y * base / height / scale) for y in range(height)]
    columns = [waves(x * base / width / scale) for x in range(width)]
    return torch.tensor([[*columns[x], *rows[y]] for y in range(height) for x in range(width)], dtype=torch.float64)


def positions_of(transformer, height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """What the model adds to the tokens of a latent of zeros."""
    zeros = torch.zeros(1, 4, 2 * height, 2 * width, dtype=dtype)
    bias = transformer.x_embedder.proj.bias.to(dtype)
    return (transformer.embed_latent(zeros)[0] - bias)[0]


def test_n4_positions_equal_the_official_ones_away_from_the_trained_size():
    for name in ("alpha-512", "alpha-1024", "sigma-2k"):
        config = tiny.CONFIGS[name]
        transformer = network(load(name))
        for height, width in ((8, 8), (16, 40), (96, 20), (33, 64)):
            want = official_positions(height, width, config.hidden, config.base_size, config.position_scale)
            assert (positions_of(transformer, height, width, torch.float32) - want).abs().max() < 1e-5, name


def test_n5_positions_are_computed_in_float32_also_in_bf16():
    config = tiny.CONFIGS["alpha-1024"]
    got = positions_of(network(load("alpha-1024", "bf16")), 64, 64, torch.bfloat16)
    want = official_positions(64, 64, config.hidden, config.base_size, config.position_scale)
    assert (got.double() - want).abs().max() < 0.02      # two roundings to 8 bits; the native table is off by 0.18


def test_n6_sides_that_are_no_multiple_of_16_sample():
    finite_at(load("alpha-1024"), 520, 376)


def test_n6_an_odd_side_is_padded_by_its_border():
    transformer = network(load("alpha-512"))
    x = torch.randn(1, 4, 7, 9)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")
    t, context = torch.tensor([500.0]), text(3)
    assert torch.equal(transformer(x, t, context), transformer(padded, t, context)[:, :, :7, :9])


def test_n7_masked_padding_changes_nothing():
    model, real = load("alpha-1024"), text(5)
    padded = torch.cat([real, 100 * text(7, seed=9)], dim=1)
    mask = torch.tensor([[1] * 5 + [0] * 7])
    plain = sample(model, condition(real), condition(text(2)), latent(64, 64), cfg=3.0)
    masked = sample(model, condition(padded, attention_mask=mask), condition(text(2)), latent(64, 64), cfg=3.0)
    assert off(masked, plain) < 1e-6
    unmasked = sample(model, condition(padded), condition(text(2)), latent(64, 64), cfg=3.0)
    assert off(unmasked, plain) > 1e-3


def test_n7_a_mask_with_holes_keeps_the_real_tokens():
    model, real = load("sigma-1024"), text(4)
    spread = torch.zeros(1, 9, real.shape[2]) + 7
    spread[:, ::2][:, :4] = real
    mask = torch.tensor([[True, False] * 4 + [False]])
    want = sample(model, condition(real), condition(real), latent(64, 64))
    assert off(sample(model, condition(spread, attention_mask=mask), condition(real), latent(64, 64)), want) < 1e-6


def test_n8_control_residuals_are_added():
    transformer = network(load("alpha-512"))
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([300.0]), text(3)
    residual = torch.randn(1, 16, transformer.config.hidden)
    plain = transformer(x, t, context)
    controlled = transformer(x, t, context, control={"input": [], "middle": [], "output": [None, residual]})
    assert off(controlled, plain) > 1e-3
    core = super(type(transformer), transformer)
    assert off(controlled, core.forward(x, t, context, control=[None, residual])) < 1e-6
    assert torch.equal(transformer(x, t, context, control={"output": [None, None], "middle": []}), plain)


def counting(calls: list, result=None):
    def wrapper(executor, *args, **kwargs):
        calls.append(args)
        return executor(*args, **kwargs)
    return wrapper


def test_n9_diffusion_model_wrappers_run_once_a_step():
    from comfy.patcher_extension import WrappersMP
    model, calls = load("alpha-1024").clone(), []
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", counting(calls))
    sample(model, condition(text(3)), condition(text(3)), latent(64, 64), steps=3)
    assert len(calls) == 3
    assert isinstance(calls[0][-1], dict) and "sigmas" in calls[0][-1]       # where the host's caches look


def test_n9_block_replacement_that_calls_the_original_is_identical():
    model, seen = load("alpha-1024"), []
    positive = condition(text(3))
    plain = sample(model, positive, positive, latent(64, 64))

    def replacement(state, extra):
        seen.append(sorted(state))
        return extra["original_block"](state)

    patched = model.clone()
    patched.set_model_patch_replace(replacement, "dit", "double_block", 1)
    assert torch.equal(sample(patched, positive, positive, latent(64, 64)), plain)
    assert len(seen) == 2 and {"img", "txt", "vec", "pe", "transformer_options"} <= set(seen[0])


def test_n9_a_skipped_block_changes_the_result():
    model = load("alpha-1024")
    positive = condition(text(3))
    patched = model.clone()
    patched.set_model_patch_replace(lambda state, extra: {"img": state["img"]}, "dit", "double_block", 0)
    assert off(sample(patched, positive, positive, latent(64, 64)),
               sample(model, positive, positive, latent(64, 64))) > 1e-3


def test_n9_attention_override_is_called_for_every_attention():
    model, calls = load("alpha-1024").clone(), []

    def override(function, *args, **kwargs):
        calls.append(args[0].shape)
        return function(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    sample(model, condition(text(3)), condition(text(3)), latent(64, 64), steps=1)
    assert len(calls) == 2 * tiny.SHAPE["depth"]


def loaded_table(model) -> torch.Tensor:
    return network(model).blocks[1].scale_shift_table.weight.clone()


def test_n11_patches_on_scale_shift_tables_take_effect_and_go_away():
    import comfy.lora
    model = load("alpha-1024")
    before, delta = loaded_table(model), torch.ones(6, tiny.SHAPE["hidden"])
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora({"diffusion_model.blocks.1.scale_shift_table.diff": delta,
                                    "diffusion_model.final_layer.scale_shift_table.diff": delta[:2]}, keys)
    patched = model.clone()
    assert len(patched.add_patches(patches, 0.5)) == 2
    assert off(loaded_table(patched), before + 0.5) < 1e-6
    assert torch.equal(loaded_table(model), before)


def count_passes(model, cfg: float) -> tuple[list[int], torch.Tensor]:
    from comfy.patcher_extension import WrappersMP
    counted, calls = model.clone(), []
    counted.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", counting(calls))
    result = sample(counted, condition(text(3)), condition(text(11, seed=1)), latent(64, 64), cfg=cfg)
    return [args[0].shape[0] for args in calls], result


def test_n12_prompts_of_different_lengths_share_one_pass_with_the_same_result():
    model = load("alpha-1024")
    batches, together = count_passes(model, 4.5)
    assert batches == [2, 2]
    usual = model.model.memory_required
    model.model.memory_required = lambda shape, cond_shapes={}: 1e20 if shape[0] > 1 else usual(shape)
    batches, apart = count_passes(model, 4.5)
    del model.model.memory_required
    assert batches == [1, 1, 1, 1]
    assert off(together, apart) < 1e-5


def test_n14_the_learned_null_caption_can_be_reached():
    model = load("alpha-1024")
    null = pack("nodes.host.text").null_conditioning(model, 7, {})
    assert torch.equal(null[0][0][0], network(model).y_embedder.y_embedding[:7])
    assert null[0][0].abs().max() > 0
