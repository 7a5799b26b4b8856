"""torch.compile: one graph for all blocks, policies outside of every graph, the position table in none."""
import copy
import gc
import pickle
import weakref
from dataclasses import replace

import pytest
import torch
from model.reuse import AskedEverywhere, ReuseBranches
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode

from pixart.config import KVCompression, PixArtConfig
from pixart.model.policy import Step
from pixart.model.positions import PositionTables, position_table
from pixart.model.transformer import PixArtTransformer

TINY = PixArtConfig(depth=3, hidden=48, heads=4, caption_width=10, caption_tokens=8, base_size=8, position_scale=1.0)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model() -> PixArtTransformer:
    return network(TINY)


def network(config: PixArtConfig) -> PixArtTransformer:
    torch.manual_seed(0)
    model = PixArtTransformer(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def inputs(h: int = 8, w: int = 12) -> dict[str, Tensor]:
    return {"latent": torch.randn(2, 4, h, w), "timestep": torch.tensor([900.0, 100.0]),
            "context": torch.randn(2, 5, 10), "mask": torch.arange(5) < torch.tensor([[5], [2]])}


def compile_blocks(model: PixArtTransformer) -> CompileCounter:
    counter = CompileCounter()
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    return counter


def test_blocks_compiled_one_by_one_are_compiled_once():
    """Twelve of them, for the compiler gives up after eight graphs of one function."""
    model, given = network(replace(TINY, depth=12)), inputs()
    want, counter = model(**given), compile_blocks(model)
    assert torch.equal(model(**given), want) and counter.frame_count == 1


def test_compressed_blocks_are_a_second_kind():
    model = network(replace(TINY, depth=4, kv_compression=KVCompression("conv", 2, (1, 3))))
    counter = compile_blocks(model)
    model(**inputs())
    assert counter.frame_count == 2


def test_policies_are_asked_outside_of_compiled_blocks(model):
    """A branch is one more graph each, whatever the policy decides in later steps."""
    plain, counter = copy.deepcopy(model), compile_blocks(model)
    mine, theirs, run = ReuseBranches(3), ReuseBranches(3), object()
    for index in range(7):
        step, given = Step(index, 7, 900.0, ("a", "b"), run), inputs()
        assert torch.equal(model(**given, policies=[mine], step=step),
                           plain(**given, policies=[theirs], step=step))
    assert mine.computed == theirs.computed == 3 * 3 * 3
    assert counter.frame_count == 3


def test_policies_are_asked_in_every_pass_of_a_compiled_model(model):
    """Their decisions are never part of the graph, or a later step would repeat those of the first."""
    counter = CompileCounter()
    compiled, policy = torch.compile(model, backend=counter), AskedEverywhere()
    reuse = ReuseBranches(2)
    for index in range(12):
        step, given = Step(index, 12, 900.0, ("a", "b"), "run"), inputs()
        compiled(**given, policies=[policy, reuse], step=step)
    assert len(policy.asked) == 12 * (1 + 3 + 9) and reuse.computed == 6 * 9
    frames = counter.frame_count
    given = inputs()
    assert torch.equal(compiled(**given), model(**given)) and counter.frame_count == frames + 1


def test_a_compiled_model_is_one_graph_without_the_position_table(model):
    graphs = []

    def backend(graph, examples):
        graphs.append((graph, examples))
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for h, w in ((8, 12), (8, 12), (7, 9), (8, 12)):
        given = inputs(h, w)
        assert torch.equal(compiled(**given), model(**given))
    assert len(graphs) == 2                                     # one for each size
    for graph, _ in graphs:
        assert not any("float64" in str(node.args) + str(node.kwargs) for node in graph.graph.nodes)
        assert not any(node.op == "get_attr" for node in graph.graph.nodes)
    held = [example for example in graphs[0][1] if any(example is table for table in model.positions.kept.values())]
    assert len(held) == 1                                       # a table comes in like a weight does


def test_tables_are_kept_by_size_device_and_type():
    tables = PositionTables(48, 8, 2.0)
    latent = torch.zeros(1, 4, 4, 6)
    first = tables.like(latent, (2, 3))
    assert tables.like(latent + 1, (2, 3)) is first and tables.like(latent, (3, 2)) is not first
    assert torch.equal(first, position_table(2, 3, 48, 8, 2.0))
    assert tables.like(latent.bfloat16(), (2, 3)).dtype == torch.bfloat16
    assert tables.like(latent.to("meta"), (2, 3)).device.type == "meta"
    for h in range(20):
        tables.like(latent, (h + 1, 1))
    assert len(tables.kept) == PositionTables.AT_MOST


def test_tables_made_for_an_image_can_be_trained_with(model):
    with torch.inference_mode():
        model(**inputs())
    latent = inputs()["latent"].requires_grad_()
    model(**{**inputs(), "latent": latent}).sum().backward()
    assert latent.grad.abs().max() > 0


def test_a_pass_with_fake_tensors_leaves_nothing_behind(model):
    with FakeTensorMode():
        fake = PixArtTransformer(TINY)
        assert fake(**inputs()).shape == (2, 4, 8, 12) and not fake.positions.kept
        model.positions.like(torch.zeros(2, 4, 8, 12), (4, 6))
    assert not model.positions.kept
    given = inputs()
    want = model(**given)
    with FakeTensorMode():                                      # nor does it get a real table
        assert type(model.positions.like(torch.zeros(2, 4, 8, 12), (4, 6))) is not Tensor
    assert torch.equal(model(**given), want)


def test_tables_stay_out_of_copies(model):
    model(**inputs())
    assert len(model.positions.kept) == 1
    assert not copy.deepcopy(model).positions.kept and not pickle.loads(pickle.dumps(model.positions)).kept


def test_tables_die_with_their_model():
    model = network(TINY)
    compiled = torch.compile(model, backend="eager")
    compiled(**inputs())
    known = [weakref.ref(table) for table in model.positions.kept.values()]
    del model, compiled
    gc.collect()
    assert len(known) == 1 and known[0]() is None
