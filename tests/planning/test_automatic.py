"""``"compression": "auto"``: every rank decides the same, follows links that change, and loses nothing."""

import pytest
import torch

from recparallel.config import parse_config
from recparallel.data_parallel.configured import check_codec
from recparallel.errors import ConfigError


def exchanged(*, steps, slow_from=None, **options):
    """Choices of every step and the averages, beside the plain ones. From step ``slow_from`` on, dense exchanges wait: a link that
    became slow for large messages."""
    import time

    import torch.distributed as dist

    from recparallel.collectives.bucket import Bucket
    from recparallel.data_parallel.configured import configured_hook

    config = parse_config({"recparallel": {"compression": {"codec": "auto", "every": 5, **options}}}).compression
    hook = configured_hook(config, dist.group.WORLD)
    state, found = hook.state, []
    dense = state.sum_as_host

    def slowed(flat):
        if slow_from is not None and len(found) >= slow_from:
            time.sleep(6e-7 * len(flat))
        dense(flat)

    state.sum_as_host = slowed
    parameter = torch.zeros(100_000)
    for step in range(steps):
        gradient = torch.randn(100_000, generator=torch.Generator().manual_seed(10 * step + dist.get_rank()))
        plain = gradient.clone()
        dist.all_reduce(plain)
        bucket = Bucket(gradient, (parameter,), ("w",), 0, True)
        average = hook(bucket).wait().clone()
        hook.step_done(made=True)
        found.append((hook.codec_of(bucket), average, plain / dist.get_world_size()))
    return [way for way, *_ in found], [pair for _, *pair in found], hook.state_dict()["residuals"]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_decide_alike_and_nothing_is_lost(pools, world):
    ranks = pools[world].run(exchanged, steps=4, min_gain=0.0, candidates=["none", "int8", "top_k"])
    for ways, averages, _ in ranks:
        assert ways == ranks[0][0]
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(averages, ranks[0][1]))
    arrived = sum(average for average, _ in ranks[0][1]) * world
    exact = sum(plain for _, plain in ranks[0][1]) * world
    kept = sum(rank[2].get("w", torch.zeros(100_000)) for rank in ranks)
    assert torch.allclose(arrived + kept, exact, atol=1e-4)


def test_where_nothing_saves_enough_everything_is_sent(pools):
    ways, averages, kept = pools[2].run(exchanged, steps=2, min_gain=0.99)[0]
    assert set(ways) == {"auto: none"}
    assert all(torch.allclose(average, plain, rtol=1e-6, atol=1e-7) for average, plain in averages)
    assert not kept  # sums are the host's own


def dense_with_a_residual():
    """A state from a training that sent less: rank 1 alone kept something."""
    import torch.distributed as dist

    from recparallel.collectives.bucket import Bucket
    from recparallel.data_parallel.configured import configured_hook

    compression = {"codec": "auto", "min_gain": 0.99}
    hook = configured_hook(parse_config({"recparallel": {"compression": compression}}).compression, dist.group.WORLD)
    if dist.get_rank() == 1:
        hook.set_by_parameter({"w": torch.full((1000,), 6.0)})
    found = []
    for _ in range(2):
        bucket = Bucket(torch.ones(1000), (torch.zeros(1000),), ("w",), 0, True)
        found.append(hook(bucket).wait().clone())
        hook.step_done(made=True)
    return hook.state.way, found


def test_what_was_kept_is_sent_when_exchanges_become_dense(pools):
    for way, (first, second) in pools[2].run(dense_with_a_residual):
        assert way == "none"
        assert first.tolist() == [4.0] * 1000  # (1 + 1 + 6) / 2
        assert second.tolist() == [1.0] * 1000


def test_a_link_that_becomes_slow_is_noticed(pools):
    """Dense exchanges take 0.6 µs an element more from step 6 on: the next look finds that, and int8 is taken."""
    ways = pools[2].run(exchanged, steps=16, slow_from=6, candidates=["none", "int8"], min_gain=0.5)[0][0]
    assert ways[-1] == "auto: int8"


def told(**options):
    """Events of a training whose link becomes slow."""
    from recparallel import events

    found = []
    with events.subscribe(found.append):
        exchanged(**options)
    return found


def test_decisions_are_events_the_same_on_every_rank(pools):
    from recparallel.events import ExchangeChoice, ExchangeLook

    ranks = pools[2].run(told, steps=16, slow_from=6, candidates=["none", "int8"], min_gain=0.5)
    assert ranks[0] == ranks[1]
    choices = [event for event in ranks[0] if isinstance(event, ExchangeChoice)]
    looks = [event for event in ranks[0] if isinstance(event, ExchangeLook)]
    assert [way for way, _ in choices[0].predicted] == ["none", "int8"]
    assert choices[-1].way == "int8"
    assert "elements go by 'int8' (predicted: none" in str(choices[-1])
    assert any(look.decides_anew and str(look).endswith("deciding anew") for look in looks)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"candidates": ["int8"]}, "candidates must be 'none' and then codecs"),
        ({"candidates": ["none", "zip"]}, "'zip'"),
        ({"candidates": ["none", "int8", "int8"]}, "none twice"),
        ({"candidates": ["none", "torch_fp16"]}, "torch_fp16"),
        ({"min_gain": 1.0}, "min_gain must be a number in [0, 1), got 1.0"),
        ({"every": 0}, "every must be an integer of at least 1, got 0"),
        ({"rate": 1}, "it takes ['candidates', 'min_gain', 'every']"),
        ({"aggregation": "two_hop"}, "compression.aggregation is 'two_hop'"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ConfigError) as raised:
        check_codec(parse_config({"recparallel": {"compression": {"codec": "auto", **options}}}).compression)
    assert said in str(raised.value)


def test_a_name_alone_is_a_codec_with_its_defaults():
    section = parse_config({"recparallel": {"compression": "auto"}})
    assert section.compression.codec == "auto"
    check_codec(section.compression)
    with pytest.raises(ConfigError, match="unknown codec 'atuo'"):
        parse_config({"recparallel": {"compression": "atuo"}})
