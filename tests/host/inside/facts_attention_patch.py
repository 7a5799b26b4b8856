"""Stock nodes that change self-attention of a U-Net's middle: they reach PixArt's middle block, and no other."""
from compatibility import call
from support import condition, latent, load, off, pack, refusal, sample, text
from torch import Tensor
from torch.nn import functional as F

POSITIVE, NEGATIVE = condition(text(4)), condition(text(3, seed=1))


def patched(model, replacement, place: str = "middle", number: int = 0):
    model = model.clone()
    model.set_model_attn1_replace(replacement, place, number)
    return model


def drawn(model, cfg: float = 1.0, name: str = "euler", steps: int = 1) -> Tensor:
    return sample(model, POSITIVE, NEGATIVE, latent(64, 96), steps=steps, cfg=cfg, sampler=name)


def attention(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
    """The plain one, by what a replacement is told."""
    assert extra["n_heads"] * extra["dim_head"] == q.shape[2] and len(extra["cond_or_uncond"]) in (1, 2)
    q, k, v = (each.unflatten(2, (extra["n_heads"], -1)).transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_attention_put_in_its_own_place_changes_nothing():
    for name in ("alpha-512", "deep-1024"):
        model, asked = load(name), []

        def watched(q, k, v, extra, asked=asked):
            asked.append(q.shape)
            return attention(q, k, v, extra)
        assert off(drawn(patched(model, watched), 3.0, steps=2), drawn(model, 3.0, steps=2)) < 1e-5
        assert len(asked) == 2              # one block, both prompts in one pass, two steps


def test_perturbed_attention_guidance_is_what_its_paper_says():
    """x0 + scale (x0 - x0 with the identity for attention weights in the middle block), as diffusers has it too."""
    policy = pack("pixart.model.policy").Policy

    class Identity(policy):
        def branch(self, index, name, p, go):
            if name != "attn" or index != 2:
                return go(p)
            block = model.model.diffusion_model.blocks[index]
            shift, scale, *_ = block.scale_shift_table(p.modulation)
            modulated = F.layer_norm(p.x, p.x.shape[2:], eps=1e-6) * (1 + scale) + shift
            return block.attn.proj(block.attn.qkv(modulated)[..., 2 * p.x.shape[2]:])

    model = load("deep-1024")
    (guided,) = call("PerturbedAttentionGuidance", {"model": model, "scale": 3.0})
    plain = drawn(model)
    weak = drawn(pack("nodes.host.policies").with_policies(model, lambda sampling: [Identity()]))
    assert off(weak, plain) > 1e-3
    assert off(drawn(guided), plain + 3.0 * (plain - weak)) < 1e-4


def test_another_place_of_a_u_net_is_refused():
    model = patched(load("alpha-512"), lambda q, k, v, extra: v, "input", 4)
    assert "U-Net block input 4; PixArt has the middle one only" in refusal(drawn, model)
