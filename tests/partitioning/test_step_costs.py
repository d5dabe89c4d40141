"""What the copies of a tied table exchange, in bytes and seconds."""

import pytest

from recparallel.partitioning.costs import Costs
from recparallel.partitioning.step_costs import tied_exchanges
from recparallel.plan import LayerCost, LinkCost, Profile, Shape


def table(name, touched, **options):
    seconds = {"forward_seconds": 1, "backward_seconds": 1}
    return LayerCost(name=name, tie="table", parameter_bytes=1000, touched_share=touched, **seconds, **options)


BLOCK = LayerCost(name="block", forward_seconds=1, backward_seconds=1, parameter_bytes=9)


def exchanges(layers, bounds, *, micro_batches=1):
    """At 100 bytes and 1 s of latency."""
    links = (LinkCost(bytes_per_second=100, latency_seconds=1),)
    profile = Profile(layers=layers, micro_batch=1, sequence_length=1, num_micro_batches=micro_batches, links=links)
    costs = Costs(profile, len(bounds) - 1)
    return tied_exchanges(costs, costs.groups, bounds)


def test_each_micro_batch_touches_its_share_at_random():
    assert table("t", 0.1).touched_bytes(1) == pytest.approx(100)
    assert table("t", 0.1).touched_bytes(2) == pytest.approx(190)
    assert table("t", 1.0).touched_bytes(3) == 1000
    assert table("t", 0.0).touched_bytes(3) == 0


def test_gradients_in_full_precision_count_in_full():
    assert table("t", 0.1, gradient_bytes=2000).touched_bytes(1) == pytest.approx(200)


def test_by_rows_travels_what_the_stage_with_the_most_has_touched():
    layers = (table("embedding", 0.1), BLOCK, table("head", 0.3))
    ((stages, seconds),) = exchanges(layers, (0, 1, 3))
    assert stages == [0, 1]
    assert seconds == pytest.approx(3 * 1 + 300 / 100)
    ((_, seconds),) = exchanges(layers, (0, 1, 3), micro_batches=2)
    assert seconds == pytest.approx(3 * 1 + 510 / 100)


def test_a_stage_with_both_ends_touches_for_both():
    layers = (table("embedding", 0.1), table("second", 0.3), table("head", 0.2))
    ((_, seconds),) = exchanges(layers, (0, 2, 3))
    assert seconds == pytest.approx(3 * 1 + 400 / 100)


def test_what_is_touched_everywhere_travels_whole():
    layers = (table("embedding", 0.1), BLOCK, table("head", 1.0))
    ((_, seconds),) = exchanges(layers, (0, 1, 3))
    assert seconds == pytest.approx(2 * 1 + 1000 / 100)


def test_over_three_stages_everyone_gets_the_rows_of_two():
    layers = (table("embedding", 0.3), table("second", 0.1), table("head", 0.1))
    ((stages, seconds),) = exchanges(layers, (0, 1, 2, 3))
    assert stages == [0, 1, 2]
    assert seconds == pytest.approx(2 * (3 * 1 + 300 / 100))
    layers = (table("embedding", 0.7), table("second", 0.1), table("head", 0.1))
    ((_, seconds),) = exchanges(layers, (0, 1, 2, 3))
    assert seconds == pytest.approx(2 * (2 * 1 + 2 / 3 * 1000 / 100))


def test_a_table_on_one_stage_travels_not_at_all():
    assert exchanges((table("embedding", 0.1), table("head", 0.1), BLOCK), (0, 2, 3)) == []


def test_between_two_measured_micro_batches_the_share_lies_between():
    small, large = (table("t", 0.1),), (table("t", 0.3),)
    shapes = (Shape(micro_batch=4, sequence_length=1, layers=large),)
    profile = Profile(layers=small, micro_batch=2, sequence_length=1, shapes=shapes)
    assert profile.at(3).layers[0].touched_share == pytest.approx(0.2)
