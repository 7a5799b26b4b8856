"""ReNO inside the host: its own samplers' noise, changed along the gradient of rewards.

The host runs nodes in inference mode, whose tensors have no gradients, so everything happens outside of it, on copies.
"""
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...pixart.files.images import save_image
from ...pixart.generation.request import Request
from ...pixart.reward.generator import Generator, check_differentiable, recomputed
from ...pixart.reward.optimise import Iteration, NoiseRecipe, OptimisedNoise, optimise_noise
from ...pixart.reward.protocol import WeightedSum
from ...pixart.reward.record import history_summary, save_noise
from ...pixart.reward.strip import curve, with_curve
from ...pixart.reward.table import REWARDS, RewardChoice, open_rewards
from ...pixart.sampling.noise import ImageNoise
from ...pixart.sampling.samplers import SAMPLERS
from ...pixart.text.encoded import Encoded, join_encoded
from ...pixart.text.tokens import PromptReport
from .bare import bare_transformer
from .folders import MissingFile, clip_tokenizer_folder, reward_path
from .guest import advance_bar, bar, make_room, memory_handed_back, stoppable
from .node_text import RunningText
from .policy_run import RUN
from .pt_dit import holds_pt_dit
from .sampling import check_latent, images_of, in_format_of, renoise_seeds
from .text import is_ours
from .vae import check_vae
from .weights import copied

logger = logging.getLogger(__name__)

CURVE = (512, 160)          # pixels of the curve that the node returns


@dataclass(frozen=True)
class RenoWish:
    """What the user set on the node. weights: of every reward by its name in `REWARDS`, 0 for those left out."""

    prompt: str
    seed: int
    sampler: str
    steps: int
    rule: str
    weights: Mapping[str, float]
    recipe: NoiseRecipe
    save_memory: bool

    @property
    def choices(self) -> list[tuple[str, float]]:
        return [(name, weight) for name, weight in self.weights.items() if weight]


class FixedNoise:
    """NOISE of the host that is always the same, for latents of its own size. seed: of what samplers add later."""

    def __init__(self, noise: Tensor, seed: int) -> None:
        self.noise, self.seed = noise, seed

    def generate_noise(self, input_latent: dict) -> Tensor:
        samples = input_latent["samples"]
        if samples.shape != self.noise.shape:
            raise ValueError(f"this noise is for latents of shape {tuple(self.noise.shape)}, the sampler has one of "
                             f"{tuple(samples.shape)}; connect the latent that PixArt ReNO had")
        return self.noise.clone()


def missing_reward(weights: Mapping[str, float | None]) -> bool | str:
    """What VALIDATE_INPUTS says: True, or which file is missing of a reward with a weight."""
    for name, weight in weights.items():
        if weight:
            kind = REWARDS[name]
            try:
                reward_path(kind.file)
            except MissingFile:
                return f"{kind.title} is missing: put {kind.file} ({kind.source} on Hugging Face) into models/rewards"
    return True


def run_reno(model: Any, positive: list, vae: Any, latent: dict, wish: RenoWish) -> tuple:
    """Outputs of the node. Raises the host's own exception when it is interrupted, the best so far saved before.

    ValueError, FileNotFoundError for what is wrong, before any work.
    """
    if holds_pt_dit(model):
        raise ValueError("this MODEL is a PT-DiT, whose noise cannot be optimised; load a few-step PixArt model")
    if not is_ours(model):
        raise ValueError("optimising noise needs the MODEL of Load PixArt; this one comes from another loader")
    if not wish.choices:
        raise ValueError("every reward has the weight 0; give at least one a weight")
    check_unpatched(model)
    check_latent(model, latent)
    check_vae(vae)
    latent = in_format_of(model, latent)
    with torch.inference_mode(False), torch.enable_grad(), stoppable(), memory_handed_back():
        found = _optimise(model, positive, vae, latent, wish)
        if found.stopped:
            say_stopped(found, wish)
            raise KeyboardInterrupt
    return outputs(model, found, wish)


def check_unpatched(model: Any) -> None:
    """ValueError for a MODEL with policies or patches: the noise would be optimised for a model without them."""
    from comfy.patcher_extension import WrappersMP
    options = model.model_options.get("transformer_options", {})
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, RUN) or options.get("patches") or options.get("patches_replace"):
        raise ValueError("this MODEL has a cache, feedback, NAG or patches of another node, which optimising noise "
                         "does not follow; connect the MODEL from before that node")


