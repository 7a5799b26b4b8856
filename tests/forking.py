"""Processes that tests may kill: forked from a server that has the slow imports behind it and did nothing else."""
import multiprocessing
import signal
from collections.abc import Callable

# One server serves all tests of a run, so this is what any of them needs; each takes seconds to import.
PRELOAD = ["train.training_data", "prepare.images_at_hand", "diffusers.models.autoencoders.autoencoder_tiny",
           "diffusers.models.autoencoders.autoencoder_kl", "transformers.models.t5.modeling_t5", "kornia"]


def start(target: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_interruptible, args=(target, arguments))
    process.start()
    return process


def _interruptible(target: Callable[..., None], arguments: tuple[object, ...]) -> None:
    """Where the tests run in the background of a shell, everything they start ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    target(*arguments)
