"""python -m pixart queue: run a workflow on a ComfyUI server, and fetch its images."""
import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from .numbers import number_from_zero

if TYPE_CHECKING:
    from ..client import Graph, Server, WorkflowOutcome

EXIT_CODES = ("exit codes: 0 all files fetched; 1 a file or an option cannot be used; 2 unknown option; 3 the server "
              "refused the workflow; 4 no answer, or the server forgot the prompt; 5 a node failed; 6 interrupted on "
              "the server; 130 stopped by Ctrl-C (its prompts are cancelled)")


def add_options(command: argparse.ArgumentParser) -> None:
    command.epilog = EXIT_CODES
    command.add_argument("workflow", type=Path, help="workflow in API format, such as those in workflows/api")
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="values",
                         help="change an input: prompt=TEXT, negative=TEXT, NODE.input=VALUE with a node's id, title "
                              "or class, or input=VALUE if only one node has it; may be repeated")
    command.add_argument("--seed", metavar="N..M", help="seeds, one run each: 7, 1..8 or 1,5,9 (default: as saved in "
                                                        "the workflow)")
    command.add_argument("--server", default="127.0.0.1:8188", metavar="HOST:PORT", help="(default: 127.0.0.1:8188)")
    command.add_argument("--out", type=Path, default=Path("."), metavar="DIR",
                         help="output folder, created if missing (default: the current one)")
    command.add_argument("--patience", type=number_from_zero, default=60.0, metavar="S",
                         help="seconds to wait for a server that does not answer (default: 60)")


def run(args: argparse.Namespace) -> None:
    """Queue everything, print each file, and each problem where it happens. Raises the last problem."""
    from ..client import Server, run_workflows
    from .places import require_folder_place
    from .progress import Bars

    require_folder_place(args.out)
    server = Server(args.server, args.patience)
    graphs, seeds = workflows(args, server)
    problems = []
    with Bars() as bars, closing(run_workflows(server, graphs, args.out, bars)) as outcomes:
        for outcome in outcomes:
            bars.close()
            report(outcome, seeds)
            if outcome.problem is not None:
                problems.append(outcome.problem)
    if problems:
        last = problems[-1]
        raise type(last)(f"{len(problems)} of {len(graphs)} runs gave no image; see above" if len(graphs) > 1
                         else str(last))


def workflows(args: argparse.Namespace, server: "Server") -> "tuple[list[Graph], list[int] | None]":
    """What to queue, and the seed of each."""
    from ..client import ClientError, read_workflow, seeds_of, with_seed, with_value

    graph = read_workflow(args.workflow)
    for pair in args.values:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ClientError(f"--set {pair}: write NAME=VALUE, for example --set prompt=\"a red fox\"")
        graph = with_value(graph, name.strip(), value, server.input_kind)
    if args.seed is None:
        return [graph], None
    seeds = seeds_of(args.seed)
    return [with_seed(graph, seed) for seed in seeds], seeds


def report(outcome: "WorkflowOutcome", seeds: list[int] | None) -> None:
    for path in outcome.files:
        print(path, flush=True)
    if outcome.problem is not None and seeds is not None and len(seeds) > 1:
        print(f"seed {seeds[outcome.number]}: {outcome.problem}", file=sys.stderr, flush=True)
