"""``python -m benchmarks transfers``: boundary transfers that run beside the computation against those that block, and in bf16.

All sides in fp32, where tensors are the largest: the same layers and losses, each side cut for its own schedule and its own bytes.
"""

from pathlib import Path

from benchmarks.options import Options
from benchmarks.partition import KEEP_MEMORY
from benchmarks.peers.recparallel_pipeline import EXTRAS
from benchmarks.peers.sides import Side, get_side
from benchmarks.study import Study, run_study
from benchmarks.workloads import Workload

BLOCKING = "recparallel fp32, 1f1b"
_SIDES = (BLOCKING, "recparallel fp32", "recparallel fp32, bf16 on the wire")


def sides_of(workload: Workload) -> tuple[Side, ...]:
    """The same pipeline under the three ways."""
    return tuple(map(get_side, _SIDES))


STUDY = Study(
    name="transfers",
    base=BLOCKING,
    sides=sides_of,
    workloads=("deep", "head"),
    clusters=("flat", "narrow"),
    document=Path("docs") / "partitioning.md",
    environment=KEEP_MEMORY,
    extras=EXTRAS,
    settles=1,
)


def run(options: Options) -> int:
    """Measure; :func:`benchmarks.study.run_study` has the details."""
    return run_study(STUDY, options)
