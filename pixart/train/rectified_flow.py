"""Training a PT-DiT: the velocity of rectified flow at noise levels that are most often in the middle.

Source: the published sampler and loss of PT-DiT; logit-normal levels as in Stable Diffusion 3 (arXiv 2403.03206,
section 3.1), shifted with the size of the image in training as in sampling.
"""
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.merged import owned
from ..dtypes import dtype_named
from ..pt_dit.config import AUTOENCODERS, PTDiTConfig
from ..pt_dit.load import load_pt_dit, save_pt_dit
from ..pt_dit.transformer import PTDiT
from ..sampling.flow import FLOW_SCALE, flow_latent, flow_shift_of, shift_share
from .data import Batch, PreparedFolder, TrainingData
from .draws import draw_rows
from .initialize import initialize_pt_dit
from .job import TrainingJob
from .method_settings import PTDiTMethod
from .objectives import draw_noise
from .settings import ModelSettings, Settings
from .starting import attention
from .transfer import send

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RectifiedFlow:
    """Mean squared error of the velocity, image minus noise; a share of captions is dropped, for guidance.

    centre, spread: mean and standard deviation of the logit of the share of noise, before it is shifted; spread 0: all
    shares alike. flow_side: side in pixels of the image whose shares are not shifted.
    """

    data: TrainingData
    caption_dropout: float = 0.1
    centre: float = 0.0
    spread: float = 1.0
    flow_side: int = 512

    def __call__(self, model: nn.Module, average: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        count, device = len(batch.latents), batch.latents.device
        share = send(self.shares(count, generator), device)
        dropped = send(draw_rows(torch.rand, (count,), generator), device) < self.caption_dropout
        noise, batch = draw_noise(batch, generator), self.data.without_caption(batch, dropped)
        height, width = (8 * side for side in batch.latents.shape[-2:])
        share = shift_share(share, flow_shift_of(height, width, self.flow_side))                 # (B,)
        made = model(flow_latent(batch.latents, noise, share), FLOW_SCALE * share, batch.context, batch.mask)
        return (made.float() - (batch.latents - noise)).square().mean()

    def shares(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) shares of noise in 0..1, not shifted yet."""
        if self.spread == 0:
            return draw_rows(torch.rand, (count,), generator)
        return (self.centre + self.spread * draw_rows(torch.randn, (count,), generator)).sigmoid()


def flow_job(settings: Settings, data: PreparedFolder) -> TrainingJob:
    """All weights of a PT-DiT, from a checkpoint or from scratch."""
    model, method = starting_pt_dit(settings.model), settings.method
    if model.config.autoencoder != "sd":
        logger.warning("this PT-DiT makes latents of %s; images must have been prepared with it",
                       AUTOENCODERS[model.config.autoencoder])
    assert isinstance(method, PTDiTMethod)

    def write(average: nn.Module, file: Path) -> Path:
        assert isinstance(average, PTDiT)
        return save_pt_dit(file, average, dtype_named(settings.output.dtype))
    objective = RectifiedFlow(data, method.caption_dropout, method.centre, method.spread, model.config.flow_side)
    return TrainingJob(model, objective, data, settings.output.file, write, model.config,
                       {"window": model.config.window, "proxy": model.config.proxy})


def starting_pt_dit(settings: ModelSettings) -> PTDiT:
    attend = attention(settings)
    if settings.base is not None:
        return owned(load_pt_dit(settings.base, torch.float32, attend=attend)).requires_grad_(True)
    assert isinstance(settings.new, PTDiTConfig)
    return initialize_pt_dit(PTDiT(settings.new, attend=attend), settings.seed)
