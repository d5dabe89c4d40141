import pytest

from recparallel.profiling import steady
from recparallel.profiling.steady import steady_passes


@pytest.fixture
def faults(monkeypatch):
    """Page faults of passes to come, in order; none when the list is used up."""
    coming, so_far = [], [0]
    monkeypatch.setattr(steady, "_page_faults", lambda: so_far[0])

    def run():
        so_far[0] += coming.pop(0) if coming else 0
        run.number += 1
        return run.number

    run.number = 0
    return coming, run


def test_without_faults_the_first_passes_behind_the_warmup_count(faults):
    _, run = faults
    assert steady_passes(run, repeats=3, warmup=2) == [3, 4, 5]


def test_a_pass_that_takes_memory_does_not_count(faults):
    coming, run = faults
    coming[:] = [10_000, 8_000, 0, 8_000, 1, 0]
    assert steady_passes(run, repeats=3, warmup=1) == [3, 5, 6]


def test_where_every_pass_takes_memory_those_that_take_least_count(faults):
    coming, run = faults
    coming[:] = [900, 800, 700, 600, 1_000, 500, 1_000]
    assert steady_passes(run, repeats=2, warmup=0) == [6, 4]
    assert run.number == 6
