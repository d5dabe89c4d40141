"""``python -m benchmarks stock``: what a hybrid must beat: stock DeepSpeed and torch DDP, all sides in turn."""

from pathlib import Path

from benchmarks.options import Options
from benchmarks.peers.sides import BASE, sides_for
from benchmarks.study import Study, run_study

STUDY = Study(
    name="stock",
    base=BASE,
    sides=sides_for,
    workloads=("head", "catalogue"),
    clusters=("flat", "two_tier"),
    document=Path("docs") / "benchmarks.md",
)


def run(options: Options) -> int:
    """Measure every stock side (:func:`benchmarks.study.run_study`)."""
    return run_study(STUDY, options)
