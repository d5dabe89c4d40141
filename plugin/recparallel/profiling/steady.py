"""Passes in the steady state of a training: those in which the process takes no more memory from the system.

The first passes touch new pages, and with a heap that still grows so does now and then a later one: a softmax that takes
0.09 s takes 0.3 s then. A training is over that after its first steps.
"""

import resource
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FEW_FAULTS = 64
"""Page faults of a pass that are too few to be seen in its time."""


def steady_passes(run: Callable[[], T], *, repeats: int, warmup: int) -> list[T]:
    """What ``repeats`` passes give: those with the fewest page faults.

    1. Run ``warmup`` passes, and then passes until ``repeats`` of them were without page faults, at most three times as many.
    2. Of these take the ones with the fewest, the first of equal ones.
    """
    for _ in range(warmup):
        run()
    passes: list[tuple[int, T]] = []
    while len(passes) < 3 * repeats and sum(faults <= _FEW_FAULTS for faults, _ in passes) < repeats:
        before = _page_faults()
        result = run()
        passes.append((_page_faults() - before, result))
    passes.sort(key=lambda one: max(one[0], _FEW_FAULTS))
    return [result for _, result in passes[:repeats]]


def _page_faults() -> int:
    """Of this process so far, without those that a disk answered."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
