"""What every method of training trains, small and with random weights: network, objective, second player."""
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pixart.config import PixArtConfig
from pixart.mini import SHIPPED
from pixart.model.controlnet import Controlled, PixArtControlNet
from pixart.model.flexdit_config import FlexDiTConfig, plain
from pixart.model.transformer import PixArtTransformer
from pixart.train.average import averaged_copy
from pixart.train.data import Batch, PreparedFolder, TrainingData
from pixart.train.draws import generator_for
from pixart.train.loop import Training, place_networks
from pixart.train.objectives import Consistency, ControlDiffusion, Diffusion
from pixart.train.rivals import Rival, TwoPlayers

from ..instruments.networks import with_random_weights
from ..instruments.setting import need

FLEXDIT_DEPTH = 8               # the least that the usual segments take
FAKE_RATE = 1e-3                # of the second player


@dataclass(frozen=True)
class Trained:
    """A training before its first step."""

    model: nn.Module
    objective: Any
    data: TrainingData
    fake: nn.Module | None = None       # the second player, where there is one

    @property
    def kind(self) -> Callable[..., Training]:
        """The class of its training."""
        return Training if self.fake is None else partial(TwoPlayers, rival=Rival(self.fake, FAKE_RATE))

    def copy(self) -> "Trained":
        """Networks of its own; what is frozen is shared."""
        return replace(self, model=deepcopy(self.model), fake=deepcopy(self.fake))

    def trainable(self) -> dict[str, nn.Parameter]:
        """All parameters to be trained, of both players."""
        both = {"": self.model, "fake ": self.fake}
        return {start + name: p for start, network in both.items() if network is not None
                for name, p in network.named_parameters() if p.requires_grad}

    def loss_on(self, device: str, size: int) -> float:
        """Loss of step 0 with `size` images, by the objective alone; for two players the sum."""
        trained = self.copy()
        place_networks(trained.objective, torch.device(device))
        networks = [network.to(device).train() for network in (trained.model, trained.fake) if network is not None]
        generator = generator_for(0, 0, slice(0, size), size)
        batch = self.data.batch(generator, size).to(torch.device(device))
        with torch.no_grad():
            return float(loss_of(trained.objective, networks, batch, generator))


def loss_of(objective: Any, networks: list[nn.Module], batch: Batch, generator: torch.Generator) -> Tensor:
    """The objective's loss. networks: the one that is trained, or student and fake."""
    if len(networks) == 1:
        return objective(networks[0], averaged_copy(networks[0]), batch, generator)
    turn = objective.turn(networks[0], batch, generator)
    return sum(turn.loss(name, *networks) for name in objective.order)


def fresh(config: PixArtConfig, seed: int = 1) -> PixArtTransformer:
    return with_random_weights(PixArtTransformer(config), seed)


def diffusion(config: PixArtConfig, data: PreparedFolder) -> Trained:
    return Trained(fresh(config).requires_grad_(True), Diffusion(data), data)


def aligned(config: PixArtConfig, data: PreparedFolder) -> Trained:
    """With judge A of PixArt-mini, whose files every installation has."""
    need("diffusers")           # which reads the VAE
    from pixart.train.alignment import Alignment
    from pixart.train.frozen_features import with_alignment
    network, kind = with_alignment(fresh(config).requires_grad_(True), Alignment("judge", vae=SHIPPED.vae))
    return Trained(network, kind(data), data)


def lcm(config: PixArtConfig, data: PreparedFolder) -> Trained:
    return Trained(fresh(config).requires_grad_(True), Consistency(data, fresh(config)), data)


def controlnet(config: PixArtConfig, data: PreparedFolder) -> Trained:
    network = with_random_weights(PixArtControlNet(config, config.depth // 2), 2).requires_grad_(True)
    return Trained(Controlled(fresh(config), network), ControlDiffusion(data), data)


def adapted(config: PixArtConfig, data: PreparedFolder, consistency: bool = False, dora: bool = False) -> Trained:
    need("peft")
    from pixart.train.lcm_lora import ConsistencyLora
    from pixart.train.lora import add_lora

    from .models import random_ups
    model = add_lora(fresh(config), 4, 4.0, dora=dora)
    random_ups(model)           # after the first step only; before it half the adapters have no gradient
    return Trained(model, ConsistencyLora(data) if consistency else Diffusion(data), data)


def ilf(config: PixArtConfig, data: PreparedFolder) -> Trained:
    from pixart.model.feedback import Feedback, WithFeedback
    from pixart.train.inner_loop import InnerLoopDistillation
    feedback = with_random_weights(Feedback(config, 0, config.depth - 1), 2).requires_grad_(True)
    return Trained(WithFeedback(fresh(config), feedback), InnerLoopDistillation(data), data)


def flexdit(config: PixArtConfig, data: PreparedFolder) -> Trained:
    from pixart.model.flexdit import FlexDiT
    model = FlexDiT(FlexDiTConfig.of(replace(config, depth=FLEXDIT_DEPTH)))
    return Trained(with_random_weights(model, 1).requires_grad_(True), Diffusion(data), data)


def pt_dit(config: PixArtConfig, data: PreparedFolder) -> Trained:
    from pixart.pt_dit.config import PTDiTConfig
    from pixart.pt_dit.transformer import PTDiT
    from pixart.train.rectified_flow import RectifiedFlow
    model = PTDiT(PTDiTConfig(**plain(replace(config, micro_conditioning=False)), window=4, proxy=2))
    return Trained(with_random_weights(model, 1).requires_grad_(True), RectifiedFlow(data), data)


def tdm(config: PixArtConfig, data: PreparedFolder) -> Trained:
    from pixart.train.trajectory import Trajectory
    return two_players(config, Trajectory, data)


def dmd(config: PixArtConfig, data: PreparedFolder) -> Trained:
    from pixart.train.one_step import OneStep
    return two_players(config, OneStep, data)


def two_players(config: PixArtConfig, game: Callable[..., Any], data: PreparedFolder) -> Trained:
    student, fake = (fresh(config, seed).requires_grad_(True) for seed in (2, 3))
    return Trained(student, game(data, fresh(config)), data, fake)


def rewarded(config: PixArtConfig, data: PreparedFolder) -> Trained:
    """PixArt-mini's student and judge A, as a reward needs images of something."""
    for package in ("peft", "diffusers"):
        need(package)
    from pixart.checkpoint import load
    from pixart.train.ascent_files import ascent_of
    from pixart.train.lora import add_lora
    from pixart.train.method_settings import RewardLoraMethod

    from .models import random_ups
    captions = data.folder / "captions.txt"
    sentences = "a large red circle in the centre on white", "a small blue star on the left on black"
    captions.write_text("\n".join(sentences))
    student = load(SHIPPED.student, dtype=torch.float32)
    model = add_lora(student, 4, 4.0)
    random_ups(model)
    objective = ascent_of(RewardLoraMethod(steps=4, gradient_steps=1, relevance=0.5), captions, student.config)
    return Trained(model, objective, objective.data)


METHODS: dict[str, Callable[[PixArtConfig, PreparedFolder], Trained]] = {
    "diffusion": diffusion, "aligned": aligned, "lcm": lcm, "controlnet": controlnet, "lora": adapted,
    "dora": partial(adapted, dora=True), "lcm-lora": partial(adapted, consistency=True), "tdm": tdm, "dmd": dmd,
    "ilf": ilf, "flexdit": flexdit, "pt-dit": pt_dit, "reward-lora": rewarded}
