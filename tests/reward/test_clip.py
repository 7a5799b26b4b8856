"""CLIP-type rewards: equal to transformers and open_clip on the same random weights, differentiable, batched."""
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reward.networks_at_hand import hugging_face_clip, images, randomised, write_clip_tokenizer
from safetensors.torch import load_file, save_file

from pixart.reward.clip import ClipReward
from pixart.reward.eyes import middle_square, whole_in_square
from pixart.weights import CheckpointError

PROMPTS = ["a cat", "two dogs run"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clip")
    hugging_face_clip(place)
    return place


def theirs(network, tokenizer, shown, prompts):
    """logits_per_image of transformers, the diagonal; prompts one by one, so that nothing is padded."""
    scores = []
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        scores.append(network(input_ids=ids, pixel_values=shown[row:row + 1]).logits_per_image[0, 0])
    return torch.stack(scores)


def as_shown(seen):
    """The middle square with the published mean and deviation of CLIP's training images."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in ((0.48145466, 0.4578275, 0.40821073),
                                                                        (0.26862954, 0.26130258, 0.27577711)))
    return (middle_square(seen, 32) - mean) / deviation


@torch.no_grad()
def test_equals_transformers(folder):
    from transformers import CLIPImageProcessor, CLIPModel
    reward = ClipReward.open("clip", folder)
    network = CLIPModel.from_pretrained(folder).eval()
    seen = (images() * 255).round() / 255
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    in_8_bits = [Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()) for image in seen]
    shown = processor(in_8_bits, return_tensors="pt")["pixel_values"]
    got, want = reward(seen, PROMPTS), theirs(network, reward.tokenizer, shown, PROMPTS)
    assert torch.allclose(got, want, atol=0.05)          # their images have 8 bits after scaling
    assert torch.allclose(reward(seen, PROMPTS), theirs(network, reward.tokenizer, as_shown(seen), PROMPTS), atol=1e-5)


def test_images_are_fitted_as_pillow_fits_them():
    seen = (images(1, 301, 200) * 255).round() / 255
    image = Image.fromarray((seen[0].permute(1, 2, 0) * 255).byte().numpy())
    scaled = image.resize((32, int(32 * 301 / 200)), Image.Resampling.BICUBIC)
    top = round((scaled.height - 32) / 2)
    want = np.asarray(scaled.crop((0, top, 32, top + 32))).astype(np.float32) / 255
    got = middle_square(seen, 32)[0].permute(1, 2, 0).numpy()
    assert np.abs(got - want).max() < 1.01 / 255 * 1.5


def test_hpsv2_is_shown_the_whole_image_in_a_black_frame():
    seen = torch.rand(1, 3, 64, 40)
    shown = whole_in_square(seen, 32)
    assert not shown[..., :6].any() and not shown[..., 26:].any()
    assert torch.allclose(shown[..., 6:26], torch.nn.functional.interpolate(
        seen, (32, 20), mode="bicubic", antialias=True).clamp(0, 1))
    assert torch.equal(whole_in_square(seen[..., :40, :], 32), middle_square(seen[..., :40, :], 32))


@torch.no_grad()
def test_a_file_of_open_clip_is_the_same_network(folder, tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed; it is an oracle only")
    words = write_clip_tokenizer(tmp_path)
    torch.manual_seed(0)
    network = open_clip.model.CLIP(
        24, open_clip.model.CLIPVisionCfg(layers=2, width=128, head_width=64, patch_size=8, image_size=32),
        open_clip.model.CLIPTextCfg(context_length=20, vocab_size=words, width=64, heads=1, layers=2))
    randomised(network)
    torch.save({"epoch": 3, "state_dict": network.state_dict()}, tmp_path / "HPS.pt")
    reward = ClipReward.open("hpsv2", tmp_path / "HPS.pt", scaled=False)
    seen = images()
    shown = as_shown(seen)
    ids = torch.zeros(2, 20, dtype=torch.long)
    for row, prompt in zip(ids, PROMPTS):
        found = reward.tokenizer(prompt)["input_ids"]
        row[:len(found)] = torch.tensor(found)
    want = (network.encode_image(shown, normalize=True) * network.encode_text(ids, normalize=True)).sum(-1)
    assert torch.allclose(reward(seen, PROMPTS), want, atol=1e-5)


def test_a_batch_is_its_rows_and_the_gradient_reaches_every_pixel_shown(folder):
    reward = ClipReward.open("pickscore", folder)
    seen = images(height=40).requires_grad_()
    both = reward(seen, PROMPTS)
    assert torch.allclose(both, torch.cat([reward(seen[i:i + 1], PROMPTS[i:i + 1]) for i in range(2)]), atol=1e-5)
    both.sum().backward()
    assert (seen.grad.abs() > 0).float().mean() > 0.99
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in reward.parameters())


def test_the_gradient_is_that_of_finite_differences(folder):
    reward = ClipReward.open("clip", folder)
    seen, step = 0.2 + 0.6 * images(1, 32, 32), 1e-2
    seen.requires_grad_()
    (gradient,) = torch.autograd.grad(reward(seen, ["a cat"]).sum(), seen)
    way = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        slope = (reward(seen + step * way, ["a cat"]) - reward(seen - step * way, ["a cat"])) / (2 * step)
    assert torch.allclose((gradient * way).sum(), slope[0], rtol=0.02)


def test_long_prompts_are_cut_with_a_notice_or_read_in_segments(folder, caplog):
    reward, seen = ClipReward.open("clip", folder), images(1)
    with caplog.at_level(logging.WARNING):
        cut = reward(seen, ["abcdefghijklmnop. qrstuvwxyz"])
    assert "reads 20 tokens, a prompt has" in caplog.text
    assert torch.equal(cut, reward(seen, ["abcdefghijklmnop. qrother"]))
    ids = reward._ids("abcdefghijklmnop. qrstuvwxyz")          # it is read at its end, which must not be cut off
    assert len(ids) == 20 and ids[-1] == reward.tokenizer.eos_token_id
    split = ClipReward.open("clip", folder, segments=True)
    want = (split.texts(["abcdefghijklmnop."]) + split.texts(["qrstuvwxyz"])) / 2
    assert torch.allclose(split.texts(["abcdefghijklmnop. qrstuvwxyz"]), want, atol=1e-6)


def test_what_is_no_clip_network_is_refused(folder, tmp_path):
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 3)}, tmp_path / "flux.safetensors")
    with pytest.raises(CheckpointError, match="not a CLIP network"):
        ClipReward.open("clip", tmp_path / "flux.safetensors")
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in state.items() if not name.startswith("text")},
              tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="only one half of a CLIP network"):
        ClipReward.open("clip", tmp_path / "half.safetensors")
    save_file(state, tmp_path / "whole.safetensors")
    with pytest.raises(FileNotFoundError, match="put vocab.json and merges.txt"):
        ClipReward.open("clip", tmp_path / "whole.safetensors")
    assert ClipReward.open("clip", tmp_path / "whole.safetensors", tokenizer=folder).side == 32
