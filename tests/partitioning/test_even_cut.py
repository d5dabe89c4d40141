"""A cut is evened out where that costs next to nothing."""

import brute_force as reference
from effort import examples
from hypothesis import given, settings

from recparallel.partitioning.even_cut import SLACK, evened, minimize_step_evenly
from recparallel.partitioning.step_costs import predict_step
from recparallel.partitioning.step_time import minimize_step
from recparallel.plan import Device, LayerCost, LinkCost, Partition, Profile


def blocks_and_a_head(**options):
    """Eight blocks of 1 s and a head of 4 s: a step takes as long wherever the blocks are, but for transfers of 1 ms."""
    block = {"forward_seconds": 0.25, "backward_seconds": 0.75, "boundary_bytes": 1, "parameter_bytes": 10}
    layers = [LayerCost(name=f"blocks.{n}", **block) for n in range(8)]
    layers.append(LayerCost(name="head", forward_seconds=2, backward_seconds=2))
    links = (LinkCost(bytes_per_second=1000.0),)
    return Profile(layers=layers, micro_batch=1, sequence_length=1, num_micro_batches=8, links=links, **options)


def test_stages_beside_the_slowest_share_their_work():
    profile = blocks_and_a_head()
    uneven = Partition(bounds=(0, 1, 5, 8, 9), method="simulated", step_seconds=0.0)
    found = evened(profile, uneven)
    assert sorted(b - a for a, b in zip(found.bounds, found.bounds[1:-1])) == [2, 3, 3]
    assert found.step_seconds == predict_step(profile, found) <= (1 + SLACK) * predict_step(profile, uneven)


def test_memory_limits_are_kept():
    """The first device has room for one block."""
    devices = tuple(Device(name=str(n), memory_bytes=25 if n == 0 else None) for n in range(4))
    profile = blocks_and_a_head(devices=devices)
    found = evened(profile, Partition(bounds=(0, 1, 5, 8, 9), method="simulated", step_seconds=0.0))
    assert found.bounds == (0, 1, 5, 8, 9)


@settings(max_examples=examples(200))
@given(reference.profiles(most_layers=7, most_stages=4, limited=False))
def test_a_step_is_longer_by_the_slack_at_most_and_the_slowest_stage_no_slower(instance):
    profile, stages = instance
    exact, found = minimize_step(profile, stages), minimize_step_evenly(profile, stages)
    assert found.step_seconds == predict_step(profile, found) <= predict_step(profile, exact) * (1 + SLACK)
    assert max(found.stage_seconds) <= max(exact.stage_seconds) * (1 + 1e-9)


def test_rounding_is_no_gain():
    """Of nine blocks of 0.1 s, two stages may have five or four: as sums of doubles one way is shorter by 1e-16."""
    layers = [LayerCost(name=str(n), forward_seconds=0.04, backward_seconds=0.06) for n in range(9)]
    profile = Profile(layers=layers, micro_batch=1, sequence_length=1, num_micro_batches=4)
    for bounds in ((0, 4, 9), (0, 5, 9)):
        assert evened(profile, Partition(bounds=bounds, method="simulated")).bounds == bounds


def test_many_stages_are_evened_out_within_a_bounded_work():
    layers = [LayerCost(name=str(n), forward_seconds=0.1, backward_seconds=0.1 + n % 7 / 10) for n in range(400)]
    profile = Profile(layers=layers, micro_batch=1, sequence_length=1, num_micro_batches=128)
    bounds = (*range(64), 400)  # all but the last stage hold one layer
    found = evened(profile, Partition(bounds=bounds, method="simulated"))
    assert max(found.stage_seconds) < sum(layer.seconds for layer in layers[63:])
