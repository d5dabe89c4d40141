"""``python -m benchmarks compression``: gradients through codecs, against the dense exchange and torch's own hooks.

Torch DDP on all ranks, and two stages of two replicas. ``ddp without exchange`` is the bound: every rank keeps its own gradients.
"""

from pathlib import Path

from benchmarks.options import Options
from benchmarks.partition import KEEP_MEMORY
from benchmarks.peers.recparallel_pipeline import EXTRAS
from benchmarks.peers.sides import Side, get_side
from benchmarks.study import Study, run_study
from benchmarks.workloads import Workload

BASE = "ddp"
_SIDES = (
    BASE,
    "ddp fp16",
    "ddp int8 of ours",
    "ddp top_k_threshold of ours",
    "ddp power_sgd of ours",
    "ddp auto of ours",
    "ddp without exchange",
    "ds pp2 dp2",
    "recparallel pp2 dp2",
    "recparallel pp2 dp2 int8",
    "recparallel pp2 dp2 auto",
    "ddp powersgd",
)
_OF_CATALOGUE = (
    "ds dp",
    "ddp sparse",
    "ddp sparse sgd",
    "ds dp sparse sgd",
    "recparallel dp4 lazy",
    "recparallel dp4 lazy auto",
    "recparallel pp2 dp2 lazy",
)
"""Dense AdamW, sparse gradients with SparseAdam and with plain SGD, and rows by a lazy AdamW."""


def sides_of(workload: Workload) -> tuple[Side, ...]:
    """All on every workload; item tables by rows where a step touches few of them."""
    return tuple(map(get_side, _SIDES + (_OF_CATALOGUE if workload.name == "catalogue" else ())))


STUDY = Study(
    name="compression",
    base=BASE,
    sides=sides_of,
    workloads=("head", "catalogue"),
    clusters=("flat", "two_tier", "fast"),
    document=Path("docs") / "compression.md",
    environment=KEEP_MEMORY,
    extras=EXTRAS,
    settles=1,
)


def run(options: Options) -> int:
    """Measure; :func:`benchmarks.study.run_study` has the details."""
    return run_study(STUDY, options)
