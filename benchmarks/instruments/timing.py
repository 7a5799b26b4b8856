"""How long something takes on the device, how much memory, and how much arithmetic it is."""
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from pixart.config import PixArtConfig
from pixart.train.plan import peak_memory

from .setting import HALF, Setting

Run = Callable[[], object]


def milliseconds(run: Run, setting: Setting) -> float:
    """Time of one call, by events of the device; on a single CPU thread processor time, as others share the CPU."""
    if not setting.cuda:
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        started = clock()
        run()
        return 1000 * (clock() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def turns(runs: Mapping[str, Run], setting: Setting, rounds: int = 9, seconds: float = 4.0,
          warmed: bool = False) -> dict[str, list[float]]:
    """Milliseconds of every round by name. Runs take turns, after one or two warm-up rounds unless already `warmed`.

    At least three rounds, for about `seconds`; where the setting names a number, that many.
    """
    exact = 1 if setting.tiny else setting.rounds
    warm, least, rounds = (1, exact, exact) if exact else (2, 3, rounds)
    warm = 0 if warmed else warm
    found: dict[str, list[float]] = {name: [] for name in runs}
    until = time.monotonic() + min(seconds, setting.left() / 3)
    for number in range(warm + rounds):
        for name, run in runs.items():
            found[name].append(milliseconds(run, setting))
        if number >= warm + least - 1 and time.monotonic() > until:
            break
    return {name: values[warm:] for name, values in found.items()}


def paired_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Median of one / other within each round."""
    return statistics.median(a / b for a, b in zip(one, other))


def medians(runs: Mapping[str, Run], setting: Setting, rounds: int = 9, seconds: float = 4.0) -> dict[str, float]:
    """Median milliseconds by name, runs in turns."""
    return {name: statistics.median(values) for name, values in turns(runs, setting, rounds, seconds).items()}


def median(run: Run, setting: Setting, rounds: int = 9, seconds: float = 4.0) -> float:
    return medians({"": run}, setting, rounds, seconds)[""]


def peak(setting: Setting) -> dict[str, float | None]:
    """GiB since the last `tidy`: of tensors, and of what the allocator holds. On a CPU the process's peak so far."""
    if not setting.cuda:
        held = peak_memory(torch.device("cpu"))
        return {"allocated GiB": held and held / 2 ** 30, "reserved GiB": None}
    torch.cuda.synchronize()
    return {"allocated GiB": torch.cuda.max_memory_allocated() / 2 ** 30,
            "reserved GiB": torch.cuda.max_memory_reserved() / 2 ** 30}


def matrix_peak(setting: Setting, dtypes: Mapping[str, torch.dtype] = HALF) -> dict[str, float]:
    """TFLOP/s of a large product by the name of its data type: the ceiling of this machine, measured."""
    side = 128 if setting.tiny else 8192 if setting.cuda else 2048
    found = {}
    for name, dtype in dtypes.items():
        a, b = (torch.randn(side, side, device=setting.device, dtype=dtype) for _ in range(2))
        found[name] = 2 * side ** 3 / median(partial(torch.matmul, a, b), setting, rounds=15) / 1e9
    return found


def pass_flops(config: PixArtConfig, tokens: int, text: int) -> float:
    """Arithmetic of one pass for one image; a multiplication and an addition are two. No key/value compression."""
    width = config.hidden
    linear = 14 * width ** 2 * tokens + 2 * width ** 2 * text
    attention = 2 * tokens * width * (tokens + text)
    ends = (config.patch ** 2 * (config.channels + config.out_channels) * width * tokens
            + (config.caption_width + width) * width * text)
    return 2.0 * (config.depth * (linear + attention) + ends)
