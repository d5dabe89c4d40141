"""How much a test does: a part of it every time, all of it in `make test-slow`."""

import os
from collections.abc import Iterable
from typing import Any

import pytest

FAMILIES_EVERY_TIME = ("gpt2", "gemma2", "llama", "opt")
"""Those that differ the most from each other."""

_SHARE = float(os.environ.get("RECPARALLEL_EXAMPLES", "0.25"))


def examples(count: int) -> int:
    """Of ``count`` examples of a property, those that are tried now; at least 10."""
    return max(min(count, 10), round(_SHARE * count))


def some_every_time(families: Iterable[str]) -> list[Any]:
    """All model families as parameters, most of them for `make test-slow`."""
    return [name if name in FAMILIES_EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in families]
