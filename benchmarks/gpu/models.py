"""Stage: do the networks compute on the device what they compute on the CPU, and do exact equalities hold there?"""
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pixart.checkpoint.lora import merge_lora
from pixart.checkpoint.lora.read import read_lora
from pixart.config import KVCompression, PixArtConfig
from pixart.model.controlnet import Controlled, PixArtControlNet
from pixart.model.policy import Policy, Step
from pixart.model.transformer import PixArtTransformer

from ..instruments.cases import Case
from ..instruments.networks import controlnet, copied, distance, given, row, transformer
from ..instruments.notes import Notes
from ..instruments.setting import DTYPES, HALF, Absent, Setting, need

# Heads of 72 numbers as in the published models: kernels differ with it.
ALPHA = PixArtConfig(depth=4, hidden=288, heads=4, caption_width=64, caption_tokens=20, base_size=8, position_scale=1.0)
SIGMA = replace(ALPHA, micro_conditioning=False, latent_space="sdxl", qk_norm=True,
                kv_compression=KVCompression("conv", 2, (2, 3)))
LENGTHS = (20, 7, 13)
LIMITS = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 4e-3}        # relative, against float32 on the CPU
DEEP_LIMITS = {"fp32": 3e-5, "bf16": 6e-2, "fp16": 1e-2}   # the same for 28 blocks


def cases(setting: Setting) -> dict[str, Case]:
    torch.backends.cudnn.allow_tf32 = False         # the patch embedding is a convolution: float32 means float32 here
    return {"parity to the CPU": parity, "full size, parity to the CPU": full_size, "batch = single": batches,
            "padding changes nothing": padding, "control": control, "all-compute policy": policies,
            "default TF32 setting": tf32, "LoRA": lora, "compile, block by block": compiled_blocks,
            "compile, whole": compiled_whole}


def alpha(setting: Setting) -> PixArtConfig:
    return replace(ALPHA, depth=3, hidden=48) if setting.tiny else ALPHA


def dtypes(setting: Setting) -> dict[str, torch.dtype]:
    """What is checked: a rehearsal leaves out float16, which is slow on CPUs."""
    return {name: dtype for name, dtype in DTYPES.items() if not (setting.tiny and name == "fp16")}


def on_device(model: PixArtTransformer, dtype: torch.dtype, setting: Setting) -> PixArtTransformer:
    return copied(model, PixArtTransformer(model.config, dtype=dtype, device=setting.device))


def moved(inputs: dict, dtype: torch.dtype, setting: Setting) -> dict:
    return {name: value.to(setting.device, dtype if name in ("latent", "context", "hint") else None)
            for name, value in inputs.items()}


@torch.inference_mode()
def parity(setting: Setting, notes: Notes) -> None:
    sigma = replace(SIGMA, hidden=48) if setting.tiny else SIGMA
    for family, config in (("alpha", alpha(setting)), ("sigma, compressed keys", sigma)):
        model = transformer(config, torch.float32, "cpu")
        for sides in ((16, 16), (13, 22)) if family == "alpha" else ((16, 24),):
            inputs = given(config, sides, LENGTHS)
            wanted = model(**inputs)
            for name, dtype in dtypes(setting).items():
                found = on_device(model, dtype, setting)(**moved(inputs, dtype, setting))
                notes.check("parity to the CPU", f"{family}, {sides[0]}x{sides[1]}, {name}", distance(found, wanted),
                            LIMITS[name])


@torch.inference_mode()
def full_size(setting: Setting, notes: Notes) -> None:
    config = setting.config()
    model = transformer(config, torch.float32, setting.device)
    inputs = given(config, (32, 32) if not setting.tiny else (8, 8), (120, 30))
    wanted = copied(model, PixArtTransformer(config))(**inputs)
    for name, dtype in dtypes(setting).items():
        found = on_device(model, dtype, setting)(**moved(inputs, dtype, setting))
        notes.check("full size, parity to the CPU", f"{config.depth} blocks, 256 px, {name}", distance(found, wanted),
                    DEEP_LIMITS[name])


