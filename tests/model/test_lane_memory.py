"""What is kept from step to step: the right rows, no copy where none is needed, nothing after a run."""
import pytest
import torch

from pixart.model.lane_memory import LaneMemory, LaneNotes
from pixart.model.policy import Step

RUN = object()


def step(*lanes: str, run: object = RUN) -> Step:
    return Step(0, 4, 999.0, lanes, run)


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.arange(24.0).view(4, 3, 2)


@pytest.fixture
def memory(rows) -> LaneMemory:
    memory = LaneMemory()
    memory.put(step(*"abcd"), "key", rows)
    return memory


def test_the_same_lanes_come_out_without_a_copy(memory, rows):
    assert memory.get(step(*"abcd"), "key") is rows
    part = memory.get(step(*"bc"), "key")
    assert torch.equal(part, rows[1:3]) and part.data_ptr() == rows[1].data_ptr()


@pytest.mark.parametrize("lanes", ["dcba", "acbd", "ca", "d", "ac"])
def test_rows_follow_their_lanes(memory, rows, lanes):
    assert torch.equal(memory.get(step(*lanes), "key"), rows[["abcd".index(lane) for lane in lanes]])


def test_rows_put_in_apart_come_out_together(memory, rows):
    memory.put(step("x", "a"), "key", -rows[:2])
    want = torch.stack([-rows[1], rows[1], -rows[0]])
    assert torch.equal(memory.get(step(*"abx"), "key"), want)


def test_an_unknown_lane_or_key_means_nothing_is_kept(memory):
    assert memory.get(step(*"abz"), "key") is None
    assert memory.get(step(*"ab"), "another key") is None


def test_another_run_forgets(memory, rows):
    assert memory.get(step(*"abcd", run=object()), "key") is None
    assert memory.get(step(*"abcd"), "key") is None and memory.bytes == 0
    memory.put(step(*"abcd"), "key", rows)
    memory.put(step(*"ab", run=object()), "key", rows[:2])
    assert memory.get(step(*"cd"), "key") is None


def test_bytes_are_those_of_the_tensors_kept_alive(memory, rows):
    assert memory.bytes == 4 * 3 * 2 * 4
    memory.put(step(*"ab"), "key", rows[:2].bfloat16())
    assert memory.bytes == 4 * 3 * 2 * 4 + 2 * 3 * 2 * 2       # c and d still hold the first tensor
    memory.put(step(*"cd"), "key", rows[2:].bfloat16())
    assert memory.bytes == 4 * 3 * 2 * 2
    memory.put(step("a"), "key", rows[:1])
    assert memory.bytes == 4 * 3 * 2 * 2 + 4 * 3 * 2 * 4       # a view keeps all of its tensor
    memory.clear()
    assert memory.bytes == 0 and memory.run is None and memory.get(step(*"ab"), "key") is None


def test_rows_and_lanes_must_be_as_many(rows):
    with pytest.raises(ValueError, match="4 rows are to be kept for 2 lanes"):
        LaneMemory().put(step(*"ab"), "key", rows)


def test_notes_follow_their_lanes_until_another_run():
    notes: LaneNotes[int] = LaneNotes()
    notes.put(step(*"ab"), [1, 2])
    assert notes.get(step(*"bca")) == [2, None, 1]
    assert notes.get(step(*"ab", run=object())) == [None, None] and notes.get(step(*"ab")) == [None, None]
