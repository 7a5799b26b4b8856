"""The ControlNet-Transformer: an independent statement, diffusers' blocks wired by hand, and exactness."""
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixart.checkpoint import to_diffusers
from pixart.config import PixArtConfig
from pixart.model.controlnet import Controlled, PixArtControlNet
from pixart.model.transformer import PixArtTransformer

CONFIG = PixArtConfig(depth=28, hidden=48, heads=4, caption_width=24, caption_tokens=8, base_size=6, position_scale=1.0)
GRIDS = {"square": (12, 12), "wide": (8, 16)}


def randomise(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(module.state_dict().items()):
        fan_in = tensor[0].numel() if tensor.ndim > 1 and "table" not in name else 12
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in ** 0.5)


def network(blocks: int, config: PixArtConfig = CONFIG, seed: int = 0) -> tuple[PixArtTransformer, PixArtControlNet]:
    base, control = PixArtTransformer(config).eval(), PixArtControlNet(config, blocks).eval()
    with torch.no_grad():
        randomise(base, seed)
        randomise(control, seed + 1)
    return base, control


def inputs(height: int, width: int, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    draw = {name: torch.randn(batch, 4, height, width, generator=generator) for name in ("latent", "hint")}
    mask = torch.arange(8) < torch.tensor([[5], [8]])[:batch]
    return {**draw, "timestep": torch.tensor([999.0, 17.5])[:batch], "mask": mask,
            "context": torch.randn(batch, 8, 24, generator=generator),
            "size": torch.tensor([[512.0, 512.0], [256.0, 1024.0]])[:batch],
            "aspect": torch.tensor([1.0, 0.25])[:batch]}


def statement(base: PixArtTransformer, control: PixArtControlNet, given: dict[str, Tensor]) -> Tensor:
    """P 6.1 in its own words: x through block 0, then copy and base in step."""
    given = dict(given)
    hint = given.pop("hint")
    mask = given.pop("mask")
    timestep = given.pop("timestep")
    x, grid = base.embed_latent(given["latent"])
    c, _ = base.embed_latent(hint)
    time = base.embed_time(timestep, given["latent"], given["size"], given["aspect"])
    shared = (base.y_embedder(given["context"]), base.t_block(time).unflatten(1, (6, -1)), grid, mask)
    x = base.blocks[0](x, *shared)
    c = x + F.linear(c, control.controlnet[0].before_proj.weight, control.controlnet[0].before_proj.bias)
    for i, block in enumerate(base.blocks[1:]):
        if i < len(control.controlnet):
            c = control.controlnet[i].copied_block(c, *shared)
            after = control.controlnet[i].after_proj
            x = x + F.linear(c, after.weight, after.bias)
        x = block(x, *shared)
    return base.unpatchify(base.final_layer(x, time), grid)[:, :4]


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 13])
@pytest.mark.parametrize("grid", GRIDS)
def test_it_follows_the_paper(blocks, grid):
    base, control = network(blocks)
    given = inputs(*GRIDS[grid])
    want = statement(base, control, given)
    got = Controlled(base, control)(**given)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    assert (got - base(**{k: v for k, v in given.items() if k != "hint"})).abs().max() > 0.01 * want.abs().max()


def diffusers_pair(base: PixArtTransformer, control: PixArtControlNet):
    """The base as diffusers has it, and its own blocks with the weights of the copies."""
    diffusers = pytest.importorskip("diffusers")
    config = base.config
    settings = {"num_attention_heads": config.heads, "attention_head_dim": config.hidden // config.heads,
                "in_channels": 4, "out_channels": 8, "num_layers": config.depth, "cross_attention_dim": config.hidden,
                "sample_size": 2 * config.base_size, "patch_size": 2, "caption_channels": config.caption_width,
                "use_additional_conditions": True, "interpolation_scale": 1}
    theirs = diffusers.PixArtTransformer2DModel(**settings).eval()
    theirs.load_state_dict(to_diffusers(base.state_dict()))
    copies = diffusers.PixArtTransformer2DModel(**{**settings, "num_layers": len(control.controlnet)}).eval()
    renamed = {name.replace("controlnet.", "blocks.").replace(".copied_block", ""): tensor
               for name, tensor in control.state_dict().items() if "copied_block" in name}
    copies.load_state_dict({**to_diffusers(base.state_dict()), **to_diffusers(renamed)}, strict=False)
    return theirs, copies.transformer_blocks


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 13])
@pytest.mark.parametrize("grid", GRIDS)
def test_it_equals_diffusers_blocks_wired_as_in_its_research_project(blocks, grid):
    base, control = network(blocks)
    given = inputs(*GRIDS[grid])
    theirs, copies = diffusers_pair(base, control)
    residuals: list[Tensor] = []
    state: dict[str, Tensor] = {}

    def after_first(module, args, kwargs, output):
        """All control blocks, from what base block 0 gave."""
        c = output + control.controlnet[0].before_proj(theirs.pos_embed(given["hint"]))
        for copy, own in zip(copies, control.controlnet):
            c = copy(c, **kwargs)
            residuals.append(own.after_proj(c))
        state["next"] = residuals.pop(0)

    def before_next(module, args, kwargs):
        if not state:
            return None
        added = state.pop("next")
        if residuals:
            state["next"] = residuals.pop(0)
        return (args[0] + added, *args[1:]), kwargs

    theirs.transformer_blocks[0].register_forward_hook(after_first, with_kwargs=True)
    for block in theirs.transformer_blocks[1:]:
        block.register_forward_pre_hook(before_next, with_kwargs=True)
    bias = (1 - given["mask"].float()) * -10000.0
    want = theirs(given["latent"], given["context"], timestep=given["timestep"],
                  encoder_attention_mask=bias[:, None, :], added_cond_kwargs={
                      "resolution": given["size"], "aspect_ratio": given["aspect"][:, None]}).sample[:, :4]
    got = Controlled(base, control)(**given)
    assert not residuals and not state
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@torch.no_grad()
def test_an_untrained_copy_changes_nothing_to_the_bit():
    base, _ = network(1)
    given = inputs(8, 16)
    plain = base(**{k: v for k, v in given.items() if k != "hint"})
    fresh = PixArtControlNet.copy_of(base, 13)
    assert torch.equal(fresh.controlnet[5].copied_block.mlp.fc1.weight, base.blocks[5].mlp.fc1.weight)
    assert fresh.controlnet[5].copied_block.mlp.fc1.weight.data_ptr() != base.blocks[5].mlp.fc1.weight.data_ptr()
    assert torch.equal(Controlled(base, fresh)(**given), plain)


