"""Queue workflows on a running ComfyUI and fetch what they make; needs neither torch nor the host's code.

    from pixart.client import Server, read_workflow, run_workflows, with_seed, with_value

    graph = with_value(read_workflow("workflow.json"), "prompt", "a red fox")
    for outcome in run_workflows(Server("127.0.0.1:8188"), [with_seed(graph, seed) for seed in (1, 2, 3)], "out"):
        print(outcome.files or outcome.problem)
"""
from .errors import ClientError, Failed, Interrupted, Refused, Unreachable
from .graph import Graph, read_workflow, seeds_of, with_seed, with_value
from .run import WorkflowOutcome, run_workflows
from .server import Server

__all__ = ["ClientError", "Failed", "Graph", "Interrupted", "Refused", "Server", "Unreachable",
           "WorkflowOutcome", "read_workflow", "run_workflows", "seeds_of", "with_seed", "with_value"]
