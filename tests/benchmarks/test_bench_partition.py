"""What the `partition` benchmark makes of readings: ratios to the best stock cut, errors of predictions, pictures."""

from pathlib import Path

import pytest

from benchmarks import partition
from benchmarks.environment import capture_environment
from benchmarks.peers.recparallel_pipeline import EXTRAS
from benchmarks.peers.sides import get_side
from benchmarks.results import Results, row_of
from benchmarks.study_metrics import RATE, extra
from benchmarks.study_tables import markers
from benchmarks.workloads import WORKLOADS


def results(*, stages=((1.0, 1.1), (2.0, 1.9)), predicted=2.1, measured=2.0, fastest=1.8, shortest=1.6):
    """Of `head` on `flat`: two stock sides and ours, with a prediction and a measurement for each rank."""
    rows = [
        ("ds pp uniform", RATE, 20.0),
        ("ds pp parameters", RATE, 25.0),
        ("recparallel", RATE, 64 / measured),
        ("recparallel", "seconds_per_step", measured),
    ]
    for rank, (forecast, seen) in enumerate(stages):
        own = {
            "predicted_stage_seconds": forecast,
            "stage_seconds": seen,
            "stage_wall_seconds": seen,
            "stage_error": forecast / seen - 1,
            "predicted_step_seconds": predicted,
            "fastest_step_seconds": fastest,
            "shortest_step_seconds": shortest,
            "start_seconds": 3.0 + rank,
            "stage": float(rank),
            "layers": 1.0,
        }
        assert set(own) == set(EXTRAS)
        rows += [("recparallel", extra(name, rank), value) for name, value in own.items()]
        rows.append(("ds pp uniform", extra("stage_seconds", rank), 1.0))
    found = Results(benchmark="partition", environment=capture_environment("test", emulated=False))
    found.rows = [row_of("head", "flat", side, metric, "", [value]) for side, metric, value in rows]
    return found


def test_ours_is_compared_with_the_best_stock_cut_and_with_what_no_cut_can_beat():
    (found,) = partition.findings(results())
    assert (found.stock, found.stock_rate, found.rate) == ("ds pp parameters", 25.0, 32.0)
    assert found.bound == pytest.approx(64 / 1.8)
    assert found.step_error == pytest.approx(0.05)
    assert found.start == 4.0


def test_the_largest_error_of_a_stage_counts():
    (found,) = partition.findings(results(stages=((1.0, 1.1), (2.0, 1.9), (0.9, 1.0))))
    assert found.stage_error == (pytest.approx(0.9 / 1.0 - 1), 1.0)


def test_tables_and_pictures_go_into_the_document(tmp_path):
    path = tmp_path / "docs" / "results" / "partition.json"
    path.parent.mkdir(parents=True)
    document = tmp_path / "docs" / "partitioning.md"
    begin, end = "<!-- results of partition predictions: begin -->", "<!-- results of partition predictions: end -->"
    document.write_text(f"# Cuts\n{begin}\nold\n{end}\n")
    partition.STUDY.conclude(results(), path, document)
    text = document.read_text()
    assert "| head | flat | 32.0 | 25.0 (ds pp parameters) | 1.28 | 35.6 | 90% | 80% | 2.10 / 2.00 | +5.0% |" in text
    assert "![stages of head on flat](results/partition-stages-head-flat.png)" in text
    assert "old" not in text
    assert (path.parent / "partition-stages-head-flat.png").stat().st_size > 1000


def test_without_a_document_only_the_pictures_are_made(tmp_path):
    partition.STUDY.conclude(results(), tmp_path / "quick.json", None)
    assert [p.name for p in tmp_path.iterdir()] == ["quick-stages-head-flat.png"]


@pytest.mark.parametrize("name", ["head", "catalogue", "deep"])
def test_every_workload_has_stock_cuts_and_ours(name):
    sides = [side.name for side in partition.sides_of(WORKLOADS[name])]
    assert {"ds pp uniform", "ds pp parameters", "ds dualpipev", "recparallel"} <= set(sides)
    assert get_side("recparallel").measures  # its links keep their limit while it measures them


def test_the_document_of_this_repository_has_the_markers():
    text = (Path(__file__).parents[2] / "docs" / "partitioning.md").read_text()
    for name in ("partition", "partition predictions"):
        assert all(marker in text for marker in markers(name))
