"""Where in a sampling of the host a pass belongs, and what its rows are."""
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...pixart.model.policy import Lane, Policy, Step

RUN = "pixart_policies"         # the run's place in transformer_options
NEGATIVE = 1                    # what the host calls a negative prompt in cond_or_uncond


class PolicyRun:
    """The policies of one sampling. Lives in the transformer_options of that sampling and nowhere else.

    images: how many the sampling makes. model_sampling: the host's, which knows the timestep of a sigma.
    compiling: the arguments of the host's compile node, for a model that is compiled; policies run outside of the graph
    of the whole model, so blocks are compiled one by one for them.
    """

    def __init__(self, policies: Sequence[Policy], images: int, model_sampling: Any, guider: object,
                 compiling: Mapping[str, Any] | None = None) -> None:
        self.policies, self.images = list(policies), images
        self.model_sampling, self.guider, self.token = model_sampling, guider, object()
        self.schedule: list[float] = []
        self.schedule_tensor: Tensor | None = None
        self.sigma = -1.0
        self.visits: Counter[Hashable] = Counter()
        self.unguided = 0           # rows with a negative prompt that were left out
        self.compiling = compiling
        self.compiled: dict[nn.Module, nn.Module] = {}

    def block(self, block: nn.Module) -> nn.Module:
        """The block as it is to be run: compiled where the model is. One graph serves all blocks."""
        if self.compiling is None or hasattr(block, "_orig_mod"):       # a block that is compiled already
            return block
        if block not in self.compiled:
            self.compiled[block] = cast(nn.Module, torch.compile(block, **self.compiling))
        return self.compiled[block]

    def step(self, options: Mapping, rows: int, *place: Hashable) -> Step | None:
        """The step of a pass of so many rows, or None where the caller is not the host's sampling.

        place: what tells passes of the same prompt apart beside that (size, device).
        """
        sigmas, sample_sigmas = options.get("sigmas"), options.get("sample_sigmas")
        if sigmas is None or sample_sigmas is None or len(sample_sigmas) < 2:
            return None
        schedule = self.read_schedule(sample_sigmas)
        sigma = sigmas.flatten()[:1].cpu()
        lanes = self.lanes(options, rows, sigma.item(), place)
        if lanes is None:
            return None
        index = index_of(sigma.item(), schedule)
        return Step(index, len(schedule) - 1, float(self.model_sampling.timestep(sigma)), lanes, self.token)

    def read_schedule(self, sample_sigmas: Tensor) -> list[float]:
        """The values of a schedule, read from the device once per sampling, not in every pass."""
        if sample_sigmas is not self.schedule_tensor:
            self.schedule, self.schedule_tensor = sample_sigmas.tolist(), sample_sigmas
        return self.schedule

    def lanes(self, options: Mapping, rows: int, sigma: float, place: tuple[Hashable, ...]) -> tuple | None:
        """Prompt, positive or negative, image and place of each row; None where the host did not say.

        The same row may come several times at one sigma: for a guidance that asks once more with blocks left out, as
        one tile of an image after the other, or in both halves of a second-order step. So the number of the visit
        is part of the name. Rows that are not images (batched tiles) lie in an order only their pack knows; then
        the names hold for this combination of prompts only.
        """
        prompts, kinds = options.get("uuids") or (), options.get("cond_or_uncond") or ()
        if not prompts or len(prompts) != len(kinds) or rows % len(prompts):
            return None
        if sigma != self.sigma:
            self.sigma, self.visits = sigma, Counter()
        each = rows // len(prompts)
        company = () if each == self.images else tuple(prompts)
        names = [(*prompt, row) for prompt in zip(prompts, kinds) for row in range(each)]
        visits = [self.visit((*name, place, company)) for name in names]
        return tuple(Lane((row, place, company, visit), prompt, kind == NEGATIVE)
                     for (prompt, kind, row), visit in zip(names, visits))

    def guides(self, sigmas: Tensor, options: Mapping) -> bool:
        """Whether the step at these sigmas (B,) takes the negative prompt."""
        own = [policy for policy in self.policies if type(policy).guides is not Policy.guides]
        sample_sigmas = options.get("sample_sigmas")
        if not own or sample_sigmas is None or len(sample_sigmas) < 2:
            return True
        index = index_of(sigmas.flatten()[0].item(), self.read_schedule(sample_sigmas))
        return all(policy.guides(index, len(sample_sigmas) - 1) for policy in own)

    def visit(self, name: Hashable) -> int:
        self.visits[name] += 1
        return self.visits[name]

    def end(self) -> None:
        """Release the policies and all they keep, even where something still refers to this object."""
        self.policies.clear()
        self.compiled.clear()
        self.schedule_tensor = self.guider = self.model_sampling = None


def index_of(sigma: float, schedule: Sequence[float]) -> int:
    """The step that a sigma belongs to: of a falling (or rising) schedule, the last one that has been reached."""
    falling = schedule[0] >= schedule[-1]
    near = 1e-4 * abs(sigma)            # samplers recompute sigmas through logarithms
    reached = [i for i, each in enumerate(schedule[:-1])
               if (each >= sigma - near if falling else each <= sigma + near)]
    return reached[-1] if reached else 0
