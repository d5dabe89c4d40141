from itertools import combinations

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.errors import PartitionError
from recparallel.partitioning.interleaved import minimize_interleaved
from recparallel.plan import Device, LayerCost, Profile


def profile_of(seconds, speeds=()):
    layers = [LayerCost(name=f"l{i}", forward_seconds=s, backward_seconds=0) for i, s in enumerate(seconds)]
    devices = tuple(Device(relative_speed=s) for s in speeds)
    return Profile(layers=tuple(layers), micro_batch=1, sequence_length=1, devices=devices)


@settings(max_examples=examples(400), deadline=None)
@given(st.data())
def test_the_most_loaded_device_has_what_the_best_of_all_cuts_gives_it(data):
    stages, virtual = data.draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 2), (2, 3), (1, 3)]))
    chunks = stages * virtual
    n = data.draw(st.integers(chunks, chunks + 4))
    seconds = data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    speeds = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=stages, max_size=stages))

    def loads(bounds):
        own = [0.0] * stages
        for chunk, (a, b) in enumerate(zip(bounds, bounds[1:])):
            own[chunk % stages] += sum(seconds[a:b]) / speeds[chunk % stages]
        return own

    expected = min(max(loads((0, *inner, n))) for inner in combinations(range(1, n), chunks - 1))
    found = minimize_interleaved(profile_of(seconds, speeds), stages, virtual=virtual)
    assert found.optimal
    assert list(found.stage_seconds) == pytest.approx(loads(found.bounds))
    assert max(found.stage_seconds) == pytest.approx(expected)
    assert (found.num_stages, found.virtual, found.num_layers) == (stages, virtual, n)


def test_a_large_pipeline_is_cut_in_bounded_time():
    found = minimize_interleaved(profile_of([1.0] * 62 + [5.0]), 8, virtual=4)
    assert max(found.stage_seconds) == pytest.approx(67 / 8, rel=0.2)


def test_a_memory_limit_is_refused_rather_than_forgotten():
    profile = profile_of([1] * 4).model_copy(update={"devices": (Device(memory_bytes=1),) * 2})
    with pytest.raises(PartitionError, match="memory limits are not counted for virtual stages"):
        minimize_interleaved(profile, 2, virtual=2)


@pytest.mark.parametrize(
    ("virtual", "message"), [(0, "virtual must be at least 1"), (3, "6 stages, but only 4 layers")]
)
def test_chunks_out_of_range_are_refused(virtual, message):
    with pytest.raises(PartitionError, match=message):
        minimize_interleaved(profile_of([1] * 4), 2, virtual=virtual)
