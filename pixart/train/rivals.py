"""The training loop of two players: a student, and a network that learns what the student generates.

One step of the loop is one step of each, in the order of the objective, on the same batches. What is written, resumed
and told is that of the ordinary loop, with the second player's weights and moments beside the student's.
"""
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .data import Batch, TrainingData
from .loop import Training, WatchStep, set_recompute, train_averages
from .loop_config import LoopConfig
from .optimizers import optimizers
from .precision import check_precision
from .readings import check_finite_reading
from .state import restore, trainable


class Turn(Protocol):
    """One batch of a step."""

    def loss(self, player: str, student: nn.Module, fake: nn.Module) -> Tensor:
        """Scalar loss of "student" or "fake"."""
        ...


class Game(Protocol):
    """What two players minimise. `Trajectory` and `OneStep` are two."""

    @property
    def order(self) -> tuple[str, str]:
        """"student" and "fake", the one that moves first before the other."""
        ...

    def turn(self, student: nn.Module, batch: Batch, generator: torch.Generator) -> Turn:
        """What happens before either moves."""
        ...


@dataclass(frozen=True)
class Rival:
    """The second player: a network, trained from the first step on at a constant rate, and without an average."""

    model: nn.Module
    learning_rate: float
    clip: float = math.inf            # maximum gradient norm

    def config(self, student: LoopConfig) -> LoopConfig:
        """The loop's settings as they hold for this player."""
        return replace(student, learning_rate=self.learning_rate, clip=self.clip, warmup=0, cooldown=0,
                       schedule="linear")


@dataclass
class Player:
    """A network with what moves it."""

    model: nn.Module
    prepared: nn.Module
    steppers: list[Any]
    config: LoopConfig


class TwoPlayers(Training):
    """A `Training` whose objective is a `Game`, with a second network."""

    def __init__(self, model: nn.Module, objective: Any, data: TrainingData, config: LoopConfig,
                 settings: Mapping[str, object] | None = None, cpu: bool = False, *, rival: Rival) -> None:
        """Raises ValueError where the launcher shards parameters, which works for one network only."""
        facts = {"fake_learning_rate": rival.learning_rate, "fake_clip": rival.clip}
        self.rival = rival
        super().__init__(model, objective, data, config, {**facts, **(settings or {})}, cpu)
        if self.sharded:
            raise ValueError("FSDP spreads one network; this method trains two. Launch without --use_fsdp, and save "
                             "memory by train.recompute, train.optimizer=adamw8bit or method.rank")
        check_precision(rival.model, self.config.precision)
        set_recompute(rival.model.to(self.device).train(), self.config.recompute)
        chosen = rival.config(self.config)
        prepared, *steppers = self.accelerator.prepare(rival.model, *optimizers(rival.model, chosen))
        self.players = {"student": Player(model, self.prepared, self.steppers, self.config),
                        "fake": Player(rival.model, prepared, steppers, chosen)}

    @property
    def networks(self) -> list[nn.Module]:
        return [*super().networks, self.rival.model]

    @property
    def all_steppers(self) -> list[Any]:
        return [stepper for player in self.players.values() for stepper in player.steppers]

    def step(self, number: int) -> None:
        """One update of each player; on a CPU a NaN is found before it reaches the weights."""
        game: Any = self.objective
        turns: list[Turn] = []
        for batch, generator in self.parts(number):         # read without autocast, which cannot join float16 on a CPU
            with self.accelerator.autocast():
                turns.append(game.turn(self.prepared, batch, generator))
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name in game.order:
            found[name] = self.move(name, number, turns)
        self.move_averages()
        self.readings.add(number + 1, *found["student"], rival=found["fake"][0])

    def move(self, name: str, number: int, turns: Sequence[Turn]) -> tuple[Tensor, Tensor]:
        """Update one player; its mean loss, and the norm of its gradient before it was cut."""
        player, losses = self.players[name], []
        student, fake = (self.players[who].prepared for who in ("student", "fake"))
        for turn in turns:
            with self.accelerator.accumulate(player.prepared):
                with self.accelerator.autocast():
                    loss = turn.loss(name, student, fake)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        mean = self.accelerator.reduce(torch.stack(losses).mean(), "mean")
        norm = self.cut(player)
        if self.waits:
            check_finite_reading(f"loss of the {name}", number, float(mean), "this step changed nothing more")
            if not self.readings.infinite_norms:
                check_finite_reading(f"gradient of the {name}", number, float(norm), "this step changed nothing more")
        self.advance(player.steppers, player.config, number, norm)
        return mean, norm

    def cut(self, player: Player) -> Tensor:
        """Of this player's gradients alone: accelerate would unscale those of both."""
        for stepper in player.steppers:
            self.accelerator.unscale_gradients(stepper)
        return torch.nn.utils.clip_grad_norm_(player.prepared.parameters(), player.config.clip)

    def state(self, step: int) -> dict[str, object]:
        fake = self.players["fake"]
        return {**super().state(step), "fake": {"model": trainable(fake.model),
                                                "optimizers": [one.state_dict() for one in fake.steppers]}}

    def load(self, state: dict, path: Path) -> int:
        step = super().load(state, path)
        fake, saved = self.players["fake"], state["fake"]
        restore(trainable(fake.model), saved["model"], path)
        for stepper, moments in zip(fake.steppers, saved["optimizers"], strict=True):
            stepper.load_state_dict(moments)
        return step

    def finish(self) -> None:
        self.accelerator.unwrap_model(self.players["fake"].prepared, keep_fp32_wrapper=False)
        set_recompute(self.rival.model, False)
        super().finish()


def train_rivals(model: nn.Module, rival: Rival, game: Any, data: TrainingData, config: LoopConfig,
                 folder: str | Path, report: Callable[[int, float], None] | None = None,
                 watch: Sequence[WatchStep] = (),
                 settings: Mapping[str, object] | None = None, cpu: bool = False) -> dict[float, nn.Module]:
    """Train the student `model` and its rival in place; all moving averages of the student, as `train_averages`."""
    return train_averages(model, game, data, config, folder, report, watch, settings, cpu,
                          make=partial(TwoPlayers, rival=rival))
