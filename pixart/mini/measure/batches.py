"""Images of many prompts in the few sizes of PixArt-mini, kept in batches of one size."""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..images import BUCKETS

SIZE_COUNT = len(BUCKETS)


def to_bytes(images: Tensor) -> Tensor:
    """0..1 -> 0..255, uint8, as an image file would hold it."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class BenchImages:
    """Images of the prompts 0, 1, 2, ...: part k is uint8 (n, 3, H, W) and holds the prompts k, k + 5, ...

    Every part has its own size, and lies on whatever device it was made on.
    """

    parts: tuple[Tensor, ...]

    @classmethod
    def of(cls, images: Sequence[Tensor]) -> "BenchImages":
        """From images (3, H, W) in 0..1 in the order of the prompts."""
        return cls(tuple(to_bytes(torch.stack(list(images[k::SIZE_COUNT])))
                         for k in range(min(SIZE_COUNT, len(images)))))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, number: int) -> Tensor:
        """Image (3, H, W) of a prompt, 0..1, on the CPU."""
        return self.parts[number % SIZE_COUNT][number // SIZE_COUNT].cpu().float() / 255

    def rows(self, members: range) -> Tensor:
        """uint8 (n, 3, H, W) of the prompts of a group."""
        return self.parts[members.start % SIZE_COUNT][members.start // SIZE_COUNT:][:len(members)]

    def first(self, count: int) -> "BenchImages":
        """Those of the first `count` prompts, a copy on the CPU."""
        kept = [part[:len(range(k, count, SIZE_COUNT))].cpu().clone() for k, part in enumerate(self.parts[:count])]
        return BenchImages(tuple(kept))

    def batches(self, batch: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """(at most `batch`, 3, H, W) in 0..1 on `device`, part after part."""
        for part in self.parts:
            for some in part.split(batch):
                yield some.to(device).float() / 255


def in_order(values: Tensor) -> Tensor:
    """Rows of (n, ...) that follow the parts -> rows in the order of the prompts."""
    count = len(values)
    numbers = torch.tensor([i for k in range(SIZE_COUNT) for i in range(k, count, SIZE_COUNT)], device=values.device)
    ordered = torch.empty_like(values)
    ordered[numbers] = values
    return ordered


def measure_each(images: BenchImages, batch: int, device: torch.device | str,
                 measure: Callable[[Tensor], Tensor]) -> Tensor:
    """measure(batch (b, 3, H, W)) -> (b, ...), for all images, in the order of the prompts, on the CPU."""
    return in_order(torch.cat([measure(some) for some in images.batches(batch, device)])).cpu()


def each_pair(one: BenchImages, other: BenchImages, batch: int, device: torch.device | str,
              measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """measure(batch, batch) -> (b, ...) for the images of the same prompts, otherwise as `measure_each`."""
    pairs = zip(one.batches(batch, device), other.batches(batch, device), strict=True)
    return in_order(torch.cat([measure(a, b) for a, b in pairs])).cpu()
