"""How long, how fast and how precisely to train: the settings of the loop that every trainer shares."""
from dataclasses import dataclass

from .precision import PRECISIONS

OPTIMIZERS = ("adamw", "adamw8bit", "came", "muon")


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train."""

    steps: int
    batch: int                    # pictures at a time on each process
    learning_rate: float
    warmup: int = 100             # steps over which the learning rate rises from zero
    cooldown: int = 0             # last steps over which it falls to zero
    optimizer: str = "adamw"      # or "adamw8bit", "came", or "muon": orthogonalised momentum for the blocks' matrices
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip: float = 1.0             # largest gradient norm
    ema: float = 0.95             # decay of the moving average of the weights; 0: no averaging
    precision: str = "no"         # "bf16" or "fp16" autocast, "no", or "auto": what suits the machine
    seed: int = 0
    save_every: int = 500
    log_every: int = 50
    accumulation: int = 1         # batches whose gradients make one step
    mup_base_width: int = 0       # muP: width at which learning_rate was found, whatever the model's; 0: standard
    recompute: bool = False       # forget activations inside blocks and compute them again: less memory, 1/3 more time

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or self.learning_rate <= 0:
            raise ValueError(f"steps {self.steps}, batch {self.batch} and learning rate {self.learning_rate} "
                             "must be positive")
        for name in ("accumulation", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"moving average decay is {self.ema}; it must be at least 0 and below 1")
        if self.clip <= 0:
            raise ValueError(f"clip is {self.clip}; the largest gradient norm must be positive")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.optimizer!r}; use {', '.join(OPTIMIZERS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"unknown precision {self.precision!r}; use {', '.join(PRECISIONS)}")
        if self.mup_base_width < 0 or (self.mup_base_width and self.optimizer in ("muon", "came")):
            raise ValueError(f"mup_base_width is {self.mup_base_width} with {self.optimizer}; it is a width, and its "
                             "rules are Adam's: use adamw or adamw8bit")
        if self.optimizer == "muon" and self.precision == "fp16":
            raise ValueError("muon works with precision bf16 or no: fp16 scales one optimizer's gradients only")

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, 0 .. steps - 1."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        fall = min(1.0, (self.steps - step) / max(1, self.cooldown))
        return self.learning_rate * min(rise, fall)
