"""Image to image and inpainting: formulas by hand, what must hold exactly, and both on PixArt-mini."""
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pixart import __main__ as command_line
from pixart.config import PixArtConfig
from pixart.control.control_image import ControlImage
from pixart.files.images import read_image, save_image
from pixart.generation.image_to_image import Origin, StartImage, start_image
from pixart.generation.pipeline import Pipeline
from pixart.generation.request import Request
from pixart.generation.result import Images
from pixart.generation.sample import sample
from pixart.model.policy import Policy
from pixart.model.transformer import PixArtTransformer
from pixart.sampling.consistency import c_out, c_skip
from pixart.sampling.dpm_solver import Node, dpm_step, nodes
from pixart.sampling.lcm import lcm_timesteps
from pixart.sampling.noise import ImageNoise
from pixart.sampling.samplers import SAMPLERS
from pixart.sampling.schedule import ALPHAS_CUMPROD
from pixart.text.encoded import Encoded

RED, BLUE = ("a large red circle in the centre on a white background",
             "a large blue square in the centre on a white background")
Z0, MASK = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([[1.0, 0.0, 0.3]] * 3)


def smooth(x: Tensor, t: Tensor) -> Tensor:
    """Noise that a network might predict: it depends on all of x and on t."""
    return 0.8 * x + 0.1 * x.flip(-1).sin() + t.view(-1, 1, 1, 1) / 4000


def scales(t: int) -> tuple[float, float]:
    return ALPHAS_CUMPROD[t] ** 0.5, (1 - ALPHAS_CUMPROD[t]) ** 0.5


def run_from(sampler: str, steps: int, denoise: float, rule: str = "official", mask: Tensor | None = None) -> Tensor:
    """What a sampler makes of Z0 with the noise of seeds 5 and 6."""
    noise, chosen = ImageNoise([5, 6], (4, 3, 3)), SAMPLERS[sampler]
    origin = Origin(Z0, None if mask is None else mask.expand(1, 1, 3, 3))
    model, draws = origin.begin(smooth, noise, chosen.times(steps, rule, denoise), denoise)
    return origin.kept(chosen.run(model, draws, steps, rule, None, denoise))


def test_a_dpm_step_from_an_image_by_hand():
    """One step at denoise 0.5 is the second of two: from t = 500 to the image, by the rule that ends without noise."""
    alpha, sigma = scales(500)
    x = alpha * Z0 + sigma * ImageNoise([5, 6], (4, 3, 3))()
    want = (x - sigma * smooth(x, torch.full((2,), 500.0))) / alpha
    torch.testing.assert_close(run_from("dpm", 1, 0.5, "diffusers"), want)


def test_an_lcm_step_from_an_image_by_hand():
    alpha, sigma = scales(499)
    x = alpha * Z0 + sigma * ImageNoise([5, 6], (4, 3, 3))()
    x0 = (x - sigma * smooth(x, torch.full((2,), 499.0))) / alpha
    torch.testing.assert_close(run_from("lcm", 1, 0.5), c_skip(499) * x + c_out(499) * x0)


def inpainted(x: Tensor, node: Node, noise: Tensor, denoised: Callable[[Tensor], Tensor]) -> Tensor:
    """ComfyUI's KSamplerX0Inpaint, in clean latents as there: the model's part of the answer, and the original."""
    seen = x * MASK + (node.alpha * Z0 + node.sigma * noise) * (1 - MASK)
    return denoised(seen) * MASK + Z0 * (1 - MASK)


@pytest.mark.parametrize("denoise", [0.6, 1.0])
def test_inpainting_with_dpm_is_that_of_comfyui_in_clean_latents(denoise):
    path, before = nodes(int(4 / denoise), "diffusers")[-5:], None
    x = noise = ImageNoise([5, 6], (4, 3, 3))()
    if denoise < 1:
        x = path[0].alpha * Z0 + path[0].sigma * noise
    for here, there in zip(path, path[1:]):
        t = torch.full((2,), here.time)
        x0 = inpainted(x, here, noise, lambda seen: (seen - here.sigma * smooth(seen, t)) / here.alpha)  # noqa: B023
        x, before = dpm_step(x, here, there, x0, before), (here, x0)
    got = run_from("dpm", 4, denoise, "diffusers", MASK)
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)
    assert torch.equal(got[..., 1], Z0[..., 1]) and not torch.allclose(got[..., 0], Z0[..., 0], atol=1e-2)


