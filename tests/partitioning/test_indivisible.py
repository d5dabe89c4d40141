import brute_force as reference
import pytest
from effort import examples
from hypothesis import assume, given, settings

from recparallel.partitioning import device_order
from recparallel.partitioning.bottleneck import minimize_bottleneck
from recparallel.partitioning.indivisible import fastest_step, indivisible, shortest_step
from recparallel.partitioning.step_costs import computing_seconds, predict_step
from recparallel.plan import Device, LayerCost, LinkCost, Partition, Profile


def profile_of(seconds, **options):
    layers = [
        LayerCost(
            name=f"layer {i}", kind="head" if i == len(seconds) - 1 else "block", forward_seconds=s, backward_seconds=0
        )
        for i, s in enumerate(seconds)
    ]
    return Profile(layers=tuple(layers), micro_batch=1, sequence_length=1, **options)


def test_a_head_that_bounds_the_pipeline_is_named_with_the_bound_and_the_remedy():
    profile = profile_of([0.1, 0.1, 0.1, 0.3])
    found = indivisible(profile, minimize_bottleneck(profile, 3))
    assert found.bounds_it
    assert found.layer.name == "layer 3"
    assert found.sentence() == (
        "layer 3 cannot be cut and bounds the pipeline: 300.00 ms of each micro-batch on the fastest device, 200.00 ms if all "
        "work could be shared evenly; sharing its table among stages (spread_head) or tensor ranks (tensor) would allow up to 1.50x"
    )


def test_a_pipeline_of_equal_layers_is_bounded_by_none():
    profile = profile_of([0.1] * 9)
    assert "no single layer bounds the pipeline" in indivisible(profile, minimize_bottleneck(profile, 3)).sentence()


def test_the_bound_is_that_of_the_fastest_device():
    profile = profile_of([0.2, 0.2, 0.4], devices=(Device(relative_speed=0.5), Device()))
    assert indivisible(profile, minimize_bottleneck(profile, 2)).seconds == 0.4
    faster = profile_of([0.2, 0.2, 0.4], devices=(Device(relative_speed=4), Device()))
    assert indivisible(faster, minimize_bottleneck(faster, 2)).seconds == 0.1


@settings(max_examples=examples(500))
@given(reference.profiles(most_layers=6, most_stages=3, limited=False))
def test_no_cut_in_any_order_takes_less_than_the_shortest_step(instance):
    profile, stages = instance
    assume(stages > 1)
    steps = []
    for order in reference.orders(stages):
        for bounds in reference.cuts(len(profile.layers), stages):
            cut = Partition(bounds=bounds, method="all of them", device_order=order)
            steps.append(predict_step(profile, cut))
    assert min(steps) >= shortest_step(profile, stages) * (1 - 1e-12)
    assert min(steps) == pytest.approx(fastest_step(profile, stages))


def test_where_the_search_ends_early_the_fastest_step_is_a_bound(monkeypatch):
    monkeypatch.setattr(device_order, "MOST_STEP_WORK", 1)
    layers = tuple(LayerCost(name=str(n), forward_seconds=1, backward_seconds=n) for n in range(6))
    profile = Profile(layers=layers, micro_batch=1, sequence_length=1, num_micro_batches=4)
    assert fastest_step(profile, 3) == shortest_step(profile, 3)


def test_the_shortest_step_counts_filling_draining_and_the_update():
    """Two stages, the second one slow: one forward and one backward of the first, then its update."""
    slow = LayerCost(name="slow", forward_seconds=2, backward_seconds=3, update_seconds=7)
    quick = LayerCost(name="quick", forward_seconds=1, backward_seconds=1)
    profile = Profile(layers=(quick, slow), micro_batch=1, sequence_length=1, num_micro_batches=4)
    assert shortest_step(profile, 2) == pytest.approx(1 + 4 * 5 + 7)


def test_the_shortest_step_counts_the_wait_for_the_first_gradient():
    """The front hands on four activations at once, waits 2 s for the first gradient, and then works for 12 s."""
    front = LayerCost(name="front", forward_seconds=0, backward_seconds=3)
    head = LayerCost(name="head", forward_seconds=1, backward_seconds=1)
    profile = Profile(layers=(front, head), micro_batch=1, sequence_length=1, num_micro_batches=4)
    assert shortest_step(profile, 2) == 2 + 4 * 3
    assert predict_step(profile, Partition(bounds=(0, 1, 2), method="by hand")) == 2 + 4 * 3


def test_the_shortest_step_counts_the_update_of_the_first_stage():
    quick = LayerCost(name="quick", forward_seconds=1, backward_seconds=1, update_seconds=7)
    slow = LayerCost(name="slow", forward_seconds=2, backward_seconds=3)
    profile = Profile(layers=(quick, slow), micro_batch=1, sequence_length=1, num_micro_batches=4)
    assert shortest_step(profile, 2) == pytest.approx(1 + 4 * 5 + 1 + 7)


@pytest.mark.parametrize(("schedule", "crossings"), [("1f1b", 4), ("eager_1f1b", 1)])
def test_the_shortest_step_counts_the_transfers_that_the_layer_cannot_avoid(schedule, crossings):
    """The head waits for an activation and hands a gradient back, at 1 s each: in each of 4 micro-batches where transfers
    block, else of the first and of the last one alone."""
    layers = [
        LayerCost(name="front", forward_seconds=1, backward_seconds=1, boundary_bytes=10),
        LayerCost(name="head", forward_seconds=5, backward_seconds=5),
    ]
    for between in (None, (0, 1)):  # one for all pairs, or as ranks measure them, pair by pair
        links = (LinkCost(bytes_per_second=10, between=between),)
        profile = Profile(
            layers=layers, micro_batch=1, sequence_length=1, num_micro_batches=4, links=links, schedule=schedule
        )
        assert shortest_step(profile, 2) == 2 + 4 * 10 + 2 * crossings


def test_a_transfer_holds_up_a_stage_that_computes_meanwhile():
    """A tensor that crosses costs a computing stage 1 s. The front hands on the first two of four activations while it makes the
    next, and waits for all that comes later; the head waits for the first activation, and is done when the last gradient leaves."""
    layers = [
        LayerCost(name="front", forward_seconds=0.5, backward_seconds=0.5, boundary_bytes=1),
        LayerCost(name="head", forward_seconds=5, backward_seconds=5),
    ]
    links = (LinkCost(bytes_per_second=1e9, busy_seconds_per_byte=1.0),)
    profile = Profile(layers=layers, micro_batch=1, sequence_length=1, num_micro_batches=4, links=links)
    cut = minimize_bottleneck(profile, 2)
    assert predict_step(profile, cut) == pytest.approx(1.5 + 48 + 1.5)
    assert computing_seconds(profile, cut) == pytest.approx([4 + 2, 40 + 3 + 3])
