"""Profiling on real ranks: shared out, the same everywhere, links and speeds included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recparallel import build_recommender
from recparallel.errors import PartitionError
from recparallel.models.layer import Layer
from recparallel.profiling.interference import Cost, price_of_a_byte
from recparallel.profiling.layers import Effort, representatives
from recparallel.profiling.links import _rounds, as_links, snapped
from recparallel.profiling.ranks import profile_on_ranks, relative_speeds

LLAMA = {"model_type": "llama", "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
LLAMA |= {"intermediate_size": 24, "bos_token_id": None, "eos_token_id": None}
SAMPLE = (torch.ones(2, 6, dtype=torch.long), torch.ones(2, 6, dtype=torch.long))


class Fails(torch.nn.Module):
    """A layer that only one rank can build, because it is that rank's share."""

    def __init__(self):
        super().__init__()
        raise RuntimeError("no such kernel")


def measure(fails=False):
    recommender = build_recommender(LLAMA, num_items=10, tied=False)
    layers = list(recommender.layers)
    if fails:
        layers.insert(-1, Layer("broken", Fails))
    return profile_on_ranks(layers, recommender.loss_fn, SAMPLE, effort=Effort(repeats=1, warmup=0)).model_dump_json()


def which_layers(recommender):
    """Which layers a rank builds, by name."""
    built = []
    for layer in recommender.layers:
        original = layer.build
        object.__setattr__(layer, "build", lambda name=layer.name, make=original: (built.append(name), make())[1])
    return built


def shares():
    import torch.distributed as dist

    recommender = build_recommender(LLAMA, num_items=10, tied=False)
    built = which_layers(recommender)
    state = torch.get_rng_state()
    profile_on_ranks(recommender.layers, recommender.loss_fn, SAMPLE, effort=Effort(repeats=1, warmup=0))
    assert torch.equal(torch.get_rng_state(), state)
    return dist.get_rank(), built


def test_every_rank_gets_the_same_whole_profile(pools):
    first, second = pools[2].run(measure)
    assert first == second
    from recparallel.plan import Profile

    profile = Profile.model_validate_json(first)
    assert [layer.name for layer in profile.layers] == ["embedding", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]
    assert [layer.kind for layer in profile.layers] == ["embedding", *["block"] * 3, "norm", "head"]
    assert len(profile.devices) == 2
    assert max(device.relative_speed for device in profile.devices) == 1.0
    assert profile.link(0, 1).bytes_per_second > 0
    assert all(layer.optimizer_bytes == 8 * layer.num_parameters for layer in profile.layers)
    assert all(layer.update_seconds > 0 for layer in profile.layers)


def interference(device="cpu", slowest_rate=1e6):
    from recparallel.profiling.interference import measure_interference

    return measure_interference(device, torch.float32, slowest_rate)


def test_what_transfers_take_from_the_computation_beside_them_is_a_small_price_a_byte(pools):
    """The tensors cross, and noise on ranks that share busy cores is some ms on half a megabyte."""
    assert all(0 <= price < 1e-6 for price in pools[2].run(interference, slowest_rate=1e9))


def test_the_price_of_a_byte_is_processor_time_at_the_pace_of_the_rank():
    """At half a core 3 s more of it for 4 bytes in each direction are 6 s of clock; a disturbed pair changes nothing."""
    pair = Cost(wall=20, processor=10), Cost(wall=26, processor=13)
    disturbed = Cost(wall=20, processor=10), Cost(wall=900, processor=600)
    assert price_of_a_byte([pair, disturbed, pair], num_bytes=4) == 6 / 8
    assert price_of_a_byte([pair[::-1]], num_bytes=4) == 0.0  # noise is no gain


def test_where_it_cannot_be_felt_transfers_take_nothing(pools):
    """A link too slow to carry anything meanwhile, a rank alone, another device."""
    assert pools[2].run(interference, slowest_rate=1e5) == [0.0, 0.0]
    assert pools[1].run(interference) == [0.0]
    assert pools[2].run(interference, device="meta") == [0.0, 0.0]


