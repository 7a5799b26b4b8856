"""How long, how fast and how precisely to train: the settings of the loop that every trainer shares."""
import math
from dataclasses import dataclass

from .precision import TRAINING_PRECISIONS

OPTIMIZERS = ("adamw", "adamw8bit", "came", "muon")
SCHEDULES = ("linear", "cosine")
LARGEST_SEED = 1 << 42          # a million times as many, one for each step, fit into 64 bits


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train."""

    steps: int                    # number of training steps; may be raised to train longer
    batch: int                    # images per step and process
    learning_rate: float          # maximum learning rate
    warmup: int = 100             # steps over which the learning rate rises from zero
    cooldown: int = 0             # last steps, over which it falls to zero (schedule linear)
    schedule: str = "linear"      # linear: constant between warm-up and cooldown; cosine: falls to zero over all steps
    optimizer: str = "adamw"      # adamw, adamw8bit, came, or muon (orthogonalised momentum, for block matrices)
    weight_decay: float = 0.0     # decoupled weight decay, multiplied by the learning rate
    betas: tuple[float, float] = (0.9, 0.999)   # decay rates of Adam's two moments
    epsilon: float = 1e-8         # Adam: added to the root of the second moment
    clip: float = 1.0             # maximum gradient norm
    ema: float = 0.95             # decay of the average of the weights (EMA), which is the result; 0: no averaging
    ema_decays: tuple[float, ...] = ()   # decays of further averages, written next to the result
    precision: str = "no"         # no, bf16 or fp16 autocast, or auto (what is fastest on this machine)
    seed: int = 0                 # seed of the order of the images, noise and timesteps
    save_every: int = 500         # steps between two saved states
    log_every: int = 50           # steps between two log lines; losses on a GPU are read and checked then
    accumulation: int = 1         # batches whose gradients are accumulated into one step
    mup_base_width: int = 0       # muP: model width for which learning_rate was tuned; 0: standard parametrisation
    recompute: bool = False       # recompute activations inside blocks: less memory, 1/3 more time
    compile: bool = False         # compile blocks with torch.compile: faster steps, a minute or more to start
    random_on_device: bool = False   # draw noise on the GPU: faster, but not the same noise as on a CPU
    threads: int = 0              # CPU threads; 0: torch's choice. Use 1 for small networks next to other programs

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or not 0 < self.learning_rate < math.inf:
            raise ValueError(f"steps {self.steps}, batch {self.batch} and learning rate {self.learning_rate} "
                             "must be positive")
        for name, least in (("accumulation", 1), ("save_every", 1), ("log_every", 1), ("warmup", 0), ("cooldown", 0),
                            ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if abs(self.seed) > LARGEST_SEED:
            raise ValueError(f"seed is {self.seed}; it must lie between -{LARGEST_SEED} and {LARGEST_SEED}")
        for name in ("weight_decay", "epsilon"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number from 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; both must be at least 0 and below 1")
        if not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; the largest gradient norm must be positive")
        for name, known in (("optimizer", OPTIMIZERS), ("precision", TRAINING_PRECISIONS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; use {', '.join(known)}")
        self._check_decays()
        self._check_combinations()

    def _check_decays(self) -> None:
        for decay in self.decays:
            if not 0 <= decay < 1:
                raise ValueError(f"moving average decay is {decay}; it must be at least 0 and below 1")
        if len(set(self.decays)) < len(self.decays):
            raise ValueError(f"ema {self.ema} and ema_decays {self.ema_decays} name a decay twice; each must differ")

    def _check_combinations(self) -> None:
        if self.mup_base_width < 0 or (self.mup_base_width and self.optimizer in ("muon", "came")):
            raise ValueError(f"mup_base_width is {self.mup_base_width} with {self.optimizer}; it is a width, and its "
                             "rules are Adam's: use adamw or adamw8bit")
        if self.schedule == "cosine" and self.cooldown:
            raise ValueError(f"cooldown is {self.cooldown} with the schedule cosine, which falls to zero by itself; "
                             "set cooldown to 0, or schedule to linear")

    @property
    def decays(self) -> tuple[float, ...]:
        """Of all averages that are kept; the first is the result."""
        return (self.ema, *self.ema_decays)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, 0 .. steps - 1."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "cosine":
            share = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
            return self.learning_rate * min(rise, (1 + math.cos(math.pi * share)) / 2)
        fall = min(1.0, (self.steps - step) / max(1, self.cooldown))
        return self.learning_rate * min(rise, fall)
