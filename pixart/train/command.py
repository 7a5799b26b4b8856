"""The command line of the trainers: python -m pixart train METHOD, one of METHOD_HELP."""
import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

    from .job import TrainingJob
    from .loop import WatchStep
    from .settings import Settings

logger = logging.getLogger(__name__)

MEMORY_ADVICE = ("lower train.batch and raise train.accumulation in return; train.recompute=true, "
                 "train.optimizer=adamw8bit and model.dtype=bf16 save memory too. What was saved stays: the next run "
                 "goes on from there")
METHOD_HELP = {
    "diffusion": "all weights, from a checkpoint or from scratch",
    "lcm": "a few-step student of a checkpoint, all weights",
    "lcm-lora": "a few-step student of a checkpoint, as a LoRA",
    "controlnet": "a ControlNet on prepared edge maps",
    "lora": "a LoRA or DoRA on your images",
    "dmd": "a one-step student by distribution matching, from pairs of noise and the teacher's image",
    "ilf": "feedback between the middle blocks of a frozen checkpoint, for half the steps",
    "flexdit": "a checkpoint whose middle blocks work on fewer tokens, all weights",
    "pt-dit": "a PT-DiT (proxy tokens, windows, rectified flow), all weights, from a checkpoint or from scratch",
    "reward-lora": "a LoRA that raises rewards, by gradients through few-step sampling, from captions alone",
    "tdm": "a four-step student by trajectory distribution matching, from captions alone",
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `train`; the options of its methods are read in `run`, as they need the whole library."""
    lines = "\n".join(f"  {name:<12}{text}" for name, text in METHOD_HELP.items())
    train = commands.add_parser("train", help="train, fine-tune or distil", description=f"methods:\n{lines}",
                                epilog="python -m pixart train METHOD --help lists the options of a method",
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    train.add_argument("method", choices=METHOD_HELP, help="training method")
    train.add_argument("arguments", nargs=argparse.REMAINDER, help="options of the method")


def method_parser(method: str) -> argparse.ArgumentParser:
    """Options of one method: the file, and one for every field it may have."""
    from .settings import options
    parser = argparse.ArgumentParser(
        prog=f"python -m pixart train {method}", allow_abbrev=False,
        usage="%(prog)s [--config FILE] [--dry-run] [--set SECTION.FIELD=VALUE] [--SECTION.FIELD VALUE] ...",
        description=f"Train {METHOD_HELP[method]}. Every field of the file can also "
        "be given as an option. Paths in the file are relative to the file, paths in options to the current folder.")
    parser.add_argument("--config", type=Path, help="TOML file; ready-made ones are in pixart/train/configs")
    parser.add_argument("--dry-run", action="store_true",
                        help="run two steps, report parameters, time and memory, and exit")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE",
                        help="override one field of the file, also inside tables")
    for option in options(method):
        parser.add_argument(f"--{option.key}", dest=option.key, metavar="VALUE", default=argparse.SUPPRESS,
                            help=option.help.replace("%", "%%"))
    return parser


def replacements(given: argparse.Namespace) -> dict[str, str]:
    """Every "section.field" that an option replaces; --set last."""
    replaced = {key: value for key, value in vars(given).items() if "." in key}
    for text in given.set:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise ValueError(f"--set {text}: expected SECTION.FIELD=VALUE, for example train.steps=2000")
        replaced[key.strip()] = value.strip()
    return replaced


def run(args: argparse.Namespace) -> None:
    """Train, or with --dry-run only say what would be trained."""
    from ..device import memory_advice
    from .settings import read_settings
    given = method_parser(args.method).parse_args(args.arguments)
    settings = read_settings(args.method, given.config, replacements(given))
    with launched() as processes, memory_advice(processes.device, "training", MEMORY_ADVICE):
        if not processes.is_main_process:
            logging.getLogger("pixart").setLevel(logging.WARNING)
        told = plan_text(settings) if given.dry_run else execute(settings, processes)
        if processes.is_main_process:
            print(told)


@contextmanager
def launched() -> "Iterator[PartialState]":
    """The processes that were launched together, this one included; released at the end."""
    try:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
    except ImportError as error:
        raise ImportError("training needs the accelerate package: pip install 'pixart-delta[train]' or "
                          "pip install accelerate") from error
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    yield processes
    processes.destroy_process_group()


def plan_text(settings: "Settings") -> str:
    from .jobs import assemble
    from .plan import make_plan
    return make_plan(assemble(settings), settings).text(settings)


def execute(settings: "Settings", processes: "PartialState") -> Path:
    """Train and write the result; the file it went to."""
    from .jobs import assemble
    from .loop import train_averages
    require_place(settings.output.file, settings.model.base)
    job = assemble(settings)
    watch = watchers(settings, job, processes.device) if processes.is_main_process else []
    averages = train_averages(job.model, job.objective, job.data, settings.train, settings.output.folder, watch=watch,
                              settings=job.facts, make=job.kind)
    if not processes.is_main_process:
        return settings.output.file
    for decay in settings.train.ema_decays:
        logger.info("moving average with decay %g: %s", decay, job.save(averages[decay], decay))
    return job.save(averages[settings.train.ema])


def require_place(file: Path, base: Path | None = None) -> None:
    """Refuse a result that cannot be written, or would replace what it is made from, before hours of work for it."""
    if base is not None and file.resolve() == base.resolve():
        raise ValueError(f"output.file is model.base itself, which would be replaced; choose another name: {file}")
    if file.suffix != ".safetensors" and file.is_file():
        raise NotADirectoryError(f"output.file is a file; without .safetensors the result is a folder: {file}")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors" and file.is_dir():
        raise IsADirectoryError(f"output.file {file} is a folder; give the name of a file in it")


def watchers(settings: "Settings", job: "TrainingJob", device: "torch.device") -> "list[WatchStep]":
    """TensorBoard where it is installed, and previews where prompts are given."""
    from .preview import Preview, subject_from_files
    from .report import TensorBoard
    folder = settings.output.folder
    watch: list[WatchStep] = []
    try:
        watch.append(TensorBoard(folder / "tensorboard"))
    except ImportError:
        logger.info("no scalars are written: tensorboard is not installed (pip install tensorboard)")
    if settings.validate.prompts:
        subject = subject_from_files(settings.validate, job.config, device)
        watch.append(Preview(subject, settings.validate.every, job.parts, folder / "previews"))
    return watch
