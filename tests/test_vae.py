"""Decoding in parts: the same images in less memory, in the precision of the weights, and after memory ran out."""
import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pixart.vae
from benchmarks.instruments.held import Held
from pixart.mini import SHIPPED
from pixart.mini.prepare import image_of
from pixart.vae import _KL, decode, decoder, encode_images, load_vae
from pixart.vae_parts import FULL, TILES, TINY, Slices, fitting, ramp, starts, tiled

GIB = 1 << 30


@pytest.fixture(scope="module")
def mini() -> nn.Module:
    return load_vae(SHIPPED.vae)


@pytest.fixture(scope="module")
def full() -> nn.Module:
    """The architecture of Stable Diffusion's VAE, narrow, with random weights."""
    from diffusers import AutoencoderKL
    torch.manual_seed(0)
    return AutoencoderKL(**_KL | {"block_out_channels": [16, 16, 32, 32], "norm_num_groups": 8}).eval()


@pytest.fixture(scope="module")
def scenes() -> torch.Tensor:
    """An image (1, 3, 256, 384) in 0..1: six scenes of PixArt-mini side by side."""
    rows = [torch.cat([image_of(i, 3, "held-out", (128, 128)) for i in range(at, at + 3)], dim=2) for at in (0, 3)]
    return torch.cat(rows, dim=1)[None].float() / 255


