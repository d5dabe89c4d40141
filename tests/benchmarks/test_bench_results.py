"""The arithmetic of rows, ratios, noise and bounds, and readings that survive an interruption."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.bounds import compute_seconds, network_seconds, ring_all_reduce_seconds
from benchmarks.cluster import ClusterSpec
from benchmarks.clusters import CLUSTERS
from benchmarks.environment import Environment
from benchmarks.interleave import control_name, interleave
from benchmarks.readings import Readings
from benchmarks.results import Bound, Results, exceeds_noise, ratio_of, row_of, spread
from recparallel.errors import ConfigError

ENVIRONMENT = Environment(
    machine="m", cores=2, memory_gib=1.0, system="Linux", versions={"torch": "2"}, command="c", emulated=True
)
positive = st.floats(0.01, 1e6)


def test_the_ratio_is_taken_pair_by_pair_and_not_of_the_medians() -> None:
    # The machine slows down by ten between rounds; both sides see it, and only pairs cancel it.
    ratio = ratio_of("w", "c", "s", side="a", against="b", pairs=[(2.0, 1.0), (20.0, 10.0), (210.0, 100.0)])
    assert (ratio.median, ratio.min, ratio.max) == (2.0, 2.0, 2.1)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=9))
def test_a_ratio_lies_between_its_ends_and_turns_round(pairs: list[tuple[float, float]]) -> None:
    there = ratio_of("w", "c", "s", side="a", against="b", pairs=pairs)
    back = ratio_of("w", "c", "s", side="b", against="a", pairs=[(b, a) for a, b in pairs])
    assert there.min <= there.median <= there.max
    assert there.min == pytest.approx(1 / back.max)
    assert there.max == pytest.approx(1 / back.min)


def test_a_claim_inside_the_controls_spread_is_not_made() -> None:
    control = ratio_of("w", "c", "s", side="a (control)", against="a", pairs=[(0.95, 1.0), (1.08, 1.0)])
    assert spread(control) == pytest.approx(0.08)
    for value, claimed in [(1.05, False), (0.93, False), (1.2, True), (0.8, True)]:
        ratio = ratio_of("w", "c", "s", side="b", against="a", pairs=[(value, 1.0)])
        assert exceeds_noise(ratio, control) is claimed


def test_no_pair_and_a_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="no round"):
        ratio_of("w", "c", "s", side="a", against="b", pairs=[])
    with pytest.raises(ValueError, match="reading of 0"):
        ratio_of("w", "c", "s", side="a", against="b", pairs=[(1.0, 0.0)])


def test_the_file_has_the_agreed_form_and_comes_back(tmp_path: Path) -> None:
    results = Results(benchmark="stock", environment=ENVIRONMENT)
    results.rows.append(row_of("head", "flat", "dp", "rate", "1/s", [3.0, 1.0, 2.0]))
    results.ratios.append(ratio_of("head", "flat", "rate", side="pp", against="dp", pairs=[(2.0, 1.0)]))
    results.bounds.append(
        Bound(workload="head", cluster="flat", name="compute", metric="rate", unit="1/s", value=9.0, basis="b")
    )
    results.save(tmp_path / "stock.json")
    content = json.loads((tmp_path / "stock.json").read_text())
    assert list(content)[:5] == ["benchmark", "environment", "rows", "ratios", "bounds"]
    assert content["rows"][0] == {
        "workload": "head",
        "cluster": "flat",
        "side": "dp",
        "metric": "rate",
        "unit": "1/s",
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "runs": 3,
    }
    assert Results.load(tmp_path / "stock.json") == results
    (tmp_path / "stock.json").write_text('{"benchmark": 1}')
    with pytest.raises(ConfigError, match=r"stock\.json.*environment"):
        Results.load(tmp_path / "stock.json")


def _compare(readings: Readings, calls: list[str], *, fail_at: int | None = None) -> object:
    def side(name: str, value: float) -> dict[str, float]:
        if fail_at == len(calls):
            raise KeyboardInterrupt
        calls.append(name)
        return {"seconds": value}

    return interleave(
        {"a": lambda: side("a", 2.0), "b": lambda: side("b", 1.0)},
        base="a",
        rounds=2,
        workload="w",
        cluster="c",
        units={"seconds": "s"},
        readings=readings,
        seconds_per_run=0.1,
    )


def test_sides_take_turns_with_a_control_and_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    calls: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        _compare(Readings(path, ENVIRONMENT), calls, fail_at=4)
    with path.open("a") as file:
        file.write('{"workload": "w", "clus')  # killed while it wrote
    found = _compare(Readings(path, ENVIRONMENT), calls)
    assert calls == ["a", "b", "a", "a", "b", "a"]
    assert found.ratio("b", "seconds").median == 0.5  # type: ignore[attr-defined]
    assert found.noise("seconds") == 0.0  # type: ignore[attr-defined]
    assert found.is_finding("b", "seconds")  # type: ignore[attr-defined]
    assert {row.side: row.runs for row in found.rows} == {"a": 2, "b": 2, control_name("a"): 2}  # type: ignore[attr-defined]


def test_readings_of_other_conditions_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Readings(path, ENVIRONMENT).add("w", "c", "a", 0, {"s": 1.0})
    other = ENVIRONMENT.model_copy(update={"versions": {"torch": "3"}})
    assert len(Readings(path, ENVIRONMENT.model_copy(update={"command": "another"}))) == 1
    with pytest.raises(ConfigError, match=r"versions.*torch.*--fresh"):
        Readings(path, other)
    assert len(Readings(path, other, fresh=True)) == 0


def test_the_ring_bound_counts_hops_that_leave_a_node() -> None:
    size = 4_000_000
    assert ring_all_reduce_seconds(CLUSTERS["flat"], size) == pytest.approx(0.240)
    # Only one of two ranks of a node sends over its link, so that the bound is that of four ranks all the same.
    assert ring_all_reduce_seconds(CLUSTERS["two_tier"], size) == pytest.approx(0.240)
    assert ring_all_reduce_seconds(CLUSTERS["mixed"], size) == pytest.approx(0.960)
    assert ring_all_reduce_seconds(CLUSTERS["fast"], size) == 0
    assert ring_all_reduce_seconds(ClusterSpec(name="one", nodes=1, ranks_per_node=4, link_mbit=1), size) == 0


def test_compute_and_network_bounds() -> None:
    assert compute_seconds(8.0, CLUSTERS["flat"]) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="no CPU limit"):
        compute_seconds(8.0, ClusterSpec(name="c", nodes=2))
    assert network_seconds(CLUSTERS["mixed"], {0: 25e6, 3: 12.5e6}) == pytest.approx(2.0)


def test_a_plot_is_written_where_matplotlib_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plot import plot_metric

    results = Results(benchmark="stock", environment=ENVIRONMENT)
    results.rows += [row_of("head", "flat", side, "rate", "1/s", [1.0, 2.0]) for side in ("dp", "pp")]
    plot_metric(results, "rate", tmp_path / "stock.png")
    assert (tmp_path / "stock.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"'speed'.*rate"):
        plot_metric(results, "speed", tmp_path / "x.png")
