"""What the long run with faults makes of its reports: parts between decisions, and what it calls a fault."""

import pytest

from benchmarks.endurance import faults_of, lines_of, parts_of
from benchmarks.endurance_rank import Order

ORDER = Order(steps=200, poisoned_every=30)
LINKS = ("200 Mbit/s", "20 Mbit/s")


def report(**changes):
    """Dense up to the drop at step 100, int8 from step 151 on."""
    skipped = [step % 30 == 0 for step in range(1, 201)]
    return {
        "losses": [1.0] * 100 + [0.5] * 100,
        "seconds": [0.1] * 99 + [1.0] * 51 + [0.25] * 50,
        "skipped": skipped,
        "choices": [[0, 1000, "none"], [0, 10, "none"], [150, 1000, "int8"], [150, 10, "none"]],
        "looks": [[50, 0.1, False], [100, 0.1, False], [150, 1.0, True]],
        "diverged": [],
        "kept_finite": True,
        **changes,
    }


def test_a_part_ends_where_the_link_drops_and_where_the_choice_changes():
    parts = parts_of(report(), ORDER, drop=100, links=LINKS)
    assert [(p.first, p.last, p.link, p.ways, p.seconds) for p in parts] == [
        (1, 99, "200 Mbit/s", "none", 0.1),
        (100, 150, "20 Mbit/s", "none", 1.0),
        (151, 200, "20 Mbit/s", "int8, none", 0.25),
    ]
    assert [(p.poisoned, p.skipped) for p in parts] == [(3, 3), (2, 2), (1, 1)]
    assert lines_of(parts)[0] == ("1–99", "200 Mbit/s", "0.100", "none", "3", "3", "1.000")


def test_the_same_decision_again_ends_no_part():
    again = report(choices=[*report()["choices"], [170, 1000, "int8"], [170, 10, "none"]])
    assert [p.last for p in parts_of(again, ORDER, drop=100, links=LINKS)] == [99, 150, 200]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"diverged": [50]}, "differ behind steps [50]"),
        ({"kept_finite": False}, "rank 0 keeps numbers that are not finite"),
        ({"skipped": [False] * 200}, "steps [30, 60, 90, 120, 150, 180] had a gradient"),
        ({"looks": [[50, 0.1, False]]}, "nobody noticed"),
        ({"choices": [[0, 1000, "none"]]}, "not chosen anew"),
    ],
)
def test_what_must_not_be_is_a_fault(changes, said):
    found = faults_of([report(**changes)] * 2, ORDER, drop=100)
    assert any(said in fault for fault in found), found
    assert faults_of([report()] * 2, ORDER, drop=100) == []


def test_without_a_drop_nobody_need_notice_one():
    assert faults_of([report(looks=[], choices=[])] * 2, ORDER, drop=None) == []


def test_ranks_that_skip_different_steps_are_a_fault():
    other = report(skipped=[True, *report()["skipped"][1:]])
    assert faults_of([report(), other], ORDER, drop=100) == ["ranks skipped different steps"]


def test_another_rank_has_the_bad_gradient_each_time():
    bad = {step: [rank for rank in range(4) if ORDER.poisons(step, rank, 4)] for step in range(1, 200)}
    assert [ranks for ranks in bad.values() if ranks] == [[1], [2], [3], [0], [1], [2]]
    assert ORDER.num_poisoned == 6
