"""PixArt Feedback in the host: as in the library, off where it should be, refused where it cannot be meant."""
import torch
from support import MODELS, condition, latent, load, network, node, off, pack, refusal, sample, text

POSITIVE, NEGATIVE = condition(text(4)), condition(text(3, seed=1))


def file_of(name: str, scale: float = 0.3, model: str = "alpha-512") -> str:
    """A feedback file in models/loras, random weights."""
    config = network(load(model)).config
    feedback = pack("pixart.model.feedback").Feedback(config, 0, config.depth - 1)
    generator = torch.Generator().manual_seed(4)
    for tensor in feedback.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / max(1, tensor[0].numel()) ** 0.5)
    feedback.scales.data.fill_(scale)
    pack("pixart.checkpoint.feedback").save_feedback(MODELS / "loras" / name, feedback)
    return name


def applied(model, name: str, start: float = 0.0, end: float = 1.0):
    return node("PixArtFeedback")().apply(model, name, start, end)[0]


def drawn(model) -> torch.Tensor:
    return sample(model, POSITIVE, NEGATIVE, latent(64, 64), cfg=3.0)


def test_it_changes_the_image_unless_it_is_silent_or_off():
    model, name = load("alpha-512"), file_of("ilf.safetensors")
    plain = drawn(model)
    assert off(drawn(applied(model, name)), plain) > 1e-3
    assert torch.equal(drawn(applied(model, name, 0.5, 0.5)), plain)
    assert torch.equal(drawn(applied(model, file_of("silent.safetensors", 0.0))), plain)
    assert torch.equal(drawn(model), plain)         # and the original is as it was


def test_a_pass_of_the_host_is_one_of_the_library():
    model, name = load("alpha-512"), file_of("ilf.safetensors")
    seen = []

    def wrapper(executor, x, t, *args, **kwargs):
        out = executor(x, t, *args, **kwargs)
        seen.append((x, t, args[0], kwargs.get("text_mask"), out))
        return out
    from comfy.patcher_extension import WrappersMP
    patched = applied(model, name)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", wrapper)
    sample(patched, POSITIVE, POSITIVE, latent(64, 64), cfg=1.0)
    x, t, context, _, out = seen[0]
    loop = pack("pixart.model.feedback").InnerLoop(pack("pixart.checkpoint.feedback").load_feedback(
        MODELS / "loras" / name, dtype=x.dtype))
    transformer = pack("pixart.model.transformer").PixArtTransformer
    step = pack("pixart.model.policy").Step(0, 2, float(t[0]), tuple(range(len(x))), object())
    want = transformer.forward(network(model), x, t, context, policies=[loop], step=step)
    assert off(out, want) < 1e-5


def test_feedback_of_another_model_and_a_wrong_file_are_refused():
    told = refusal(applied, load("alpha-512"), file_of("deep.safetensors", model="deep-1024"))
    assert "for 5 blocks of width 48, the model has 2 of 48" in told
    (MODELS / "loras" / "torn.safetensors").write_bytes(b"no weights")
    assert "torn.safetensors" in refusal(applied, load("alpha-512"), "torn.safetensors")
