"""Work in threads a few steps ahead of whoever takes the results, which come in order."""
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")


def ahead(work: Callable[[Given], Result], given: Iterable[Given], workers: int) -> Iterator[Result]:
    """map(work, given) with `workers` threads; never more than twice as many results wait."""
    rest, waiting = iter(given), deque[Future]()
    pool = ThreadPoolExecutor(workers)
    try:
        waiting.extend(pool.submit(work, one) for one in islice(rest, 2 * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, one) for one in islice(rest, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
