from pathlib import Path

import pytest

from benchmarks import agreement
from benchmarks.environment import capture_environment
from benchmarks.interleave import control_name
from benchmarks.results import Ratio, Results


def results(control, **sides):
    found = {control_name("base"): (control, control), **{name: (value, value) for name, value in sides.items()}}
    ratios = [
        Ratio(
            workload="head",
            cluster="flat",
            side=side,
            against="base",
            metric="sequences_per_second",
            median=(low + high) / 2,
            min=low,
            max=high,
        )
        for side, (low, high) in found.items()
    ]
    return Results(benchmark="stock", environment=capture_environment("test", emulated=False), ratios=ratios)


def agreeing(first, second):
    return {one.first.side: one.agrees for one in agreement.compare_runs(first, second)}


def test_five_percent_is_the_least_that_counts():
    found = agreeing(results(1.0, near=2.0, far=2.0), results(1.0, near=2.09, far=2.11))
    assert found == {"base (control)": True, "near": True, "far": False}


@pytest.mark.parametrize(("first", "second"), [(0.92, 1.0), (1.0, 1.08)])
def test_a_noisier_control_allows_more(first, second):
    assert agreeing(results(first, side=1.0), results(second, side=1.07))["side"]


def test_the_program_says_what_does_not_agree(tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    results(1.0, side=1.0).save(Path(paths[0]))
    results(1.0, side=1.2).save(Path(paths[1]))
    assert agreement.main(paths) == 1
    assert "1 of 2 ratios agree" in capsys.readouterr().out
    assert agreement.main([paths[0], paths[0]]) == 0
    assert agreement.main(paths[:1]) == 2
