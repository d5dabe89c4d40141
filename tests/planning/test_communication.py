"""Choosing how replicas exchange: pure."""

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.planning.communication import ExchangeTime, Reading, choose, fit, has_drifted

times = st.builds(ExchangeTime, st.floats(0, 1), st.floats(0, 1e-6))
sizes = st.integers(1, 10**8)


@given(st.dictionaries(st.sampled_from("abcdef"), times, min_size=1), sizes, st.floats(0, 0.99))
def test_a_way_that_loses_more_is_taken_only_where_it_saves_enough(options, size, min_gain):
    choice = choose(size, options, min_gain=min_gain)
    ways = list(options)
    taken = ways.index(choice.way)
    assert choice.predicted_seconds == options[choice.way].seconds(size)
    for way in ways[:taken]:
        assert choice.predicted_seconds <= options[way].seconds(size)
    for way in ways[taken + 1 :]:
        assert options[way].seconds(size) >= (1 - min_gain) * choice.predicted_seconds


@given(times, st.integers(1, 10**5), st.integers(1, 10**5))
def test_a_line_through_two_readings_goes_through_them(time, small, more):
    large = small + more
    found = fit(Reading(small, time.seconds(small)), Reading(large, time.seconds(large)))
    assert found.seconds(small) == pytest.approx(time.seconds(small), rel=1e-6, abs=1e-12)
    assert found.seconds(large) == pytest.approx(time.seconds(large), rel=1e-6, abs=1e-12)


@settings(max_examples=examples(50))
@given(st.floats(0, 1), st.floats(0, 1))
def test_noise_makes_no_part_of_a_line_negative(small, large):
    found = fit(Reading(10, small), Reading(1000, large))
    assert found.latency_seconds >= 0
    assert found.seconds_per_element >= 0


@pytest.mark.parametrize("sizes", [(10, 10), (10, 5), (0, 5)])
def test_a_line_needs_two_sizes(sizes):
    with pytest.raises(ValueError, match="two sizes in order"):
        fit(Reading(sizes[0], 1.0), Reading(sizes[1], 1.0))


@pytest.mark.parametrize(("measured", "drifted"), [(1.9, False), (2.1, True), (0.6, False), (0.4, True)])
def test_what_takes_twice_as_long_or_half_has_drifted(measured, drifted):
    assert has_drifted(1.0, measured, tolerance=2.0) is drifted
