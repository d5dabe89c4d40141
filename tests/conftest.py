"""Shared fixtures: worker pools by world size."""

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

from distributed import Pool
from effort import examples

# Profiles that tests measure are not those of the person who runs them.
_caches = tempfile.TemporaryDirectory(prefix="caches-")
os.environ["RECPARALLEL_CACHE"] = _caches.name

# A loaded machine is no defect: no deadlines, and slow generation is none either.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=examples(100)
)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Launches come first, before pools of workers take up memory: each reads torch and DeepSpeed from the disk anew."""
    items.sort(key=lambda item: item.get_closest_marker("launch") is None)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look through it again and again."""
    gc.freeze()


@pytest.fixture(scope="session")
def pools() -> Iterator[dict[int, Pool]]:
    """Pools of 1, 2 and 4 processes, each started when it is first used."""

    class Lazy(dict[int, Pool]):
        def __missing__(self, size: int) -> Pool:
            self[size] = Pool(size)
            return self[size]

    lazy = Lazy()
    yield lazy
    for pool in lazy.values():
        pool.close()
