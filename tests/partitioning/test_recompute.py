"""Stages that do not fit recompute as few layers as must be, and none where everything fits."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparallel.errors import DoesNotFitError, PartitionError
from recparallel.partitioning.bottleneck import minimize_bottleneck
from recparallel.partitioning.costs import Costs
from recparallel.partitioning.even_cut import minimize_step_evenly
from recparallel.partitioning.recompute import fit_by_recomputing, recomputing
from recparallel.partitioning.step_costs import predict_step
from recparallel.plan import Device, LayerCost, Partition, Profile


def profile_of(layers, limit, *, stages=2, micro_batches=6, schedule="eager_1f1b"):
    made = tuple(
        LayerCost(
            name=str(number),
            forward_seconds=forward,
            backward_seconds=2 * forward,
            parameter_bytes=10,
            activation_bytes=activation,
            boundary_bytes=boundary,
        )
        for number, (forward, activation, boundary) in enumerate(layers)
    )
    devices = tuple(Device(memory_bytes=limit) for _ in range(stages))
    return Profile(
        layers=made,
        micro_batch=1,
        sequence_length=1,
        devices=devices,
        num_micro_batches=micro_batches,
        schedule=schedule,
    )


def needs(profile, cut, stage, chosen):
    """Bytes of a stage that recomputes ``chosen``: what is kept, and the activations of the largest of them."""
    ends, begins = Costs(recomputing(profile, chosen), cut.num_stages).stage_bytes(stage)
    back = max((profile.layers[n].activation_bytes for n in chosen), default=0)
    return ends[cut.bounds[stage + 1]] - begins[cut.bounds[stage]] + back


layers = st.lists(
    st.tuples(st.sampled_from([0.5, 1.0, 3.0]), st.integers(0, 60), st.integers(0, 10)), min_size=3, max_size=8
)


@given(layers=layers, limit=st.integers(50, 1500), schedule=st.sampled_from(["1f1b", "eager_1f1b"]))
def test_what_is_recomputed_fits_and_takes_the_least_time(layers, limit, schedule):
    profile = profile_of(layers, limit, schedule=schedule)
    try:
        cut = fit_by_recomputing(profile, 2, minimize_bottleneck)
    except DoesNotFitError:
        return
    for stage in range(2):
        a, b = cut.bounds[stage : stage + 2]
        own = [n for n in cut.recompute if a <= n < b]
        assert needs(profile, cut, stage, own) <= limit

        def seconds(chosen):
            return sum(profile.layers[n].forward_seconds for n in chosen)

        every = (c for size in range(b - a + 1) for c in combinations(range(a, b), size))
        least = min(seconds(chosen) for chosen in every if needs(profile, cut, stage, chosen) <= limit)
        assert seconds(own) == pytest.approx(least)
    if cut.recompute:
        with pytest.raises(DoesNotFitError):
            minimize_bottleneck(profile, 2)
        assert cut.step_seconds == pytest.approx(predict_step(recomputing(profile, cut.recompute), cut))


@given(layers=layers)
def test_what_fits_is_cut_as_ever(layers):
    profile = profile_of(layers, 10**9)
    assert fit_by_recomputing(profile, 2, minimize_step_evenly) == minimize_step_evenly(profile, 2)


@given(layers=layers)
def test_where_nothing_fits_both_lacks_are_told(layers):
    with pytest.raises(DoesNotFitError) as raised:
        fit_by_recomputing(profile_of(layers, 9), 2, minimize_bottleneck)  # the weights of a layer are more
    assert "no cut into 2 stages fits" in str(raised.value)
    assert "Recomputing every layer is not enough" in str(raised.value)


def test_blocks_recompute_one_after_the_other_as_memory_shrinks():
    layers = [(0.1, 0, 10), *[(1.0, 100, 10)] * 6, (1.0, 0, 0)]
    counts = [
        len(fit_by_recomputing(profile_of(layers, limit), 2, minimize_bottleneck).recompute)
        for limit in (1400, 1100, 900, 700, 500, 400)
    ]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] >= 3


def test_other_errors_stay_as_they_are():
    with pytest.raises(PartitionError, match="9 stages, but only 3 layers") as raised:
        fit_by_recomputing(profile_of([(1.0, 1, 1)] * 3, 10, stages=9), 9, minimize_bottleneck)
    assert "Recomputing" not in str(raised.value)


def test_a_partition_names_layers_that_exist():
    with pytest.raises(ValueError, match=r"recompute names layers \[4\]; there are 4"):
        Partition(bounds=(0, 2, 4), method="profile", recompute=(4,))
