"""``python -m benchmarks quality``: does what codecs leave out cost recommendations?"""

from pathlib import Path

from benchmarks.options import Options
from benchmarks.quality_study import Study, Way, run_study

STUDY = Study(
    "quality",
    (
        Way("dense"),
        Way("auto", {"compression": {"codec": "auto"}}),
        Way("int8", {"compression": {"codec": "int8"}}),
        Way("top_k_threshold 1 %", {"compression": {"codec": "top_k_threshold", "ratio": 0.01}}),
        Way("power_sgd rank 2", {"compression": {"codec": "power_sgd", "rank": 2}}),
    ),
    Path("docs") / "compression.md",
)


def run(options: Options) -> int:
    """Returns: 0 if all trainings ended, whatever came out; 1 without the data."""
    return run_study(STUDY, options)
