"""When nothing fits: which stage, by how much, and what would make it fit."""

from collections.abc import Sequence

import numpy as np

from recparallel.errors import DoesNotFitError
from recparallel.partitioning.chain import cut_chain
from recparallel.partitioning.costs import Costs, Group
from recparallel.partitioning.schedules import PIPELINE_SCHEDULES

_MIB = 2**20


def too_little_memory(costs: Costs, order: Sequence[Group]) -> DoesNotFitError:
    """The error for a pipeline of which no cut fits, told by the cut that comes nearest.

    That is the one whose worst stage exceeds its limit by the least: the same search as for the slowest stage, with
    bytes too many in place of seconds.
    """
    tables = []
    for stage, group in enumerate(order):
        ends, begins = costs.stage_bytes(stage)
        tables.append((ends - (np.inf if group.memory_bytes is None else group.memory_bytes), begins))
    bounds = cut_chain(tables, costs.num_layers)
    assert bounds is not None
    needed = [tables[s][0][b] - tables[s][1][a] for s, (a, b) in enumerate(zip(bounds, bounds[1:]))]
    worst = max(range(len(order)), key=lambda stage: needed[stage])
    limit = order[worst].memory_bytes
    assert limit is not None
    lacking = needed[worst]
    kept = min(costs.schedule.ahead(worst, costs.stages), costs.num_micro_batches)
    kept_by_1f1b = min(PIPELINE_SCHEDULES["1f1b"].ahead(worst, costs.stages), costs.num_micro_batches)
    schedule = "the schedule 1f1b, " if kept > kept_by_1f1b else ""
    return DoesNotFitError(
        f"no cut into {len(order)} stages fits: with the one that comes nearest, stage {worst} "
        f"({costs.layers_of(bounds, worst)}) on {order[worst].name} needs {(limit + lacking) / _MIB:,.1f} MiB and has "
        f"{limit / _MIB:,.1f} MiB, {lacking / _MIB:,.1f} MiB too few. It would fit if every device had that much more; smaller "
        f"micro-batches, {schedule}more stages, or the optimizer state shared by replicas (zero_optimization.stage 1) need less"
    )
