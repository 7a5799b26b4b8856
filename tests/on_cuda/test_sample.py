"""Networks, policies and samplers on a CUDA device: what they give, and what a step copies there or waits for."""
from dataclasses import replace

import pytest
import torch
from caching import tiny
from on_cuda.pretend import GPU, Cuda, CudaTensor, bare
from torch import Tensor, nn

from pixart.accelerate import (
    BranchSchedule,
    DeltaCache,
    ReuseBranches,
    TGate,
    delta_spans,
    fora,
    t_gate_schedule,
)
from pixart.config import KVCompression
from pixart.control.control_image import ControlImage
from pixart.generation.request import Request
from pixart.generation.sample import AppliedControl, sample
from pixart.model.policy import Policy
from pixart.sampling.samplers import SAMPLERS
from pixart.text.encoded import Encoded
from pixart.text.tokens import PromptReport

CONFIG, STEPS = tiny.CONFIG, 6
KINDS = {
    "alpha": CONFIG,
    "sigma": replace(CONFIG, micro_conditioning=False),
    "qk norm": replace(CONFIG, qk_norm=True),
    "compressed by convolution": replace(CONFIG, kv_compression=KVCompression("conv", 2, (1, 2))),
    "compressed by mean": replace(CONFIG, kv_compression=KVCompression("ave", 2, (1, 2))),
    "compressed evenly": replace(CONFIG, kv_compression=KVCompression("uniform", 2, (1, 2))),
}
SIZES = [(64, 96), (72, 40)]
DEPTH = CONFIG.depth
POLICIES = {
    "none": lambda model: [],
    "branches": lambda model: [ReuseBranches(BranchSchedule.of("some", torch.rand(
        STEPS, DEPTH, 3, generator=torch.Generator().manual_seed(0)) < 0.5))],
    "fora": lambda model: [ReuseBranches(fora(STEPS, DEPTH, 2))],
    "t-gate": lambda model: [TGate(t_gate_schedule(STEPS, DEPTH, 3, 2, 2, 0), 3)],
    "delta": lambda model: [DeltaCache(delta_spans(STEPS, DEPTH, 2, 3))],
}


def encoded(*lengths: int, width: int = CONFIG.caption_width) -> Encoded:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    context = torch.randn(*mask.shape, width, generator=torch.Generator().manual_seed(4))
    return Encoded(context, mask, [PromptReport("", "", length, length, 8) for length in lengths])


def drawn(model: nn.Module, sampler: str = "dpm", steps: int = STEPS, size: tuple[int, int] = SIZES[0],
          policies: list[Policy] | None = None, control: AppliedControl | None = None, **more: object) -> Tensor:
    request = Request(("a", "b"), height=size[0], width=size[1], sampler=sampler, steps=steps, guidance=3.0)
    return sample(model, request, encoded(5, 3), encoded(2), policies=policies or [], control=control, **more)


def same(got: Tensor, want: Tensor) -> None:
    """Computed by the same kernels, so equal to the last bit but for the order of sums."""
    assert isinstance(got, CudaTensor) and not isinstance(want, CudaTensor)
    torch.testing.assert_close(bare(got), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind, size", [*((kind, SIZES[0]) for kind in KINDS), ("alpha", SIZES[1]),
                                        ("compressed by convolution", SIZES[1])])
def test_every_kind_of_transformer_gives_the_same(gpu: Cuda, kind, size):
    model = tiny.transformer(KINDS[kind])
    want = drawn(model, steps=2, size=size)
    same(drawn(model.to(GPU), steps=2, size=size), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_samples(gpu: Cuda, kind, dtype):
    assert drawn(tiny.transformer(KINDS[kind]).to(GPU, dtype), steps=2).dtype == torch.float32
    assert not gpu.doubles


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_the_same_and_asks_nothing(gpu: Cuda, sampler):
    model, steps = tiny.transformer(), SAMPLERS[sampler].steps
    want = drawn(model, sampler, steps)
    model.to(GPU)
    gpu.forget()
    same(drawn(model, sampler, steps), want)
    assert not gpu.waits and not gpu.doubles


@pytest.mark.parametrize("with_control", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_every_cache_gives_the_same_and_waits_for_nothing(gpu: Cuda, name, with_control):
    def run(device: torch.device | str) -> Tensor:
        model, control = tiny.transformer().to(device), None
        if with_control:
            control = ControlImage(torch.zeros(1, 3, 64, 96))
            hint = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))
            control = AppliedControl(tiny.controlnet().to(device), control, hint)
        policies = POLICIES[name](model)
        drawn(model, policies=policies, control=control)           # the first time, feedback is brought to the device
        gpu.forget()
        return drawn(model, policies=policies, control=control)
    want = run("cpu")
    same(run(GPU), want)
    assert gpu.waits == 0