def test_latents_are_those_of_the_vae_scaled_as_the_transformer_sees_them(mini, full):
    """A tiny autoencoder works on scaled latents already."""
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn, scaled = full.encode(2 * images - 1).latent_dist, mini.encode(2 * images - 1).latents
    mean, deviation = encode_images(full, images, 0.13025, batch=2)
    torch.testing.assert_close(mean, 0.13025 * drawn.mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(deviation, 0.13025 * drawn.std, rtol=1e-4, atol=1e-6)
    latents, none = encode_images(mini, images, 0.13025)
    torch.testing.assert_close(latents, scaled, rtol=1e-4, atol=1e-6)
    assert none is None


def test_for_training_it_decodes_the_same_with_gradients(full):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    images = decoder(full, 0.18215)(latents)
    torch.testing.assert_close(images, decode(full, latents.detach(), 0.18215), rtol=0, atol=1e-5)
    images.sum().backward()
    assert latents.grad.abs().max() > 0


def test_memory_is_planned_by_the_kind_of_vae_and_its_precision(mini, full, monkeypatch):
    asked: list[int] = []

    def plan(height: int, width: int, bytes_per_pixel: int, free: int | None, most: int) -> Slices:
        asked.append(bytes_per_pixel)
        return fitting(height, width, bytes_per_pixel, free, most)
    monkeypatch.setattr(pixart.vae, "fitting", plan)
    for vae in (mini, full, copy.deepcopy(full).bfloat16()):
        decode(vae, torch.zeros(1, 4, 8, 8), 1.0)
    assert asked == [TINY, FULL, FULL // 2]


def test_slices_equal_the_whole_to_the_last_bit_of_an_image(mini, full):
    """Fewer images at once change no more than rounding: 1e-5 of the full range."""
    for vae, scale in ((mini, 1.0), (full, 0.18215)):
        latents = torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(0))
        whole, slices = decode(vae, latents, scale, batch=3), decode(vae, latents, scale, batch=1)
        torch.testing.assert_close(slices, whole, rtol=0, atol=1e-5)


def test_tiles_of_a_real_image_equal_the_whole(mini, scenes):
    """Of 255 steps 0.05 on average, nowhere more than 16; tiles of 32 latent pixels, 8 of them overlap."""
    latents = encode_images(mini, scenes, 1.0)[0]
    off = 255 * (decode(mini, latents, 1.0, memory=0) - decode(mini, latents, 1.0)).abs()
    assert 0 < off.max() < 16 and off.mean() < 0.05


def test_tiles_of_a_full_vae_stay_near_the_whole(full):
    """Normalised tile by tile: within 1 % of the range on average, on random weights and noise."""
    latents = torch.randn(1, 4, 32, 40, generator=torch.Generator().manual_seed(0))
    off = (decode(full, latents, 0.18215, memory=0) - decode(full, latents, 0.18215)).abs()
    assert 0 < off.mean() < 0.01


@pytest.mark.parametrize("height, width", [(32, 32), (40, 33), (100, 31), (5, 90)])
def test_tiles_cover_every_pixel_with_weights_that_add_up(height, width):
    """Whatever a pixel-wise decoder gives, tiling gives back."""
    def enlarge(part: torch.Tensor) -> torch.Tensor:
        return part[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
    latent = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(tiled(enlarge, latent, 32), enlarge(latent))


def test_tiles_overlap_by_a_quarter_and_keep_their_side():
    assert list(starts(32, 32, 8)) == [0] and list(starts(20, 32, 8)) == [0]
    assert list(starts(100, 32, 8)) == [0, 24, 48, 68]
    assert ramp(8, 3).tolist() == [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("free, want", [
    (100 * GIB, Slices(4)), (8 * GIB, Slices(2)), (4 * GIB, Slices(1)), (2 * GIB, Slices(1, 96)),
    (1 * GIB, Slices(1, 64)),
    (0, Slices(1, TILES[-1])), (None, Slices(1)),
])
def test_free_memory_decides_the_parts(free, want):
    assert fitting(128, 128, FULL, free, most=4) == want


def test_parts_get_smaller_to_the_end():
    parts, seen = Slices(4), []
    while parts is not None:
        seen.append(parts)
        parts = parts.smaller(64)
    assert seen == [Slices(4), Slices(1), Slices(1, 48), Slices(1, 32)]


def peak(memory: int, count: int = 4) -> float:
    """GiB at the peak of decoding images of 1024 pixels with the VAE of Stable Diffusion, computed without data."""
    from diffusers import AutoencoderKL
    with FakeTensorMode():
        vae = AutoencoderKL(**_KL).eval()
        latents = torch.empty(count, 4, 128, 128)
        with Held() as held:
            decode(vae, latents, 0.18215, memory=memory)
    return held.peak / GIB


def test_peak_memory_falls_with_the_memory_there_is():
    """Beside what is planned with, the finished images (12 MiB each) and copies of them are held on the CPU."""
    room = 0.2
    at_once = peak(100 * GIB)
    assert 9 < at_once < 13
    for free in (8, 4, 2, 1):
        assert peak(free * GIB) < free + room
    assert peak(1 * GIB) < at_once / 8


class Small(nn.Module):
    """The VAE of PixArt-mini on a device that has room for only so many latent pixels at once."""

    def __init__(self, vae: nn.Module, room: int) -> None:
        super().__init__()
        self.vae, self.room, self.asked = vae, room, []
        self.__class__.__name__ = "AutoencoderTiny"

    def decode(self, latents: torch.Tensor) -> Any:
        self.asked.append(tuple(latents.shape))
        if latents[:, 0].numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.00 GiB.")
        return self.vae.decode(latents)


@pytest.mark.parametrize("room, parts", [(32 * 48, "one image at a time"), (32 * 32, "tiles of 256 pixels")])
def test_running_out_of_memory_goes_on_with_smaller_parts_and_says_so(mini, scenes, caplog, room, parts):
    latents = encode_images(mini, scenes.expand(2, -1, -1, -1), 1.0)[0]
    small = Small(mini, room)
    with caplog.at_level(logging.WARNING):
        got = decode(small, latents, 1.0, memory=100 * GIB)
    assert small.asked[0] == (2, 4, 32, 48) and "not enough memory to decode 2 images at a time" in caplog.text
    assert parts in caplog.text.splitlines()[-1]
    assert (got - decode(mini, latents, 1.0)).abs().mean() < 0.05 / 255


def test_no_memory_at_all_is_one_error_with_advice(mini):
    with pytest.raises(MemoryError, match="tiles of 256 pixels; generate a smaller image"):
        decode(Small(mini, 10), torch.zeros(1, 4, 40, 4), 1.0)


def test_other_errors_are_not_taken_for_a_lack_of_memory(mini):
    with pytest.raises(RuntimeError, match="channels"):
        decode(mini, torch.zeros(1, 5, 16, 16), 1.0)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_vae(mini, scenes, low):
    """Previews are decoded inside the trainer's autocast; in fp16 the VAE of SDXL gives NaN there."""
    image = scenes[..., :64, :64]
    latents = encode_images(mini, image, 1.0)[0]
    want, want_latents = decode(mini, latents, 1.0), encode_images(mini, image, 1.0)[0]
    with torch.autocast("cpu", low):
        assert torch.equal(decode(mini, latents, 1.0), want)
        assert torch.equal(encode_images(mini, image, 1.0)[0], want_latents)
