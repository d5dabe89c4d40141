"""What the `tensor` benchmark makes of readings: the spread head against the whole one, and the best of each kind."""

import pytest

from benchmarks import tensor
from benchmarks.environment import capture_environment
from benchmarks.peers.sides import get_side
from benchmarks.results import Bound, Results, row_of
from benchmarks.study_metrics import RATE
from benchmarks.study_tables import markers
from benchmarks.workloads import WORKLOADS

RATES = {
    "ds pp uniform": 10.0,
    "ds pp uniform (control)": 30.0,
    "ds pp2 dp2": 12.0,
    "ds pp uniform (our kernels)": 16.0,
    "ds autotp": 14.0,
    "recparallel": 15.0,
    "recparallel spread": 18.0,
    "recparallel tp2 pp2": 21.0,
}


def results(rates=RATES):
    found = Results(benchmark="tensor", environment=capture_environment("test", emulated=False))
    found.rows = [row_of("head", "flat", side, RATE, "", [rate]) for side, rate in rates.items()]
    of_all = {"workload": "head", "cluster": "flat", "name": "compute", "metric": RATE, "unit": "", "basis": ""}
    found.bounds = [Bound(**of_all, value=32.0, side=None), Bound(**of_all, value=99.0, side="ds autotp")]
    return found


def test_each_kind_is_compared_with_its_best():
    (found,) = tensor.findings(results())
    assert (found.spread, found.whole) == (18.0, 15.0)
    assert found.pipeline == (12.0, "ds pp2 dp2")
    assert found.ours == (21.0, "recparallel tp2 pp2")
    assert found.stock == (14.0, "ds autotp")  # neither the control nor one with our kernels is
    assert found.given_ours == 16.0
    assert found.bound == 32.0


@pytest.mark.parametrize("missing", ["recparallel", "recparallel spread"])
def test_where_one_of_both_did_not_run_nothing_is_said(missing):
    assert not list(tensor.findings(results({side: rate for side, rate in RATES.items() if side != missing})))


def test_the_table_goes_into_the_document(tmp_path):
    path = tmp_path / "docs" / "results" / "tensor.json"
    document = tmp_path / "docs" / "tensor.md"
    document.parent.mkdir(parents=True)
    document.write_text("\n".join(markers("spread head")))
    tensor.STUDY.conclude(results(), path, document)
    assert (
        "| head | flat | 18.0 | 15.0 | 1.20 | 12.0 (ds pp2 dp2) | 1.50 | 16.0 | 1.12 | 32.0 |" in document.read_text()
    )


def test_sides_divide_all_ranks_and_autotp_comes_last():
    sides = tensor.sides_of(WORKLOADS["head"])
    assert sides[-1].name == "ds autotp"
    for side in sides:
        ranks = side.replicas(4) * side.tensor * (side.stages or 4)
        assert ranks == 4 or side.kind == "tensor"


@pytest.mark.parametrize(
    ("name", "replicas", "micro_batches"),
    [
        ("recparallel spread", 1, (16, 8, 4)),
        ("recparallel spread2 dp2", 2, (16, 8, 4)),
        ("recparallel tp2 pp2", 1, (16, 8, 4)),
        ("recparallel tp2 dp2", 2, (16, 8, 4)),
        ("recparallel tp4", 1, (32, 16, 8)),
    ],
)
def test_what_a_probe_tries(name, replicas, micro_batches):
    side = get_side(name)
    assert side.replicas(4) == replicas
    assert side.micro_batches(WORKLOADS["head"], 4) == micro_batches
