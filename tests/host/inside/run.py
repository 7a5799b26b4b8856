"""Runs inside a host's Python: loads the pack as the host does, runs every test function of a folder, prints JSON.

    python run.py <host> <folder with models> <out.json> [dynamic]

The folder is this one, or "dynamic" for a host that manages GPU memory layer by layer, which it decides at its start.
There the facts of ALSO_DYNAMIC must hold as well, but for what a file lists in NOT_DYNAMIC: patches that are looked for
in the weights, where such a host does not leave them, and which it forgets where a CPU stands for the GPU.
"""
import asyncio
import importlib
import importlib.util
import json
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
ALSO_DYNAMIC = ("facts_cache", "facts_control", "facts_feedback", "facts_flexdit", "facts_nag", "facts_policies",
                "facts_pt_dit", "facts_quantized", "facts_reno", "facts_sampling", "facts_steps", "facts_train")
HEAVY = ("transformers", "diffusers", "bitsandbytes", "accelerate", "ftfy", "bs4", "kornia", "peft")


def start_host(host: str, base: str, facts: Path) -> None:
    """Everything the host's own main does before nodes are imported, without a server."""
    sys.path[:0] = [host]
    sys.path += [str(ROOT), str(ROOT / "tests"), str(HERE), str(facts)]
    if facts != HERE:
        importlib.import_module("starting").start_memory()
    import comfy.options
    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args
    args.cpu, args.base_directory = True, base
    if facts != HERE:
        importlib.import_module("starting").start_patchers()
    import nodes
    loading = nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
    if asyncio.iscoroutine(loading):
        asyncio.run(loading)


def load_pack(folder: Path) -> float:
    """Import as the host imports custom nodes; returns processor seconds, which other processes do not stretch."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = sys.modules["pack"] = module
    started = time.process_time()
    spec.loader.exec_module(module)
    return time.process_time() - started


def run_all(results: dict, files: Iterable[str], left_out: str = "") -> None:
    """left_out: name of a file's list of facts that do not hold here."""
    import torch
    for file in files:
        facts = importlib.import_module(file)
        lacking = [name for name in getattr(facts, "NEEDS", ()) if importlib.util.find_spec(name) is None]
        out = getattr(facts, left_out, ())
        for name in [name for name in vars(facts) if name.startswith("test_") and name not in out]:
            started, report = time.perf_counter(), ""
            if lacking:
                results[f"{file}.{name}"] = {"lacking": " ".join(lacking)}
                continue
            try:
                with torch.inference_mode():
                    getattr(facts, name)()
            except BaseException:
                report = traceback.format_exc()
            results[f"{file}.{name}"] = {"error": report, "seconds": time.perf_counter() - started}


def main() -> None:
    host, base, out = sys.argv[1:4]
    facts = Path(HERE, *sys.argv[4:])
    start_host(host, base, facts)
    before = set(sys.modules)
    (folder,) = Path(base, "custom_nodes").iterdir()
    seconds = load_pack(folder)
    heavy = [name for name in HEAVY if name in sys.modules and name not in before]
    results: dict = {"import": {"seconds": seconds, "heavy": heavy}}
    run_all(results, sorted(file.stem for file in facts.glob("facts_*.py")))
    if facts != HERE:
        run_all(results, ALSO_DYNAMIC, "NOT_DYNAMIC")
    Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
