"""What a policy keeps from one step to the next, row by row."""
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .policy import Step

KeptRow = tuple[Tensor, int]      # a kept tensor and the number of the row in it
Note = TypeVar("Note")


class LaneMemory:
    """Rows of tensors, kept by (lane, key) within one sampling.

    A lane stands for one image with one prompt, so it does not matter whether its rows come alone, in a batch or in
    another order than they were put in. When a step of another run arrives, everything is forgotten. Kept tensors are
    not copied: neither what was put in nor what comes out may be modified in place.
    """

    def __init__(self) -> None:
        self.run: object = None
        self.places: dict[Hashable, dict[Hashable, KeptRow]] = {}

    def get(self, step: Step, key: Hashable) -> Tensor | None:
        """The rows of the step's lanes, (B, ...), or None when one of them has nothing under this key.

        Rows that were put in together in this order come out without a copy.
        """
        self.follow(step)
        known = self.places.get(key, {})
        found = [known.get(lane) for lane in step.lanes]
        places = [place for place in found if place is not None]
        return rows_at(places) if places and len(places) == len(found) else None

    def put(self, step: Step, key: Hashable, rows: Tensor) -> None:
        """Keep rows (B, ...), one for each lane of the step. Raises ValueError for another number of rows."""
        if rows.shape[0] != len(step.lanes):
            raise ValueError(f"{rows.shape[0]} rows are to be kept for {len(step.lanes)} lanes; they must be as many")
        self.follow(step)
        self.places.setdefault(key, {}).update((lane, (rows, row)) for row, lane in enumerate(step.lanes))

    def drop(self, step: Step, key: Hashable) -> None:
        """Forget what the step's lanes have under this key, if anything."""
        self.follow(step)
        known = self.places.get(key, {})
        for lane in step.lanes:
            known.pop(lane, None)

    def lanes(self, key: Hashable) -> list[Hashable]:
        """Those that have something under this key."""
        return list(self.places.get(key, {}))

    def follow(self, step: Step) -> None:
        if step.run is not self.run:
            self.clear()
            self.run = step.run

    def clear(self) -> None:
        """Forget everything."""
        self.places.clear()
        self.run = None

    @property
    def bytes(self) -> int:
        """Bytes kept alive; those of a whole tensor where just a view of it is kept."""
        storages = [rows.untyped_storage() for known in self.places.values() for rows, _ in known.values()]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class LaneNotes(Generic[Note]):
    """Small values kept for lanes within one sampling, and forgotten when another begins."""

    def __init__(self) -> None:
        self.run: object = None
        self.notes: dict[Hashable, Note] = {}

    def get(self, step: Step) -> list[Note | None]:
        """One for each lane of the step; None where nothing was noted."""
        self.follow(step)
        return [self.notes.get(lane) for lane in step.lanes]

    def put(self, step: Step, notes: Sequence[Note]) -> None:
        """One for each lane of the step."""
        self.follow(step)
        self.notes.update(zip(step.lanes, notes))

    def follow(self, step: Step) -> None:
        if step.run is not self.run:
            self.notes, self.run = {}, step.run


def rows_at(places: list[KeptRow]) -> Tensor:
    """The rows at these places as one tensor; a view where they lie one behind the other."""
    rows, first = places[0]
    if all(other is rows and row == first + i for i, (other, row) in enumerate(places)):
        return rows if len(places) == len(rows) else rows[first:first + len(places)]
    return torch.stack([other[row] for other, row in places])
