"""Options that are numbers, checked as they are read; without the imports of `arguments`."""
import argparse
import math
import secrets

RANDOM_SEED = "random"
MOST_RANDOM_SEED = 2 ** 32 - 1          # one that other programs take too


def whole_from_zero(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 0")
    return int(text)


def positive_whole(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def finite_number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} must be a finite number")
    return value


def number_from_zero(text: str) -> float:
    """A finite number of at least 0."""
    value = finite_number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of at least 0")
    return value


def positive_number(text: str) -> float:
    """A finite number above 0."""
    value = finite_number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value


def seed_or_random(text: str) -> int | str:
    """A whole number, negative ones too, or RANDOM_SEED."""
    try:
        return RANDOM_SEED if text == RANDOM_SEED else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} must be a whole number, or {RANDOM_SEED}") from None


def drawn_seed(chosen: int | str) -> int:
    """The seed itself; in place of RANDOM_SEED a new one, which is printed so that the image can be generated again."""
    if isinstance(chosen, int):
        return chosen
    seed = secrets.randbelow(MOST_RANDOM_SEED + 1)
    print(f"seed {seed}")
    return seed