def _optimise(model: Any, positive: list, vae: Any, latent: dict, wish: RenoWish) -> OptimisedNoise:
    from comfy.model_management import InterruptProcessingException
    say, device = RunningText(), model.load_device
    images, _, height, width = latent["samples"].shape
    request = Request((wish.prompt,) * images, "", 8 * height, 8 * width, wish.sampler, wish.steps, 1.0, wish.rule)
    check_differentiable(request)
    caption = caption_features(positive, images, wish.prompt)
    if model.model.model_config.pixart.micro_conditioning:
        check_told_size(positive[0][1], request.height, request.width)
    say("reading the rewards", always=True)
    reward = rewards_of(wish, device)
    reward.rewards[0](torch.zeros(1, 3, 64, 64), [wish.prompt])         # so that its errors come before any work
    say("reading the model", always=True)
    network = bare_transformer(model, working_dtype(device), 8 * max(height, width)).requires_grad_(False)
    decode, decoder_copy = differentiable_vae(vae, model, device)
    make_room(device)
    network, reward = network.to(device), reward.to(device)
    generate = Generator(network, decode, request, caption, sampler_noise(latent, wish, device))
    watch = RenoWatch(wish, say)
    with recomputed(network, decoder_copy) if wish.save_memory else nullcontext():
        return optimise_noise(generate, reward, (wish.prompt,) * images, generate.start, wish.recipe, watch,
                              (KeyboardInterrupt, InterruptProcessingException))    # layers of newer hosts raise it


def working_dtype(device: torch.device) -> torch.dtype:
    """Data type of the transformer: one with the range for gradients without loss scaling."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def rewards_of(wish: RenoWish, device: torch.device) -> WeightedSum:
    """In bfloat16 on a GPU, where three of them would take 12 GB."""
    choices = []
    for name, weight in wish.choices:
        said = missing_reward({name: weight}) if name != "judge" else True
        if said is not True:
            raise FileNotFoundError(said)
        choices.append(RewardChoice(name, weight, None if name == "judge" else reward_path(REWARDS[name].file)))
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    judged = all(name == "judge" for name, _ in wish.choices)
    return open_rewards(choices, tokenizer=clip_tokenizer_folder(), dtype=torch.float32 if judged else dtype)


def caption_features(positive: list, count: int, prompt: str) -> Encoded:
    """A copy of the prompt's features for each image. ValueError for conditioning that is not supported here."""
    if len(positive) != 1:
        raise ValueError(f"this conditioning has {len(positive)} parts; PixArt ReNO takes one prompt without regions")
    context, extra = positive[0]
    foreign = [key for key in ("control", "area", "mask", "gligen", "hooks") if extra.get(key) is not None]
    if foreign:
        raise ValueError(f"this conditioning has {', '.join(foreign)}, which PixArt ReNO does not follow; connect the "
                         "prompt itself")
    context = context[:1].detach().to("cpu", torch.float32).clone()
    mask = extra.get("attention_mask")
    keep = torch.ones(context.shape[:2], dtype=torch.bool) if mask is None else (mask[:1].to("cpu") != 0).clone()
    tokens = int(keep.sum())
    return join_encoded([Encoded(context, keep, [PromptReport(prompt, prompt, tokens, tokens, tokens)])] * count)


def check_told_size(extra: Mapping[str, Any], height: int, width: int) -> None:
    """ValueError where the size conditioning of the prompt is not the latent's size, which is used here."""
    told = extra.get("width") or width, extra.get("height") or height
    if told != (width, height):
        raise ValueError(f"the prompt tells the model {told[0]} x {told[1]}, the latent is {width} x {height}; set "
                         "width and height of PixArt Text Encode to 0")


def sampler_noise(latent: dict, wish: RenoWish, device: torch.device) -> Callable[[], Tensor]:
    """The draws of PixArt's own sampler nodes for this seed, so that iteration 1 gives their image."""
    from comfy import sample
    samples = latent["samples"]
    images = images_of(latent)
    seeds = renoise_seeds(wish.seed, images)
    later = ImageNoise(seeds, (4, *samples.shape[2:]), device, ahead=SAMPLERS[wish.sampler].noises(wish.steps))
    like = torch.zeros(len(samples), 4, *samples.shape[2:])
    first = [sample.prepare_noise(like, wish.seed, latent.get("batch_index")).to(device).clone()]
    return lambda: first.pop() if first else later()


