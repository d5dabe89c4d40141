"""Every exact solver against every cut: devices, links and memory that differ, order given or free."""

import brute_force as reference
import pytest
from effort import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recparallel import registry
from recparallel.errors import PartitionError
from recparallel.partitioning.bottleneck import minimize_bottleneck
from recparallel.partitioning.device_order import minimize_bottleneck_any_order, minimize_step_any_order
from recparallel.partitioning.step_costs import predict_step
from recparallel.partitioning.step_time import minimize_step
from recparallel.plan import Device, LayerCost, LinkCost, Partition, Profile

EXACT = {"rel": 1e-12, "abs": 1e-12}


def best_bottleneck(profile, stages, orders):
    found = [
        max(reference.stage_seconds(profile, bounds, order))
        for order in orders
        for bounds in reference.cuts(len(profile.layers), stages)
        if reference.fits(profile, bounds, order)
    ]
    return min(found, default=None)


def best_step(profile, stages, orders):
    found = []
    for order in orders:
        for bounds in reference.cuts(len(profile.layers), stages):
            if reference.fits(profile, bounds, order):
                cut = Partition(bounds=bounds, method="all of them", device_order=order)
                found.append(predict_step(profile, cut))
    return min(found, default=None)


def check(profile, stages, partition):
    """A cut into non-empty stages that fits, with the stage times that it says."""
    order = partition.device_order or tuple(range(stages))
    assert partition.num_stages == stages
    assert partition.num_layers == len(profile.layers)
    assert all(a < b for a, b in zip(partition.bounds, partition.bounds[1:]))
    assert reference.fits(profile, partition.bounds, order)
    assert list(partition.stage_seconds) == pytest.approx(
        reference.stage_seconds(profile, partition.bounds, order), **EXACT
    )


@settings(max_examples=examples(1500), deadline=None)
@given(reference.profiles())
def test_the_bottleneck_is_that_of_the_best_of_all_cuts(instance):
    profile, stages = instance
    expected = best_bottleneck(profile, stages, [tuple(range(stages))])
    if expected is None:
        with pytest.raises(PartitionError, match="no cut into"):
            minimize_bottleneck(profile, stages)
        return
    partition = minimize_bottleneck(profile, stages)
    check(profile, stages, partition)
    assert max(partition.stage_seconds) == pytest.approx(expected, **EXACT)


@settings(max_examples=examples(1000), deadline=None)
@given(reference.profiles(most_layers=6))
def test_with_the_order_free_it_is_that_of_the_best_of_all_orders(instance):
    profile, stages = instance
    expected = best_bottleneck(profile, stages, reference.orders(stages))
    if expected is None:
        with pytest.raises(PartitionError, match="no cut into"):
            minimize_bottleneck_any_order(profile, stages)
        return
    partition = minimize_bottleneck_any_order(profile, stages)
    check(profile, stages, partition)
    assert max(partition.stage_seconds) == pytest.approx(expected, **EXACT)


@settings(max_examples=examples(800), deadline=None)
@given(reference.profiles())
def test_the_step_is_that_of_the_best_of_all_cuts(instance):
    profile, stages = instance
    expected = best_step(profile, stages, [tuple(range(stages))])
    assume(expected is not None)
    partition = minimize_step(profile, stages)
    check(profile, stages, partition)
    assert partition.optimal
    assert partition.step_seconds == pytest.approx(expected, **EXACT)
    assert partition.step_seconds == predict_step(profile, partition)


@settings(max_examples=examples(300), deadline=None)
@given(reference.profiles(most_layers=5, most_stages=3))
def test_with_the_order_free_the_step_is_that_of_the_best_of_all_orders(instance):
    profile, stages = instance
    expected = best_step(profile, stages, list(reference.orders(stages)))
    assume(expected is not None)
    partition = minimize_step_any_order(profile, stages)
    check(profile, stages, partition)
    assert partition.optimal
    assert partition.step_seconds == pytest.approx(expected, **EXACT)


