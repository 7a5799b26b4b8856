"""Looking at every item once, before anything is encoded: which are done, which go where, which cannot be used."""
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ..text.cleaning import clean_caption
from .buckets import Slot, Unfit, slot_of, slot_of_latents
from .computed import BrokenFile, moments_shape
from .families import Family
from .images import BrokenImage, image_size
from .items import Item
from .state import Skipped, stamp_of


@dataclass(frozen=True, slots=True)
class Entry:
    """An item with its place; `text` is the caption as it is to be tokenised, None where features are there."""

    item: Item
    slot: Slot
    text: str | None


@dataclass
class Survey:
    """Entries to encode by bucket, and what was left out."""

    buckets: dict[tuple[int, int], list[Entry]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def entries(self) -> list[Entry]:
        return [entry for entries in self.buckets.values() for entry in entries]


CHANGED = ("an image of this name was prepared before, with another caption or file: to take this one, prepare into a "
           "new folder, and name all sources of a folder in one command")


def survey(items: Iterable[Item], done: Mapping[str, str], previous: dict[str, Skipped], family: Family,
           resolution: int, progress: Callable[[int, bool], None]) -> Survey:
    """Sort items into buckets. `done`: keys and marks that are in shards; `previous`: what an earlier run skipped.

    progress(items seen, whether these are all).
    What was skipped while it was decoded is not tried again as long as its files are the same.
    """
    result, number = Survey(), 0
    for number, item in enumerate(items, 1):
        progress(number, False)
        earlier = previous.get(item.key)
        if item.key in done:
            before, now = done[item.key], "" if item.fault else item.mark()
            if before and now and before != now:
                result.skipped.append(Skipped(item.key, CHANGED))
        elif earlier and earlier.stamp and earlier.stamp == stamp_of(item):
            result.skipped.append(earlier)
        else:
            try:
                entry = _entry(item, family, resolution)
                result.buckets.setdefault(entry.slot.sides, []).append(entry)
            except (BrokenImage, BrokenFile, Unfit) as error:
                result.skipped.append(Skipped(item.key, str(error)))
    progress(number, True)
    return result


def _entry(item: Item, family: Family, resolution: int) -> Entry:
    if item.fault:
        raise Unfit(item.fault)
    text = None
    if item.features is None:
        text = clean_caption(item.caption) if family.clean else item.caption
        if not text:
            raise Unfit("cleaning left nothing of its caption" if item.caption else "its caption is empty")
    if item.moments is not None:
        size = (item.size or image_size(item.place())) if item.told_size else None
        if item.size:
            slot_of(item.size, resolution, family)          # refuses what is too long
        return Entry(item, slot_of_latents(moments_shape(item.moments), size, resolution, family), text)
    # The image's own header, not the metadata: it is the image that is scaled and cut.
    return Entry(item, slot_of(image_size(item.place()), resolution, family), text)