def differentiable_vae(vae: Any, model: Any, device: torch.device) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """Latents as the transformer sees them -> images (B, 3, H, W) in 0..1, and the copy of the VAE that it uses."""
    from comfy import model_management
    model_management.load_models_gpu([vae.patcher])
    network: Any = plain_copy(vae.first_stage_model).to(device)
    unscaled, dtype = model.model.latent_format.process_out, vae.vae_dtype

    def decode(latents: Tensor) -> Tensor:
        return vae.process_output(network.decode(unscaled(latents).to(dtype)).float().clone())
    return decode, network


def plain_copy(network: nn.Module) -> nn.Module:
    """A copy with ordinary tensors, whatever the host's are."""
    memo: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        fresh = tensor.detach().to("cpu", copy=True)
        memo[id(tensor)] = nn.Parameter(fresh, requires_grad=False) if isinstance(tensor, nn.Parameter) else fresh
    return copied(network, memo).eval()


class RenoWatch:
    """Progress, preview and curve on the node; ends the work when the user does."""

    def __init__(self, wish: RenoWish, say: RunningText) -> None:
        self.wish, self.say, self.bar = wish, say, bar(wish.recipe.iterations)
        self.totals: list[float] = []
        self.began = time.monotonic()

    def __call__(self, done: Iteration, images: Tensor) -> None:
        self.totals.append(done.total[0])
        total = self.wish.recipe.iterations
        left = (time.monotonic() - self.began) / done.number * (total - done.number)
        dropped = any(done.dropped)
        self.say(f"iteration {done.number} of {total}: reward {done.total[0]:.4g}, best {done.best[0]:.4g}, "
                 f"{left:.0f} s left" + ("; dropped, not finite" if dropped else ""), always=dropped)
        sheet = with_curve(images[0].float().cpu(), self.totals, total)
        if advance_bar(self.bar, done.number, total, ("JPEG", sheet, max(sheet.size))):
            raise KeyboardInterrupt


def say_stopped(found: OptimisedNoise, wish: RenoWish) -> None:
    """Keep the best so far, as an interrupted node has no outputs, and show where."""
    import folder_paths
    folder = Path(folder_paths.get_output_directory()) / "pixart-reno"
    folder.mkdir(parents=True, exist_ok=True)
    name = free_name(folder, f"seed-{wish.seed}")
    noise = save_noise(folder / f"{name}-noise.safetensors", found.noise, {"prompt": wish.prompt, "seed": wish.seed})
    save_image(folder / f"{name}.png", found.images[0])
    text = f"stopped; {history_summary(found.history)}; kept as {folder.name}/{noise.name}"
    RunningText()(text, always=True)
    logger.info("%s", text)


def free_name(folder: Path, stem: str) -> str:
    """stem-1, stem-2, ...: the first under which nothing is kept yet."""
    return next(f"{stem}-{number}" for number in count(1) if not (folder / f"{stem}-{number}.png").exists())


def outputs(model: Any, found: OptimisedNoise, wish: RenoWish) -> tuple:
    from comfy.model_management import intermediate_device
    device = intermediate_device()
    image = found.images.movedim(1, -1).contiguous().to(device)
    text = history_summary(found.history)
    RunningText()(text, always=True)
    lines = [text, *(f"{each.number}: " + ", ".join(f"{name} {score[0]:.4g}" for name, score in each.scores.items())
                     + (" dropped, not finite" if each.dropped[0] else "") for each in found.history)]
    shown = curve([each.total[0] for each in found.history], wish.recipe.iterations, *CURVE)
    plot = torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).view(1, CURVE[1], CURVE[0], 3).float() / 255
    begin = {"samples": started(model, found.noise, wish).to(device)}
    return image, FixedNoise(found.noise.clone(), wish.seed), begin, "\n".join(lines), plot.to(device)


def started(model: Any, noise: Tensor, wish: RenoWish) -> Tensor:
    """The noise as a latent with which a sampler that adds none begins: the host's x at its first timestep."""
    first = SAMPLERS[wish.sampler].times(wish.steps, wish.rule)[0]
    sigma = float(model.get_model_object("model_sampling").sigmas[int(first)])
    return model.model.latent_format.process_out(noise * (1 + sigma ** 2) ** 0.5)
