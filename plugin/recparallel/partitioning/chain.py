"""The recurrence that all exact cuts of a chain share, for all begins and ends of a stage at once.

``B[s][j] = min over i < j of max(B[s - 1][i], cost_s(i, j))`` (the chain-partitioning recurrence, see Pinar & Aykanat, "Fast
optimal load balancing algorithms for 1D partitioning", J. Parallel Distrib. Comput. 2004, section 2). With devices and
links that differ, memory limits, and boundaries of different size, ``cost_s`` is not monotone in ``i``, so nothing may
be skipped: ``O(stages · layers²)``, in vector operations.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from recparallel.partitioning.costs import Floats

Table: TypeAlias = tuple[Floats, Floats]
"""``(ends, begins)``: the cost of a stage ``i … j`` is ``ends[j] - begins[i]``."""


def cut_chain(
    costs: Sequence[Table],
    num_layers: int,
    *,
    least: Sequence[Floats] = (),
    needs: Sequence[Table | None] = (),
    limits: Sequence[float | None] = (),
) -> list[int] | None:
    """Cut a chain into non-empty stages so that the costliest is as cheap as possible.

    Args:
        costs: of each stage.
        num_layers: of the chain; at least one for each stage.
        least: of each stage, by its begin: what it costs at least.
        needs: of each stage, what must not exceed its limit; empty is no limit at all.
        limits: of each stage; None is no limit.

    Returns:
        The bounds, or None if no cut keeps the limits. Of equal cuts the one whose last stages begin earliest.
    """
    stages = len(costs)
    best = np.full(num_layers + 1, np.inf)
    best[0] = -np.inf
    choices = []
    for stage, cost in enumerate(costs):
        own = needs[stage] if needs else None
        limit = limits[stage] if limits else None
        if least:
            best = np.maximum(best, least[stage])
        best, choice = extend(best, cost, first=stage, last=num_layers - (stages - stage), needs=own, limit=limit)
        choices.append(choice)
    if best[num_layers] == np.inf:
        return None
    bounds = [num_layers]
    for choice in reversed(choices):
        bounds.append(int(choice[bounds[-1]]))
    return bounds[::-1]


def extend(
    best: Floats, cost: Table, *, first: int, last: int, needs: Table | None = None, limit: float | None = None
) -> tuple[Floats, NDArray[np.intp]]:
    """Put one more stage behind every beginning of the chain.

    Args:
        best: of each end ``i``, the costliest stage so far; inf where nothing ends there.
        cost: of the new stage.
        first, last: where the new stage may begin, both included; it ends behind that, at most at ``last + 1``.
        needs, limit: the new stage may not need more than this.

    Returns:
        ``best`` of each end ``j``, and the beginning that it is reached from.
    """
    begin, end = slice(first, last + 1), slice(first + 1, last + 2)
    ends, begins = cost
    value = ends[end][:, None] - begins[begin][None, :]
    np.maximum(value, best[begin][None, :], out=value)
    value[_upper(last + 1 - first)] = np.inf  # a stage ends behind its beginning
    if needs is not None and limit is not None:
        value[needs[0][end][:, None] - needs[1][begin][None, :] > limit] = np.inf
    found = np.argmin(value, axis=1)
    reached = np.full_like(best, np.inf)
    reached[end] = value[np.arange(len(found)), found]
    choice = np.zeros(len(best), dtype=np.intp)
    choice[end] = found + first
    return reached, choice


@lru_cache(maxsize=1)
def _upper(size: int) -> NDArray[np.bool_]:
    """Where the begin lies behind the last layer of the stage; kept, as all stages of a chain need the same one."""
    return np.triu(np.ones((size, size), dtype=bool), k=1)
