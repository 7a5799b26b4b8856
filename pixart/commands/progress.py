"""Progress bars on the terminal."""
import sys
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


class Bars:
    """One bar a stage, called with (stage, done, total). Shows nothing outside of a terminal or without tqdm.

    Used as a context.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._stage = ""
        self._there = find_spec("tqdm") is not None

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self._there:
            return
        if self._bar is None or stage != self._stage:
            from tqdm import tqdm

            self.close()
            self._bar, self._stage = tqdm(desc=stage, file=sys.stderr, disable=None, leave=False), stage
        self._bar.total = total or None         # 0: not known yet
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
