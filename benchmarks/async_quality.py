"""``python -m benchmarks async_quality``: does it cost recommendations that replicas train apart?

A replica at half speed is one whose rounds have half the steps: it reads a third of the histories, and what it does while the other
finishes a round is stale. In DiLoCo the other would wait for it, and the weights would be the same.
"""

from pathlib import Path
from typing import Any

from benchmarks.options import Options
from benchmarks.quality_study import Study, Way, run_study


def _apart(mode: str, **options: Any) -> dict[str, Any]:
    return {"data_parallel": {"mode": mode, "replicas": 2, **options}}


_OUTER = {"outer_learning_rate": 0.7, "outer_momentum": 0.3}

STUDY = Study(
    "async_quality",
    (
        Way("synchronous", alias="dense"),
        Way("diloco, 10 steps", _apart("diloco", local_steps=10, **_OUTER)),
        Way("bounded_staleness, 10 and 5 steps", _apart("bounded_staleness", local_steps=[10, 5], **_OUTER)),
        Way("local_sgd, 8 steps", _apart("local_sgd", local_steps=8)),
    ),
    Path("docs") / "data_parallel.md",
)


def run(options: Options) -> int:
    """Returns: 0 if all trainings ended, whatever came out; 1 without the data."""
    return run_study(STUDY, options)