@torch.inference_mode()
def batches(setting: Setting, notes: Notes) -> None:
    """Three images with prompts of different lengths in one pass, and each alone."""
    config = alpha(setting)
    for name, dtype in dtypes(setting).items():
        model = on_device(transformer(config, torch.float32, "cpu"), dtype, setting)
        inputs = moved(given(config, (16, 16), LENGTHS), dtype, setting)
        together = model(**inputs)
        worst = max(distance(together[i:i + 1], model(**row(inputs, i))) for i in range(len(LENGTHS)))
        notes.check("batch = single", name, worst, LIMITS[name])


@torch.inference_mode()
def padding(setting: Setting, notes: Notes) -> None:
    """Values at padded tokens must not matter, not even in the last bit."""
    config = alpha(setting)
    for name, dtype in dtypes(setting).items():
        model = on_device(transformer(config, torch.float32, "cpu"), dtype, setting)
        inputs = moved(given(config, (16, 16), LENGTHS), dtype, setting)
        other = torch.where(inputs["mask"][..., None], inputs["context"], torch.full_like(inputs["context"], 7.0))
        same = torch.equal(model(**inputs), model(**{**inputs, "context": other}))
        notes.holds("padding changes nothing", name, same)


@torch.inference_mode()
def control(setting: Setting, notes: Notes) -> None:
    config = alpha(setting)
    base, network = transformer(config, torch.float32, "cpu"), controlnet(config, 2, torch.float32, "cpu")
    inputs = given(config, (16, 16), LENGTHS)
    inputs["hint"] = torch.randn(inputs["latent"].shape, generator=torch.Generator().manual_seed(9))
    wanted = Controlled(base, network)(**inputs)
    for name, dtype in dtypes(setting).items():
        copy = copied(network, PixArtControlNet(config, 2, dtype=dtype, device=setting.device))
        both = Controlled(on_device(base, dtype, setting), copy)
        there = moved(inputs, dtype, setting)
        notes.check("control", f"parity, {name}", distance(both(**there), wanted), LIMITS[name])
        plain = both.base(**{key: value for key, value in there.items() if key != "hint"})
        notes.holds("control", f"strength 0 = none to the bit, {name}", torch.equal(both(**there, strength=0.0), plain))


@torch.inference_mode()
def policies(setting: Setting, notes: Notes) -> None:
    config = alpha(setting)
    for name, dtype in dtypes(setting).items():
        model = on_device(transformer(config, torch.float32, "cpu"), dtype, setting)
        inputs = moved(given(config, (16, 16), LENGTHS), dtype, setting)
        same = torch.equal(model(**inputs), model(**inputs, **all_compute(len(LENGTHS))))
        notes.holds("all-compute policy", f"= none to the bit, {name}", same)


def all_compute(rows: int) -> dict:
    """The forward's arguments for policies that change nothing."""
    step = Step(index=0, total=4, timestep=500.0, lanes=tuple(range(rows)), run=object())
    return {"policies": [Policy(), Policy()], "step": step}


# -- compilation -------------------------------------------------------------------------------------------------------

def backend(setting: Setting) -> str:
    return "eager" if setting.tiny else "inductor"


def graphs(model: Callable[..., torch.Tensor], inputs: dict, found: list[torch.Tensor]) -> int:
    """Graphs that are compiled in a pass, whose result is added to `found`; breaks are errors with fullgraph."""
    from torch._dynamo.utils import counters
    counters.clear()
    found.append(model(**inputs))
    return counters["stats"]["unique_graphs"]