def test_layers_are_shared_out_and_random_numbers_left_alone(pools):
    built = dict(pools[2].run(shares))
    assert built[0] == ["embedding", "blocks.0", "norm", "head"]  # in front of the head all must run once
    assert built[1] == ["embedding", "blocks.0"]  # its own one, and the block that all measure


def test_a_rank_that_fails_is_named_on_every_rank(pools):
    from distributed import RankError

    with pytest.raises(RankError, match=r"profiling the layers failed on rank \d: RuntimeError\('no such kernel'\)"):
        pools[2].run(measure, fails=True)


def measure_while_another_rank_is_slow():
    """Rank 0 is done first, and what it goes on with fails."""
    import time
    from dataclasses import replace

    import torch.distributed as dist

    from recparallel.profiling import ranks

    class Lost:
        def once(self):
            raise RuntimeError("lost")

    original = ranks.measure_layers

    def slowly(*args, **kwargs):
        measured = original(*args, **kwargs)
        if dist.get_rank() == 0:
            return replace(measured, kept=Lost())
        time.sleep(0.3)
        return measured

    ranks.measure_layers = slowly
    try:
        return measure()
    finally:
        ranks.measure_layers = original


def test_a_rank_that_fails_while_it_waits_for_others_is_named_too(pools):
    from distributed import RankError

    with pytest.raises(RankError, match=r"profiling the layers failed on rank 0: RuntimeError\('lost'\)"):
        pools[2].run(measure_while_another_rank_is_slow)


def test_one_of_those_that_are_alike_is_measured_and_the_last_with_its_loss():
    layers = [Layer("a", torch.nn.Identity), *(Layer(f"b{i}", torch.nn.Identity, alike="b") for i in range(3))]
    assert representatives(layers) == [0, 1, 3]


def test_speeds_that_differ_by_noise_count_as_equal():
    assert relative_speeds([1.0, 1.05, 2.0, 2.1]) == pytest.approx([1, 1, 0.5, 0.5], rel=0.03)
    speeds = relative_speeds([1.0, 1.05, 2.0, 2.1])
    assert speeds[0] == speeds[1] == 1.0
    assert speeds[2] == speeds[3]


@pytest.mark.parametrize("seconds", [[1.0, 0.0], [1.0, float("nan")]])
def test_a_clock_that_stands_still_is_refused(seconds):
    with pytest.raises(PartitionError, match="times must be above 0"):
        relative_speeds(seconds)


@given(st.integers(2, 16))
def test_every_pair_of_ranks_meets_once_and_no_rank_twice_in_a_round(world):
    rounds = list(_rounds(world))
    for pairs in rounds:
        busy = [rank for pair in pairs for rank in pair]
        assert len(busy) == len(set(busy))
    met = [pair for pairs in rounds for pair in pairs]
    assert sorted(met) == [(a, b) for a in range(world) for b in range(a + 1, world)]


def test_of_many_ranks_neighbours_are_measured_and_the_slowest_stands_for_the_rest():
    assert sorted(pair for pairs in _rounds(20) for pair in pairs) == [(rank, rank + 1) for rank in range(19)]
    links = as_links({(0, 1): 100.0, (1, 2): 10.0}, {(0, 1): 0.0, (1, 2): 0.0}, complete=False)
    assert [(link.between, link.bytes_per_second) for link in links] == [((0, 1), 100), ((1, 2), 10), (None, 10)]


def test_links_that_are_alike_are_one():
    delays = {(0, 1): 0.1, (0, 2): 0.1, (1, 2): 0.1}
    (link,) = as_links({(0, 1): 100.0, (0, 2): 95.0, (1, 2): 90.0}, delays, complete=True)
    assert (link.between, link.bytes_per_second, link.latency_seconds) == (None, 95.0, pytest.approx(0.1))


def test_a_slow_link_is_told_from_the_others():
    values = snapped({(0, 1): 100.0, (0, 2): 95.0, (1, 2): 30.0}, 0.2)
    assert values == {(0, 1): 97.5, (0, 2): 97.5, (1, 2): 30.0}


def test_a_distant_pair_keeps_its_latency():
    links = as_links({(0, 1): 1.0, (1, 2): 1.0}, {(0, 1): 2e-5, (1, 2): 5e-3}, complete=True)
    assert [link.latency_seconds for link in links] == [2e-5, 5e-3]
