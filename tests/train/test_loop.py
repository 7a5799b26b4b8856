"""The training loop: it learns, it resumes to the bit, it keeps what it has when stopped."""
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pixart.config import PixArtConfig
from pixart.model.transformer import PixArtTransformer
from pixart.train import loop
from pixart.train.data import PreparedFolder
from pixart.train.initialize import initialize
from pixart.train.objectives import Consistency, Diffusion

TINY = PixArtConfig(depth=2, hidden=48, heads=4, caption_width=8, caption_tokens=6, base_size=4, position_scale=1.0)
SHORT = loop.LoopConfig(steps=8, batch=4, learning_rate=1e-3, warmup=2, ema=0.9, save_every=3, log_every=4)


@pytest.fixture
def data(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for h, w in ((8, 8), (6, 10)):
        save_file({"latents": torch.randn(16, 4, h, w, generator=generator).half(),
                   "features": torch.randn(16, 6, 8, generator=generator).half(),
                   "mask": torch.tensor([[1, 1, 1, 1, 0, 0]] * 16, dtype=torch.uint8),
                   "size": torch.tensor([[8.0 * h, 8.0 * w]] * 16), "aspect": torch.full((16,), h / w)},
                  tmp_path / f"bucket-{h}x{w}.safetensors")
    save_file({"features": torch.randn(1, 8, generator=generator), "mask": torch.ones(1, dtype=torch.uint8)},
              tmp_path / "null.safetensors")
    return PreparedFolder(tmp_path)


def fresh() -> PixArtTransformer:
    return initialize(PixArtTransformer(TINY), seed=1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_training_equals_uninterrupted_to_the_bit(data, tmp_path, optimizer):
    config = replace(SHORT, optimizer=optimizer)
    whole = loop.train(fresh(), Diffusion(data), data, config, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(step: int, loss: float) -> None:
        raise Killed        # after step 4: the checkpoint at hand is the one of step 3

    with pytest.raises(Killed):
        loop.train(fresh(), Diffusion(data), data, config, tmp_path / "parts", report=kill)
    again = loop.train(fresh(), Diffusion(data), data, config, tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_interrupt_saves_the_last_step(data, tmp_path):
    def stop(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(fresh(), Diffusion(data), data, replace(SHORT, save_every=100), tmp_path / "run", report=stop)
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] >= 3


def test_diffusion_loss_falls(data, tmp_path):
    seen = []
    loop.train(fresh(), Diffusion(data), data, replace(SHORT, steps=150, learning_rate=3e-3, log_every=50),
               tmp_path / "run", report=lambda step, loss: seen.append(loss))
    assert seen[-1] < 0.9 * seen[0]


def test_student_of_an_unguided_identical_teacher_has_a_small_loss(data):
    """At guidance 0 and equal networks only the DDIM step separates prediction and target (reference 10.10)."""
    model = fresh()
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.02)
    generator = torch.Generator().manual_seed(3)
    batch = data.batch(generator, 4)
    near, far = (Consistency(data, model, guidance=w)(model, model, batch, torch.Generator().manual_seed(5)).item()
                 for w in (0.0, 4.5))
    assert 0 <= near <= far


def test_dropped_captions_become_the_null_caption(data):
    batch = data.batch(torch.Generator().manual_seed(0), 3)
    changed = data.without_caption(batch, torch.tensor([True, False, True]))
    assert changed.mask.sum(1).tolist() == [1, 4, 1]
    assert torch.equal(changed.context[0, 0], data.null_context[0])
    assert torch.equal(changed.context[1], batch.context[1])


def test_moving_average_moves_by_one_minus_decay():
    model, average = fresh(), fresh()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    before = [p.clone() for p in average.parameters()]
    loop.update_average(average, model, 0.95)
    for old, new in zip(before, average.parameters()):
        torch.testing.assert_close(new, old + 0.05)


def test_folder_without_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="bucket-.*safetensors"):
        PreparedFolder(tmp_path)