@torch.inference_mode()
def compiled_blocks(setting: Setting, notes: Notes) -> None:
    """Twelve equal blocks are one graph, without a break; more than the eight recompilations that dynamo allows."""
    config = replace(alpha(setting), depth=12)
    for name, dtype in (HALF if setting.cuda else {"fp32": torch.float32}).items():
        torch._dynamo.reset()
        model = on_device(transformer(config, torch.float32, "cpu"), dtype, setting)
        inputs = moved(given(config, (16, 16), LENGTHS), dtype, setting)
        wanted = model(**inputs)
        for block in model.blocks:
            block.compile(fullgraph=True, dynamic=False, backend=backend(setting))
        found: list[torch.Tensor] = []
        count = graphs(model, inputs, found)
        notes.check("compile, block by block", f"compiled = eager, {name}", distance(found[0], wanted), LIMITS[name])
        notes.holds("compile, block by block", f"12 blocks, no break, graphs compiled ({name})", count == 1, str(count))
        again = graphs(model, {**inputs, "timestep": inputs["timestep"] / 2}, found)
        notes.holds("compile, block by block", f"another timestep compiles nothing ({name})", again == 0, str(again))


@torch.inference_mode()
def compiled_whole(setting: Setting, notes: Notes) -> None:
    config = alpha(setting)
    torch._dynamo.reset()
    dtype = torch.bfloat16 if setting.cuda else torch.float32
    model = on_device(transformer(config, torch.float32, "cpu"), dtype, setting)
    inputs = moved(given(config, (16, 16), LENGTHS), dtype, setting)
    wanted, whole = model(**inputs), torch.compile(model, fullgraph=True, dynamic=False, backend=backend(setting))
    found: list[torch.Tensor] = []
    count = graphs(whole, inputs, found)
    notes.check("compile, whole", "compiled = eager", distance(found[0], wanted), LIMITS["bf16"])
    notes.holds("compile, whole", "no break, graphs compiled", count == 1, str(count))
    again = graphs(whole, {**inputs, "timestep": inputs["timestep"] / 2}, found)
    notes.holds("compile, whole", "another timestep compiles nothing", again == 0, str(again))


# -- adapters ----------------------------------------------------------------------------------------------------------

def lora(setting: Setting, notes: Notes) -> None:
    """Fresh adapters change nothing; trained ones compute the same merged as beside the weights."""
    config = alpha(setting)
    need("peft")
    from pixart.train.lora import add_lora, save_lora
    inputs = moved(given(config, (16, 16), LENGTHS), torch.float32, setting)
    for dora in (False, True):
        plain, adapted = (transformer(config, torch.float32, setting.device) for _ in range(2))
        add_lora(adapted, 4, 8.0, dora=dora)
        kind = "DoRA" if dora else "LoRA"
        with torch.inference_mode():
            error = distance(adapted(**inputs), plain(**inputs))
            notes.check("LoRA", f"{kind}, untrained = none", error, LIMITS["fp32"])
        random_ups(adapted)
        with TemporaryDirectory() as folder, torch.inference_mode():
            file = save_lora(Path(folder) / "lora.safetensors", adapted)
            for device in {setting.device, "cpu"}:
                merged = copied(transformer(config, torch.float32, setting.device),
                                PixArtTransformer(config, device=device))
                merge_lora(merged, read_lora(file), 1.0)
                found = merged(**{name: value.to(device) for name, value in inputs.items()})
                notes.check("LoRA", f"{kind}, merged on {device} = beside", distance(found, adapted(**inputs)), 1e-4)


def random_ups(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(6)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


@torch.inference_mode()
def tf32(setting: Setting, notes: Notes) -> None:
    """Users keep torch's defaults, in which convolutions round their inputs to TF32."""
    config = alpha(setting)
    if not setting.cuda:
        raise Absent("TF32 is CUDA's")
    model = transformer(config, torch.float32, "cpu")
    inputs = given(config, (16, 16), LENGTHS)
    torch.backends.cudnn.allow_tf32 = True
    try:
        found = on_device(model, torch.float32, setting)(**moved(inputs, torch.float32, setting))
    finally:
        torch.backends.cudnn.allow_tf32 = False
    notes.check("default TF32 setting", "fp32 with TF32 convolutions", distance(found, model(**inputs)), 2e-3)