def test_inpainting_with_lcm_is_that_of_comfyui_in_clean_latents():
    noise, times = ImageNoise([5, 6], (4, 3, 3)), lcm_timesteps(3, "official", 0.6)
    first = noise()
    x = scales(times[0])[0] * Z0 + scales(times[0])[1] * first
    for t, after in zip(times, [*times[1:], None]):
        alpha, sigma = scales(t)

        def consistent(seen: Tensor, t: int = t, alpha: float = alpha, sigma: float = sigma) -> Tensor:
            return c_skip(t) * seen + c_out(t) * (seen - sigma * smooth(seen, torch.full((2,), float(t)))) / alpha
        x = inpainted(x, Node(t, alpha, sigma), first, consistent)
        if after is not None:
            x = scales(after)[0] * x + scales(after)[1] * noise()
    torch.testing.assert_close(run_from("lcm", 3, 0.6, mask=MASK), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["lcm", "dpm", "ddim", "tdm"])
def test_nothing_changes_at_denoise_1_and_under_a_mask_of_ones(sampler):
    noise, steps = ImageNoise([5, 6], (4, 3, 3)), 3
    want = SAMPLERS[sampler].run(smooth, noise, steps, "official", None)
    assert torch.equal(run_from(sampler, steps, 1.0), want)
    assert torch.equal(run_from(sampler, steps, 1.0, mask=torch.ones(3, 3)), want)
    some = run_from(sampler, steps, 0.5)
    assert torch.equal(run_from(sampler, steps, 0.5, mask=torch.ones(3, 3)), some) and not torch.allclose(some, want)
    assert torch.equal(run_from(sampler, steps, 0.5, mask=torch.zeros(3, 3)), Z0)


def test_which_timesteps_a_denoise_begins_at():
    """Guided samplers compute all their steps, as ComfyUI's KSampler; tdm keeps the last, as PixArt Steps."""
    whole = SAMPLERS["dpm"].times(33, "diffusers")
    for sampler in ("dpm", "ddim"):
        assert SAMPLERS[sampler].times(20, "diffusers", 0.6) == whole[-20:]
    assert SAMPLERS["tdm"].times(4, "official", 0.5) == [449, 224] == SAMPLERS["tdm"].times(4, "official", 0.6)
    assert SAMPLERS["tdm"].times(4, "official", 0.01) == [224]
    assert SAMPLERS["lcm"].times(4, "official", 0.5) == [499, 379, 259, 139]
    with pytest.raises(ValueError, match="20 steps at denoise 0.02 are the last of 1000, and at most 999"):
        SAMPLERS["dpm"].times(20, "official", 0.02)
    with pytest.raises(ValueError, match="starts from pure noise and cannot work on an image"):
        SAMPLERS["dmd"].times(1, "", 0.5)


@pytest.mark.parametrize("denoise", [0, -0.1, 1.01, float("nan")])
def test_a_denoise_that_is_no_share_is_refused(denoise):
    for make in (lambda: StartImage(torch.zeros(1, 3, 16, 16), denoise), lambda: Request(("a",), denoise=denoise)):
        with pytest.raises(ValueError, match=f"denoise is {denoise}; it must lie above 0 and at most at 1"):
            make()


@pytest.mark.parametrize("shape, mask, words", [
    ((3, 16, 16), None, r"the start image has shape \(3, 16, 16\); expected \(images, 1 or 3 or 4, height, width"),
    ((1, 16, 16, 3), None, r"has shape \(1, 16, 16, 3\)"),
    ((1, 3, 16, 16), (1, 16, 16), "the mask has shape"),
    ((1, 3, 16, 16), (1, 3, 16, 16), r"expected \(images, 1, height, width\)"),
    ((1, 3, 16, 16), (1, 1, 16, 8), "the mask is 8 x 16 pixels and the image 16 x 16"),
])
def test_images_and_masks_of_another_shape_are_refused(shape, mask, words):
    with pytest.raises(ValueError, match=words):
        StartImage(torch.zeros(shape), 0.5, None if mask is None else torch.zeros(mask))


def test_halves_of_a_request_are_refused():
    with pytest.raises(ValueError, match="denoise has no effect without image"):
        start_image(None, 0.5, None)
    with pytest.raises(ValueError, match="mask has no effect without image"):
        start_image(None, None, torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="needs denoise, how much of it is regenerated, such as 0.6, or a mask"):
        start_image(torch.zeros(1, 3, 16, 16), None, None)
    for pixels in (torch.full((1, 3, 16, 16), 255.0), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="divide pixels of 8 bits by 255"):
            StartImage(pixels, 0.5)


