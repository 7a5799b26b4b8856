"""The sampling that calibration data are taken from: prompts, their text features, and the checkpoint's sampler."""
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..checkpoint.load import OpenCheckpoint
from ..generation.request import Request
from ..mini import SHIPPED, is_mini
from ..progress import Progress
from ..sampling.preset import Preset, found_in
from ..text.encoded import Encoded
from ..text.on_demand import T5OnDemand
from ..text.quantized import Bits

PASSES_PER_IMAGE = 4          # that are recorded, on average, if there are prompts enough


@dataclass(frozen=True)
class Calibration:
    """What is sampled for calibration, with the sampler the checkpoint is for, at the size it was trained on."""

    checkpoint: OpenCheckpoint
    sampling: Preset
    prompts: tuple[str, ...]
    t5: Path
    bits: Bits
    passes: int
    seed: int

    @classmethod
    def of(cls, checkpoint: OpenCheckpoint, prompts: list[str], t5: Path | None, bits: Bits | None, passes: int,
           seed: int) -> "Calibration":
        """t5: by default that of PixArt-mini, for its models alone; ValueError for others."""
        mini = is_mini(checkpoint.config)
        if t5 is None and not mini:
            raise ValueError("prompts need a T5 encoder, the one this model was trained with; give --t5")
        weights = checkpoint.weights
        sampling = found_in([(weights.path, weights.metadata)], 2.5 if mini else 4.5)
        taken = prompts[:max(1, passes // PASSES_PER_IMAGE)]
        return cls(checkpoint, sampling, tuple(taken), t5 or SHIPPED.t5, bits or (16 if t5 is None else 8), passes,
                   seed)

    @property
    def about(self) -> dict[str, object]:
        """What the data depend on, beside the weights."""
        return {"prompts": self.prompts, "t5": self.t5, "bits": self.bits, "passes": self.passes, "seed": self.seed,
                "sampler": self.sampling.sampler, "steps": self.sampling.steps, "guidance": self.sampling.guidance}

    def encoded(self, device: torch.device, told: Progress | None = None) -> tuple[Request, Encoded, Encoded]:
        """The request, the features of its prompts, and those of the empty one; T5 is freed again."""
        config, wanted = self.checkpoint.config, self.sampling
        request = Request(self.prompts, height=config.resolution, width=config.resolution, sampler=wanted.sampler,
                          steps=wanted.steps, guidance=wanted.guidance, rule=wanted.rule, seed=self.seed)
        encoder = T5OnDemand(self.t5, self.bits, device)
        captions, null = (encoder.encode(texts, config.caption_tokens, config.cleans_captions,
                                         told and partial(told, "reading T5")) for texts in (list(self.prompts), [""]))
        encoder.make_room(False)
        return request, captions, null
