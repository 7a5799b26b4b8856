"""What all tests share: which folders a tier collects, and the checkout loaded as the host loads it."""
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
TIERS = ("host", "browser")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m host` and `-m browser` look into their own folder only.

    A host's Python runs the host tier and need not have the packages that the other tests import.
    """
    tier = next((tier for tier in TIERS if config.option.markexpr.startswith(tier)), None)
    if tier is None or collection_path == TESTS:
        return None
    return None if (TESTS / tier) in (collection_path, *collection_path.parents) else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything below tests/host is of the host tier, everything below tests/browser of the browser tier."""
    for item in items:
        for tier in TIERS:
            if (TESTS / tier) in item.path.parents:
                item.add_marker(tier)
    if not config.option.markexpr and not os.environ.get("PIXART_SLOW"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; run with -m slow or PIXART_SLOW=1"))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt even where tests run in the background, which shells start deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def extension() -> ModuleType:
    """This checkout as a package under a name of its own, as the host imports it, but without a host."""
    spec = importlib.util.spec_from_file_location("pixart_extension", ROOT / "__init__.py",
                                                  submodule_search_locations=[str(ROOT)])
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
