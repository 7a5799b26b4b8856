"""LCM-LoRA: one network is teacher, student and target, and only its adapters learn."""
import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer
from pixart.prepare.shards import shard_path, write_shard
from pixart.train.data import PreparedFolder
from pixart.train.lcm_lora import ConsistencyLora
from pixart.train.lora import add_lora, is_adapter, lora_state
from pixart.train.objectives import Consistency

SMALL = PixArtConfig(depth=2, hidden=48, heads=4, caption_width=20, caption_tokens=6, base_size=8, position_scale=1.0)


@pytest.fixture
def data(tmp_path: Path) -> PreparedFolder:
    from safetensors.torch import save_file
    generator = torch.Generator().manual_seed(0)
    write_shard(shard_path(tmp_path, (8, 8), 0), {
        "latents": torch.randn(8, 4, 8, 8, generator=generator).half(),
        "features": torch.randn(8, 6, 20, generator=generator).half(), "mask": torch.ones(8, 6, dtype=torch.uint8),
        "size": torch.full((8, 2), 64.0), "aspect": torch.ones(8)},
        {"latent_space": "sd", "caption_tokens": "6", "edges": "none"})
    save_file({"features": torch.ones(1, 20), "mask": torch.ones(1, dtype=torch.uint8)}, tmp_path / "null.safetensors")
    return PreparedFolder(tmp_path)


def base() -> PixArtTransformer:
    torch.manual_seed(0)
    model = PixArtTransformer(SMALL)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def adapted(dora: bool, std: float) -> nn.Module:
    model = add_lora(base(), rank=4, alpha=8, dora=dora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in lora_state(model).items():
            noise = std * torch.randn(tensor.shape, generator=generator)
            tensor.mul_(1 + noise) if "magnitude" in name else tensor.add_(noise)
    return model


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def batch_of(data: PreparedFolder):
    return data.batch(torch.Generator().manual_seed(2), 4)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_with_untrained_adapters_all_three_are_the_base(data):
    model, plain = adapted(dora=False, std=0.0), base()
    got = ConsistencyLora(data)(model, model, batch_of(data), seeded())
    assert torch.equal(got, Consistency(data, plain)(plain, plain, batch_of(data), seeded()))


def test_without_guidance_the_first_interval_leaves_only_the_ddim_gap(data):
    """w = 0, untrained adapters, t = 19 -> 0: the target is the DDIM step itself, since c_skip(0) is 1."""
    model = adapted(dora=False, std=0.0)
    seed = next(n for n in range(1000) if torch.randint(50, (1,), generator=torch.Generator().manual_seed(n)) == 0)
    generator, batch = torch.Generator().manual_seed(seed), data.batch(torch.Generator().manual_seed(2), 1)
    got = ConsistencyLora(data, guidance=0.0)(model, model, batch, torch.Generator().manual_seed(seed))
    torch.randint(50, (1,), generator=generator)
    noise = torch.randn(batch.latents.shape, generator=generator).double()
    a = (1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0)
    x = a[19].sqrt() * batch.latents.double() + (1 - a[19]).sqrt() * noise
    with torch.no_grad():
        eps = base()(x.float(), torch.tensor([19.0]), **batch.conditions()).double()
    x0 = (x - (1 - a[19]).sqrt() * eps) / a[19].sqrt()
    skip, out = 0.25 / (190 ** 2 + 0.25), 190 / (190 ** 2 + 0.25) ** 0.5
    target = a[0].sqrt() * x0 + (1 - a[0]).sqrt() * eps
    want = ((skip * x + out * x0 - target) ** 2 + 1e-6).sqrt().mean() - 1e-3
    assert abs(got.item() - want.item()) < 1e-5


@pytest.mark.parametrize("dora", [False, True])
def test_loss_and_gradient_are_those_of_three_separate_networks(data, dora):
    model, apart = adapted(dora, 0.1), adapted(dora, 0.1)
    target = copy.deepcopy(apart).requires_grad_(False)
    wishes = {"guidance": 3.0, "huber_c": 0.01, "guidance_max": 9.0}
    got = ConsistencyLora(data, **wishes)(model, base(), batch_of(data), seeded())
    want = Consistency(data, base().requires_grad_(False), **wishes)(apart, target, batch_of(data), seeded())
    assert torch.equal(got, want)
    got.backward()
    want.backward()
    assert gradients(model).keys() == gradients(apart).keys()
    assert all(torch.equal(value, gradients(apart)[name]) for name, value in gradients(model).items())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_only_adapters_get_gradients(data, dora, recompute):
    model = adapted(dora, 0.1)
    model.recompute = recompute
    ConsistencyLora(data)(model, model, batch_of(data), seeded()).backward()
    assert set(gradients(model)) == set(lora_state(model))
    assert all(value.abs().max() > 0 for value in gradients(model).values())


def test_training_leaves_every_bit_of_the_base(data):
    model = add_lora(base(), rank=4, alpha=None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stepper = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        ConsistencyLora(data)(model, model, data.batch(generator, 4), generator).backward()
        stepper.step()
        stepper.zero_grad()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(lora_state(model)) and all(is_adapter(name) for name in changed)


def test_it_learns(data):
    """On one fixed draw the loss must fall, or the gradient points nowhere."""
    model = add_lora(base(), rank=8, alpha=16)
    stepper = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(25):
        loss = ConsistencyLora(data)(model, model, batch_of(data), seeded())
        losses.append(loss.item())
        loss.backward()
        stepper.step()
        stepper.zero_grad()
    assert min(losses[-5:]) < 0.8 * losses[0]
