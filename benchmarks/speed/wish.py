"""What to measure: sizes, batches, data types, steps, budgets; and the network to measure them on."""
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pixart.accelerate.methods import CACHE_METHODS, RANDOM
from pixart.config import PixArtConfig

from ..instruments.setting import Setting

LEAST_TINY, LEAST_SCALE = 32, 0.5      # pixels of a rehearsal; position scale, as in the smallest published model
USUAL_METHODS = (*(name for name in CACHE_METHODS if name != "ecad"), RANDOM.name)


@dataclass(frozen=True)
class Wish:
    """Sides in pixels; tokens: of a prompt; ecad: schedule files, of any depth."""

    sides: tuple[int, ...] = (512,)
    batches: tuple[int, ...] = (1,)
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    steps: tuple[int, ...] = (4, 20)
    cached_steps: int = 20
    budgets: tuple[float, ...] = (2.0,)
    ecad: tuple[Path, ...] = ()
    tokens: int = 120
    methods: tuple[str, ...] = USUAL_METHODS

    @property
    def main(self) -> tuple[int, str]:
        """Side and data type of what is measured only once: the first size, the last type."""
        return self.sides[0], self.dtypes[-1]

    def sizes(self) -> Iterator[tuple[int, int, str]]:
        """Every side, batch and data type."""
        return product(self.sides, self.batches, self.dtypes)


def pixels(side: int, setting: Setting) -> int:
    return max(LEAST_TINY, setting.pixels(side))


def config_for(side: int, setting: Setting) -> PixArtConfig:
    """PixArt-alpha as if trained at `side` pixels, where all implementations have the same positions."""
    here = pixels(side, setting)
    return setting.config("alpha-512", base_size=here // 16, position_scale=max(LEAST_SCALE, here / 512))
