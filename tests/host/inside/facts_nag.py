"""PixArt Negative Prompt (NAG) in the host: as in the library, off where it should be, refused where it cannot be."""
import torch
from support import condition, latent, load, network, node, off, pack, refusal, sample, text

POSITIVE, NEGATIVE, AVOIDED = condition(text(4)), condition(text(3, seed=1)), condition(text(2, seed=7))
OFF = {"scale": 1.0}, {"alpha": 0.0}, {"start": 0.5, "end": 0.5}


def applied(model, negative=AVOIDED, **changes: float):
    chosen = {"scale": 5.0, "tau": 2.5, "alpha": 0.5, "start": 0.0, "end": 1.0, **changes}
    return node("PixArtNAG")().apply(model, negative, **chosen)[0]


def drawn(model, cfg: float = 1.0) -> torch.Tensor:
    return sample(model, POSITIVE, NEGATIVE, latent(64, 64, 2), cfg=cfg)


def test_it_changes_the_image_unless_it_is_off():
    model = load("alpha-512")
    for cfg in (1.0, 3.0):
        plain = drawn(model, cfg)
        assert off(drawn(applied(model), cfg), plain) > 1e-3
        assert all(torch.equal(drawn(applied(model, **changes), cfg), plain) for changes in OFF)
        assert torch.equal(drawn(model, cfg), plain)         # and the original is as it was


def test_a_pass_of_the_host_is_one_of_the_library():
    from comfy.patcher_extension import WrappersMP
    model, seen = load("alpha-512"), []

    def wrapper(executor, x, t, *args, **kwargs):
        out = executor(x, t, *args, **kwargs)
        seen.append((x, t, args[0], out))
        return out
    patched = applied(model)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", wrapper)
    drawn(patched)
    x, t, context, out = seen[0]
    transformer = pack("pixart.model.transformer").PixArtTransformer
    policy = pack("pixart.model.nag").NAG(network(model).config, AVOIDED[0][0])
    assert off(out, transformer.forward(network(model), x, t, context, policies=[policy])) < 1e-5


def test_with_guidance_the_negative_rows_stay_as_they_are():
    """What guidance moves away from is the plain prediction for its own negative prompt."""
    model = load("alpha-512")
    only = applied(model)
    plain, steered = drawn(model), drawn(only)              # cfg 1: the positive prompt alone
    away = sample(model, NEGATIVE, NEGATIVE, latent(64, 64, 2), steps=1)
    got = sample(only, POSITIVE, NEGATIVE, latent(64, 64, 2), steps=1, cfg=3.0)
    one = sample(only, POSITIVE, NEGATIVE, latent(64, 64, 2), steps=1)
    assert off(got, away + 3.0 * (one - away)) < 1e-4
    assert off(steered, plain) > 1e-3


def test_masked_padding_of_the_negative_prompt_does_not_count():
    model = load("alpha-512")
    padded = torch.cat([AVOIDED[0][0], torch.randn(1, 3, AVOIDED[0][0].shape[2])], dim=1)
    masked = [[padded, {"attention_mask": torch.tensor([[1, 1, 0, 0, 0]])}]]
    assert off(drawn(applied(model, masked)), drawn(applied(model))) < 1e-5


def test_what_is_no_single_prompt_of_this_model_is_refused():
    model = load("alpha-512")
    assert "negative holds 2 prompts" in refusal(applied, model, [*AVOIDED, *NEGATIVE])
    wide = condition(torch.randn(1, 3, 20))
    assert "Use the text encoder that belongs to this model" in refusal(applied, model, wide)
    assert "scale is 0.5" in refusal(applied, model, scale=0.5)
