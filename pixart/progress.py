"""How long-running functions report progress."""
from collections.abc import Callable

Progress = Callable[[str, int, int], None]      # (stage, done, total); total 0 where it is not known; may raise to stop
CountProgress = Callable[[int, int], None]      # (done, total); may raise to stop