@st.composite
def changes(draw, profile):
    """The same profile with one thing better: a faster device, a faster link, more memory."""
    kind = draw(st.sampled_from(["device", "link", "memory"]))
    if kind == "link" and profile.links:
        index = draw(st.integers(0, len(profile.links) - 1))
        links = list(profile.links)
        links[index] = links[index].model_copy(update={"bytes_per_second": 2 * links[index].bytes_per_second})
        return profile.model_copy(update={"links": tuple(links)})
    if not profile.devices:
        return profile
    index = draw(st.integers(0, len(profile.devices) - 1))
    devices = list(profile.devices)
    device = devices[index]
    more = None if device.memory_bytes is None else device.memory_bytes + 20
    update = {"memory_bytes": more} if kind == "memory" else {"relative_speed": 2 * device.relative_speed}
    devices[index] = device.model_copy(update=update)
    return profile.model_copy(update={"devices": tuple(devices)})


@settings(max_examples=examples(500), deadline=None)
@given(st.data())
@pytest.mark.parametrize("method", ["profile", "profile_any_order"])
def test_a_better_device_link_or_more_memory_never_makes_the_optimum_worse(method, data):
    profile, stages = data.draw(reference.profiles(most_layers=6))
    solve = registry.partitioners.load(method)
    try:
        before = max(solve(profile, stages).stage_seconds)
    except PartitionError:
        return
    after = max(solve(data.draw(changes(profile)), stages).stage_seconds)
    assert after <= before * (1 + 1e-12)


@settings(max_examples=examples(300), deadline=None)
@given(instance=reference.profiles())
@pytest.mark.parametrize("method", sorted(registry.partitioners))
def test_every_rank_finds_the_same_from_the_same_json(method, instance):
    profile, stages = instance
    solve = registry.partitioners.load(method)
    results = []
    for given_profile in (profile, Profile.model_validate_json(profile.model_dump_json())):
        try:
            results.append(solve(given_profile, stages))
        except PartitionError as error:
            results.append(str(error))
    assert results[0] == results[1]


def plain(seconds, **options):
    layers = [LayerCost(name=f"l{i}", forward_seconds=s, backward_seconds=0) for i, s in enumerate(seconds)]
    return Profile(layers=tuple(layers), micro_batch=1, sequence_length=1, **options)


def test_a_slow_device_gets_less_and_stands_where_little_is_to_do():
    devices = (Device(relative_speed=0.25), Device(), Device())
    profile = plain([4, 4, 1], devices=devices)
    assert minimize_bottleneck(profile, 3).stage_seconds == (16.0, 4.0, 1.0)
    free = minimize_bottleneck_any_order(profile, 3)
    assert free.stage_seconds == (4.0, 4.0, 4.0)
    assert free.device_order[2] == 0


def test_the_given_order_is_kept_where_none_is_better():
    assert (
        minimize_bottleneck_any_order(plain([1, 1], devices=(Device(), Device(relative_speed=0.5))), 2).device_order
        == ()
    )


def test_a_slow_link_is_cut_where_little_crosses():
    layers = [
        LayerCost(name=f"l{i}", forward_seconds=1, backward_seconds=0, boundary_bytes=size)
        for i, size in enumerate([100, 100, 1, 100])
    ]
    link = LinkCost(bytes_per_second=10)
    assert minimize_bottleneck(Profile(layers=layers, micro_batch=1, sequence_length=1, links=(link,)), 2).bounds == (
        0,
        3,
        4,
    )
    assert minimize_bottleneck(Profile(layers=layers, micro_batch=1, sequence_length=1), 2).bounds == (0, 2, 4)


def test_what_does_not_fit_is_told_with_the_stage_the_bytes_and_what_would_help():
    layer = LayerCost(
        name="big", forward_seconds=1, backward_seconds=1, parameter_bytes=3 * 2**20, activation_bytes=2**20
    )
    devices = (Device(name="small", memory_bytes=5 * 2**20), Device(name="large", memory_bytes=100 * 2**20))
    layers = (layer, layer.model_copy(update={"name": "other"}))
    profile = Profile(layers=layers, micro_batch=1, sequence_length=1, devices=devices)
    with pytest.raises(
        PartitionError, match=r"stage 0 \(big\) on small needs 8\.0 MiB and has 5\.0 MiB, 3\.0 MiB too few"
    ):
        minimize_bottleneck(profile, 2)


