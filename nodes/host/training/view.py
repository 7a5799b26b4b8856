"""What the user sees of a training in the host: progress and previews on the node, and files kept up to date."""
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....pixart.train.data import PreparedFolder
from ....pixart.train.job import TrainingJob
from ....pixart.train.report import Record, duration
from ..encoders import ClipEncoder, vae_decoder
from ..guest import advance_bar, bar
from ..node_text import RunningText
from .wish import TrainingWish

if TYPE_CHECKING:
    from PIL.Image import Image

    from ....pixart.train.preview import Preview, Subject

logger = logging.getLogger(__name__)


class TrainingWatch:
    """Progress of the training on the node; keeps the weights on disk, and stops when the user asks for it."""

    def __init__(self, job: TrainingJob, wish: TrainingWish, save_every: int, say: RunningText) -> None:
        self.job, self.wish, self.save_every, self.bar, self.say = job, wish, save_every, bar(wish.steps), say
        self.loss: float | None = None

    def __call__(self, record: Record, average: nn.Module) -> None:
        asked = advance_bar(self.bar, record.step, record.steps)
        self.say(self.line(record))
        if asked or record.step % self.save_every == 0:
            self.job.save(average)
        if asked:
            self.say(f"stopped at step {record.step} of {record.steps}; run the node again to go on", always=True)
            logger.info("%s: stopped at step %d; %s holds what was learned so far, and the same node goes on from "
                        "there", self.wish.name, record.step, self.wish.file)
            raise KeyboardInterrupt

    def line(self, record: Record) -> str:
        """Step, loss (its running mean: single ones jump) and time left."""
        for outcome in record.known:
            self.loss = outcome.loss if self.loss is None else 0.95 * self.loss + 0.05 * outcome.loss
        loss = "" if self.loss is None else f"loss {self.loss:.4f}, "
        return f"training: step {record.step} of {record.steps}, {loss}{duration(record.left)} left"


def preview_of(wish: TrainingWish, job: TrainingJob, data: PreparedFolder, clip: Any, vae: Any,
               model: Any) -> "Preview | None":
    """Images of the prompt now and then, onto the node and into a file; None where there is no prompt."""
    if not wish.preview_prompt.strip() or wish.preview_every < 1:
        return None
    if clip is None or vae is None:
        raise ValueError("a preview needs clip and vae; connect both, or leave preview_prompt empty")
    from ....pixart.train.preview import Preview
    sheets = bar(wish.steps)

    def show(record: Record, sheet: "Image") -> None:
        if advance_bar(sheets, record.step, record.steps, ("JPEG", sheet, max(sheet.size))):
            raise KeyboardInterrupt
    return Preview(subject_of(wish, job, data, clip, vae, model), wish.preview_every, job.parts, wish.run / "previews",
                   show)


def subject_of(wish: TrainingWish, job: TrainingJob, data: PreparedFolder, clip: Any, vae: Any,
               model: Any) -> "Subject":
    """What the preview shows; a ControlNet follows the first edge map of the data, at that image's size."""
    from ....pixart.generation.request import Request
    from ....pixart.train.preview import Subject
    config, decode, hints, edges = job.config, vae_decoder(vae, model), None, None
    height = width = config.resolution if wish.resolution == "auto" else int(wish.resolution)
    if wish.method == "controlnet":
        shard = next(iter(data.buckets.values()))[0]
        hints = shard.rows("hints", torch.tensor([0])).float()
        edges = decode(hints)
        height, width = edges.shape[-2:]
    prompt = " ".join(wish.preview_prompt.split())
    few = {"sampler": "lcm", "steps": 4} if wish.method == "lcm-lora" else {"sampler": "dpm", "steps": 14}
    request = Request((prompt,), height=height, width=width, seed=wish.start_seed,
                      guidance=4.5 if config.resolution > 128 else 2.5, **few)
    encoder = ClipEncoder(clip)
    caption, null = (encoder.encode([text], config.caption_tokens, config.cleans_captions) for text in (prompt, ""))
    return Subject(request, caption, null, decode, edges, hints)


def last_sheet(folder: Path) -> tuple[Tensor | None, Path | None]:
    """The newest preview, (H, W, 3) in 0..1, and its file."""
    from ....pixart.control.images import opaque
    from ....pixart.files.images import read_image
    sheets = sorted(folder.glob("step-*.png"))
    return (opaque(read_image(sheets[-1]))[0].permute(1, 2, 0), sheets[-1]) if sheets else (None, None)