def test_latents_that_do_not_fit_are_refused_before_sampling():
    config = PixArtConfig(depth=1, hidden=48, heads=4, caption_width=16, caption_tokens=8, base_size=4)
    text = Encoded(torch.zeros(2, 3, 16), torch.ones(2, 3, dtype=torch.bool), [])
    model, request = PixArtTransformer(config).eval(), Request(("a", "b"), height=32, width=32, denoise=0.5)
    for origin, words in ((None, "denoise 0.5 needs a start image"), (Origin(torch.zeros(1, 4, 4, 5)), "(1, 4, 4, 5)"),
                          (Origin(torch.zeros(3, 4, 4, 4)), "(3, 4, 4, 4)"),
                          (Origin(torch.zeros(1, 4, 4, 4), torch.zeros(3, 1, 4, 4)), "mask of the latent")):
        with pytest.raises(ValueError) as raised:
            sample(model, request, text, text, origin=origin)
        assert words in str(raised.value)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.open(device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def circle(pipe) -> Tensor:
    return pipe(RED, seed=1).pixels


def half(height: int, width: int) -> Tensor:
    """The left half is regenerated."""
    mask = torch.zeros(1, 1, height, width)
    mask[..., :width // 2] = 1
    return mask


def test_what_must_hold_exactly_with_pixart_mini(pipe, circle):
    plain = pipe(BLUE, seed=2, steps=2).pixels
    assert torch.equal(pipe(BLUE, seed=2, steps=2, image=circle, denoise=1.0).pixels, plain)
    some = pipe(BLUE, seed=2, steps=2, image=circle, denoise=0.5).pixels
    ones, zeros = torch.ones(1, 1, 128, 128), torch.zeros(1, 1, 128, 128)
    assert torch.equal(pipe(BLUE, seed=2, steps=2, image=circle, denoise=0.5, mask=ones).pixels, some)
    assert torch.equal(pipe(BLUE, seed=2, steps=2, image=circle, mask=zeros).pixels, circle)
    drawn = pipe(BLUE, seed=2, steps=2, image=circle, mask=half(128, 128)).pixels
    assert torch.equal(drawn[..., 64:], circle[..., 64:]) and (drawn - circle)[..., :64].abs().max() > 0.2


def test_less_denoise_stays_nearer_to_the_image(pipe, circle):
    prompts = (BLUE, "a large green star in the centre on a black background", RED)
    far = [[(image - circle[0]).square().mean().item() for image in pipe(prompts, image=circle, denoise=d).pixels]
           for d in (0.1, 0.3, 1.0)]
    assert all(low < middle < high for low, middle, high in zip(*far))


@pytest.mark.parametrize("sampler, more", [("lcm", {}), ("tdm", {"negative": RED, "nag": 5.0}),
                                           ("dpm", {"negative": RED, "guidance": 2.5})])
def test_an_image_of_a_batch_is_the_image_alone(pipe, circle, sampler, more):
    """With images and masks of their own, guidance, attention guidance and control, on a size off the grid of 8."""
    images = torch.cat([circle, circle.flip(1), circle.flip(3)])[..., :50, :91]
    masks = torch.cat([half(50, 91), 1 - half(50, 91), torch.ones(1, 1, 50, 91) / 2])
    base = {"sampler": sampler, "steps": 2, "denoise": 0.6, **more}
    edges = ControlImage((images.mean(1, keepdim=True) > 0.5).float()) if sampler == "lcm" else None

    def draw(rows: slice, batch: int) -> Images:
        control = None if edges is None else ControlImage(edges.edges[rows])
        return pipe([BLUE, RED, BLUE][rows], seed=3 + rows.start, batch=batch, image=images[rows], mask=masks[rows],
                    control=control, **base)
    together, parts, alone = draw(slice(0, 3), 3).pixels, draw(slice(0, 3), 2).pixels, draw(slice(2, 3), 1).pixels
    assert together.shape == (3, 3, 50, 91) and torch.equal(together[0, :, :, 45:], images[0, :, :, 45:])
    torch.testing.assert_close(parts, together, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(alone, together[2:], rtol=1e-3, atol=1e-3)


def test_policies_and_progress_count_the_steps_that_are_computed(pipe, circle):
    """tdm at denoise 0.5 computes two of its four."""
    steps, told = [], []

    class Watching(Policy):
        def stack(self, p, go):
            steps.append((p.step.index, p.step.total, p.step.timestep))
            return go(p)
    pipe([BLUE, RED], sampler="tdm", steps=4, image=circle[..., :64, :64], denoise=0.5, policies=[Watching()], batch=1,
         progress=lambda stage, done, total: told.append((stage, done, total)))
    assert steps == [(0, 2, 449), (1, 2, 224)] * 2
    assert [entry[1:] for entry in told if entry[0] == "sampling"] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_image_of_another_size_is_scaled_and_sizes_follow_from_it(pipe, circle):
    opened = torch.cat([circle, torch.ones(1, 1, 128, 128)], 1)[..., :96, :]         # as `read_image` gives it
    base = {"steps": 1, "denoise": 0.5, "image": opened}
    assert pipe(RED, **base).pixels.shape[2:] == (96, 128) and pipe(RED, **base, width=64).pixels.shape[2:] == (48, 64)
    same = pipe(RED, **base, width=64, height=64)
    assert torch.equal(same.pixels, pipe(RED, **base, width=64, height=64, mask=torch.ones(1, 1, 96, 128)).pixels)
    white = torch.cat([circle, torch.zeros(1, 1, 128, 128)], 1)
    kept = pipe(RED, steps=1, image=white, mask=torch.zeros(1, 1, 128, 128)).pixels
    assert torch.equal(kept, torch.ones_like(kept))


@pytest.mark.parametrize("changes, words", [
    ({"sampler": "dmd", "steps": 1, "denoise": 0.5}, "starts from pure noise and cannot work on an image"),
    ({"sampler": "dmd", "steps": 1, "denoise": 1.0}, "starts from pure noise and cannot work on an image"),
    ({"image": torch.zeros(2, 3, 64, 64), "denoise": 0.5}, "2 start images for 1 images; give one"),
    ({"mask": torch.zeros(3, 1, 64, 64)}, "3 masks for 1 images"),
    ({"image": None, "denoise": 0.5}, "denoise has no effect without image"),
    ({"denoise": 0.5, "image": torch.zeros(1, 3, 8, 8)}, "image size is 8x8"),
])
def test_requests_that_cannot_start_from_an_image_are_refused_before_anything_is_encoded(pipe, changes, words,
                                                                                         monkeypatch):
    monkeypatch.setattr(Pipeline, "encode", None)
    with pytest.raises(ValueError, match=words):
        pipe(RED, **{"image": torch.zeros(1, 3, 64, 64), **changes})


def generate(monkeypatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pixart", "generate", *map(str, words)])
    return command_line.main()


def test_the_command_starts_from_an_image_and_keeps_what_is_masked(circle, tmp_path, monkeypatch):
    picture, mask, out = tmp_path / "in.png", tmp_path / "mask.png", tmp_path / "out.png"
    save_image(picture, circle[0, :, :96])
    save_image(mask, half(96, 128)[0].expand(3, -1, -1))
    base = (BLUE, "--steps", 2, "--seed", 2, "--device", "cpu", "--out", out, "--image", picture)
    assert generate(monkeypatch, *base, "--mask", mask) == 0
    before, after = (read_image(path)[:, :3] for path in (picture, out))
    assert after.shape == (1, 3, 96, 128) and torch.equal(after[..., 64:], before[..., 64:])
    assert (after - before)[..., :64].abs().max() > 0.2
    assert generate(monkeypatch, *base, "--denoise", 0.5, "--sampler", "tdm", "--cache", "fora", "--size", "64x64",
                    "--budget", "1.5x") == 0
    assert Image.open(out).size == (64, 64)


@pytest.mark.parametrize("words, told", [
    (("--denoise", 0.5), "--denoise has no effect without --image"), (("--mask", "m.png"), "--mask has no effect"),
    (("--image", "{}/in.png"), "--image needs --denoise"), (("--image", "{}/no.png", "--denoise", 0.5), "no.png"),
    (("--image", "{}/in.png", "--denoise", 1.5), "denoise is 1.5; it must lie above 0 and at most at 1"),
    (("--image", "{}/in.png", "--mask", "{}/small.png"), "the mask is 8 x 16 pixels and the image 16 x 16"),
    (("--image", "{}/in.png", "--denoise", 0.5, "--out", "{}/in.png"), "is what is read"),
    (("--image", "{}/in.png", "--denoise", 0.5, "--sampler", "dmd"), "starts from pure noise"),
])
def test_options_that_cannot_be_are_one_line(words, told, tmp_path: Path, monkeypatch, capsys):
    save_image(tmp_path / "in.png", torch.zeros(3, 16, 16))
    save_image(tmp_path / "small.png", torch.zeros(3, 16, 8))
    assert generate(monkeypatch, "a cat", *(str(word).format(tmp_path) for word in words)) == 1
    shown = capsys.readouterr().err
    assert told in shown and shown.count("\n") == 1