@pytest.mark.parametrize(
    ("schedule", "front", "advised"), [("eager_1f1b", 9, True), ("eager_1f1b", 0, False), ("1f1b", 9, False)]
)
def test_the_other_schedule_is_advised_where_it_keeps_less(schedule, front, advised):
    """The first stage keeps 3 micro-batches in the eager schedule and 2 in 1F1B, the last one 1 in both."""
    layers = [
        LayerCost(name="front", forward_seconds=1, backward_seconds=1, activation_bytes=front),
        LayerCost(name="back", forward_seconds=1, backward_seconds=1, activation_bytes=9),
    ]
    devices = tuple(Device(memory_bytes=8) for _ in range(2))
    profile = Profile(
        layers=layers, micro_batch=1, sequence_length=1, devices=devices, num_micro_batches=4, schedule=schedule
    )
    with pytest.raises(PartitionError) as raised:
        minimize_bottleneck(profile, 2)
    assert ("the schedule 1f1b" in str(raised.value)) == advised


def test_the_stage_with_the_most_micro_batches_in_flight_decides():
    """Equal layers, room for two of them at the end and for one at the front, where activations of all stages are kept."""
    layers = [LayerCost(name=f"l{i}", forward_seconds=1, backward_seconds=1, activation_bytes=10) for i in range(3)]
    devices = tuple(Device(memory_bytes=20) for _ in range(2))
    profile = Profile(layers=layers, micro_batch=1, sequence_length=1, devices=devices)
    assert minimize_bottleneck(profile, 2).bounds == (0, 1, 3)


@pytest.mark.parametrize("count", [1, 3])
def test_a_device_list_of_another_length_is_refused(count):
    with pytest.raises(PartitionError, match=f"lists {count} devices .* for 2 stages; allowed are 2, a multiple of it"):
        minimize_bottleneck(plain([1, 1], devices=tuple(Device() for _ in range(count))), 2)


def test_replicas_go_at_the_pace_of_the_slowest():
    devices = (Device(), Device(relative_speed=0.5), Device(), Device())
    assert minimize_bottleneck(plain([1, 2], devices=devices), 2).stage_seconds == (2.0, 2.0)


def test_a_step_needs_the_number_of_micro_batches():
    with pytest.raises(PartitionError, match="num_micro_batches of the profile is not set"):
        minimize_step(plain([1, 1]), 2)


def test_too_many_different_devices_are_refused_with_a_way_out():
    devices = tuple(Device(relative_speed=1 + i / 100) for i in range(24))
    with pytest.raises(PartitionError, match="give the order yourself"):
        minimize_bottleneck_any_order(plain([1] * 30, devices=devices), 24)


def test_a_deep_pipeline_with_a_dominating_head_is_solved_in_bounded_work():
    """Every cut in front of the head is about as good: a weak bound would visit millions of them."""
    profile = plain([0.0, *[0.001] * 48, 0.2], num_micro_batches=32)
    for stages in (8, 12):
        partition = minimize_step(profile, stages)
        assert partition.step_seconds == pytest.approx(0.048 + 32 * 0.2)


def test_a_search_that_stops_says_so():
    from recparallel.partitioning import step_time

    profile = plain([((7 * i) % 13) + 1.0 for i in range(40)], num_micro_batches=6)
    whole = minimize_step(profile, 6)
    stopped = step_time.search(step_time.Costs(profile, 6), step_time.Costs(profile, 6).groups, method="m", most_work=1)
    assert not stopped.optimal
    assert stopped.step_seconds >= whole.step_seconds
    assert max(stopped.stage_seconds) == max(minimize_bottleneck(profile, 6).stage_seconds)