@torch.no_grad()
def test_strength_0_and_no_hint_are_the_base_to_the_bit():
    base, control = network(5)
    given = inputs(12, 12)
    plain = {k: v for k, v in given.items() if k != "hint"}
    assert torch.equal(Controlled(base, control)(**given, strength=0.0), base(**plain))
    assert torch.equal(Controlled(base, control)(**plain), base(**plain))
    assert torch.equal(Controlled(base, control)(**given, strength=1.0), Controlled(base, control)(**given))


@torch.no_grad()
def test_strength_scales_every_residual():
    base, control = network(3)
    given = inputs(8, 16)
    plain = {k: v for k, v in given.items() if k != "hint"}
    half = [r if r is None else 0.5 * r for r in control(base, given["hint"], **plain)]
    assert torch.equal(Controlled(base, control)(**given, strength=0.5), base(**plain, control=half))


@torch.no_grad()
def test_residuals_of_a_batch_equal_single_runs():
    base, control = network(3)
    given = inputs(8, 16)
    together = control(base, given.pop("hint"), **given)
    given = inputs(8, 16)
    for row in range(2):
        alone = control(base, **{name: value[row:row + 1] for name, value in given.items()})
        for a, b in zip(alone[1:], together[1:]):
            assert (a[0] - b[row]).abs().max() <= 1e-5 * b.abs().max()


@torch.no_grad()
def test_it_uses_the_live_first_block():
    """A LoRA on the base must reach the control path: nothing of the base is copied at loading."""
    base, control = network(2)
    given = inputs(8, 8)
    hint = given.pop("hint")
    before = control(base, hint, **given)[1]
    base.blocks[0].mlp.fc2.weight += 0.1
    assert not torch.equal(control(base, hint, **given)[1], before)
    assert not any("base" in name for name in control.state_dict())


def test_only_the_control_learns():
    base, control = network(2)
    base.requires_grad_(False)
    Controlled(base, control)(**inputs(8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in control.parameters())
    assert all(p.grad is None for p in base.parameters())
    kept = [p.grad.clone() for p in control.parameters()]
    control.zero_grad()
    control.recompute, runs = True, []
    for copy in control.controlnet:
        copy.copied_block.register_forward_pre_hook(lambda *_: runs.append(1))
    Controlled(base, control)(**inputs(8, 8)).square().mean().backward()
    assert all((a - p.grad).abs().max() <= 1e-6 * a.abs().max() for a, p in zip(kept, control.parameters()))
    assert len(runs) == 2 * len(control.controlnet)                 # forward, and once more on the way back


@pytest.mark.parametrize("blocks", [0, 28])
def test_the_number_of_copies_must_fit(blocks):
    with pytest.raises(ValueError, match="1 to 27"):
        PixArtControlNet(CONFIG, blocks)


def test_another_base_and_another_hint_are_refused():
    base, control = network(2)
    given = inputs(8, 8)
    hint = given.pop("hint")
    with pytest.raises(ValueError, match="48 wide with 4 heads, the model 96"):
        wide = PixArtConfig(depth=4, hidden=96, heads=4, caption_width=24, base_size=6)
        control(PixArtTransformer(wide), hint, **given)
    with pytest.raises(ValueError, match="48 wide with 4 heads, the model 48 with 6"):
        other = PixArtConfig(depth=4, hidden=48, heads=6, caption_width=24, base_size=6)
        control(PixArtTransformer(other), hint, **given)
    with pytest.raises(ValueError, match="same VAE"):
        control(base, hint[:, :, :4], **given)
    with pytest.raises(ValueError, match="latents of 3 channels, PixArt's have 4"):
        control(base, hint[:, :3], **given)
    small = PixArtConfig(depth=2, hidden=48, heads=4, caption_width=24, base_size=6)
    with pytest.raises(ValueError, match="has 2 blocks, the model only 2. Load"):
        control(PixArtTransformer(small), hint, **given)
