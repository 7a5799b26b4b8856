"""Cases: single measurements, carried out one after the other, none of which stops the next."""
import sys
import time
import traceback
from collections.abc import Callable

from .notes import Notes
from .setting import Absent, Setting

Case = Callable[[Setting, Notes], None]
SPARE = 4.0                     # seconds that a case needs at least


def carry_out(cases: dict[str, Case], setting: Setting, notes: Notes) -> None:
    for name, case in cases.items():
        if setting.left() < SPARE:
            notes.absent(name, "no time was left")
            continue
        started = time.monotonic()
        try:
            case(setting, notes)
        except Absent as reason:
            notes.absent(name, str(reason))
        except Exception as error:      # whatever a case raises is its result
            traceback.print_exc()
            notes.failed(name, error)
        setting.tidy()
        print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
