"""The compressed average step by step: what is kept, what a skipped step leaves, and what is not finite."""

import math
from dataclasses import replace

import pytest
import torch

from recparallel import registry
from recparallel.compression.momentum_correction import MomentumCorrection
from recparallel.config import parse_config
from recparallel.data_parallel.configured import check_codec, configured_hook
from recparallel.errors import ConfigError

SIZES = {"a": 40, "b": 30, "c": 5}
LOSSY = ["block_top_k", "int4", "int8", "power_sgd", "random_k", "sign", "top_k", "top_k_threshold"]


def hook_of(compression):
    import torch.distributed as dist

    config = parse_config({"recparallel": {"compression": compression}}).compression
    return configured_hook(config, dist.group.WORLD)


def bucket_of(gradients, index, last):
    from recparallel.collectives.bucket import Bucket

    flat = torch.cat(list(gradients.values()))
    shaped = tuple(g.view(8, 5) if name == "a" else g for name, g in gradients.items())  # a matrix, for power_sgd
    return Bucket(flat, shaped, tuple(gradients), index, last)


def draw(step, rank):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return {name: torch.randn(size, generator=generator) for name, size in SIZES.items()}


def exchange(hook, gradients):
    """One backward pass in two buckets; returns the averages by name."""
    first, second = {n: gradients[n] for n in ("a", "b")}, {"c": gradients["c"]}
    found = {}
    for index, part in enumerate((first, second)):
        bucket = bucket_of(part, index, last=index == 1)
        average = hook(bucket).wait()
        found.update(zip(part, average.split([len(g) for g in part.values()])))
        assert hook.wire_bytes(bucket) > 0
    return found


def trained(*, compression, steps, skipped=(), bad=None, told=True):
    """Averages of every step, and the state at the end. ``bad``: ``(step, rank, value)`` of a gradient with one such element;
    ``skipped``: steps that the optimizer skips; ``told``: whether the engine says so."""
    import torch.distributed as dist

    hook, averages = hook_of(compression), []
    for step in range(steps):
        gradients = draw(step, dist.get_rank())
        if bad and bad[:2] == (step, dist.get_rank()):
            gradients["b"][7] = bad[2]
        averages.append(exchange(hook, gradients))
        if told:
            hook.step_done(made=step not in skipped)
    state = hook.state_dict()
    other = hook_of(compression)
    other.set_by_parameter(hook.by_parameter())  # as when a layer moves to another rank
    assert equal(other.state_dict()["residuals"], state["residuals"])
    assert equal(other.state_dict().get("factors", {}), state.get("factors", {}))
    return averages, state["residuals"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("codec", LOSSY)
def test_what_is_not_sent_is_kept_and_sent_later(pools, codec, world):
    ranks = pools[world].run(trained, compression={"codec": codec}, steps=6)
    assert all(equal(a, b) for rank in ranks for a, b in zip(rank[0], ranks[0][0]))
    for name in SIZES:
        arrived = sum(average[name].double() for average in ranks[0][0]) * world
        kept = sum(rank[1][name].double() for rank in ranks)
        given = sum(draw(step, rank)[name].double() for step in range(6) for rank in range(world))
        assert torch.allclose(arrived + kept, given, atol=1e-4)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("codec", [*LOSSY, "bf16", "fp16"])
def test_a_gradient_that_is_not_finite_reaches_every_rank_and_no_residual(pools, codec, value, told):
    """All buckets of the step count as not sent, also those before the bad one."""
    bad = pools[2].run(trained, compression={"codec": codec}, steps=3, bad=(2, 1, value), skipped=(2,), told=told)
    good = pools[2].run(trained, compression={"codec": codec}, steps=2)
    for rank in range(2):
        assert not all(part.isfinite().all() for part in bad[rank][0][2].values())
        assert equal(bad[rank][1], good[rank][1])


def after_an_overflow():
    """Of a matrix whose products overflow: whether the step counted as finite, and what comes of the next one."""
    from recparallel.collectives.bucket import Bucket

    hook = hook_of({"codec": "power_sgd"})
    answers = []
    for value in (3e36, 3.4e38, 1.0):
        parameter = torch.zeros(4096, 16)
        bucket = Bucket(torch.full((parameter.numel(),), value), (parameter,), ("w",), 0, True)
        average = hook(bucket).wait()
        hook.step_done(made=True)
        kept = [*hook.state_dict()["residuals"].values(), *hook.state_dict()["factors"].values()]
        answers.append((bool(average.isfinite().all()), all(bool(part.isfinite().all()) for part in kept)))
    return answers


def test_products_that_overflow_are_kept_nowhere(pools):
    for answers in pools[2].run(after_an_overflow):
        assert [kept for _, kept in answers] == [True] * 3
        assert answers[-1][0]
        assert not answers[1][0]


@pytest.mark.parametrize("memory", [{}, {"momentum_correction": {"momentum": 0.5}}])
def test_a_step_that_was_skipped_elsewhere_leaves_the_state_untouched(pools, memory):
    """An overflow on another stage: everything here was finite."""
    compression = {"codec": "top_k", "ratio": 0.1, **memory}
    skipped = pools[2].run(trained, compression=compression, steps=4, skipped=(3,))
    short = pools[2].run(trained, compression=compression, steps=3)
    for rank in range(2):
        assert equal(skipped[rank][1], short[rank][1])


def first_averages(*, codec):
    """With a memory and without, in two types: the first step keeps nothing from before."""
    import torch.distributed as dist

    found = []
    for feedback in (True, False):
        for dtype in (torch.float32, torch.bfloat16):
            gradients = {name: part.to(dtype) for name, part in draw(0, dist.get_rank()).items()}
            found.append(exchange(hook_of({"codec": codec, "error_feedback": feedback}), gradients))
    return found


@pytest.mark.parametrize("codec", LOSSY)
def test_without_a_memory_the_first_average_is_the_same(pools, codec):
    for kept, kept_bf16, forgotten, forgotten_bf16 in pools[3].run(first_averages, codec=codec):
        assert equal(kept, forgotten)
        for name in SIZES:
            assert (kept_bf16[name] - forgotten_bf16[name]).norm() <= 0.02 * kept[name].norm() + 1e-6


def stored_in_between(*, codec):
    """A state that was taken, before and after further steps."""
    import torch.distributed as dist

    hook = hook_of({"codec": codec})
    for step in range(2):
        exchange(hook, draw(step, dist.get_rank()))
        hook.step_done(made=True)
    stored = hook.state_dict()
    before = {name: part.clone() for name, part in stored["residuals"].items()}
    for step in range(2, 5):
        exchange(hook, draw(step, dist.get_rank()))
        hook.step_done(made=True)
    return before, stored["residuals"]


@pytest.mark.parametrize("codec", ["top_k", "power_sgd"])
def test_a_state_that_was_taken_stays_as_it_was(pools, codec):
    for before, after in pools[2].run(stored_in_between, codec=codec):
        assert any(part.any() for part in before.values())
        assert equal(before, after)


def resumed(*, compression, at, steps):
    import torch.distributed as dist

    hook = hook_of(compression)
    averages = []
    for step in range(steps):
        if step == at:
            stored = hook.state_dict()
            hook = hook_of(compression)
            hook.load_state_dict(stored)
        averages.append(exchange(hook, draw(step, dist.get_rank())))
    return averages


@pytest.mark.parametrize("codec", LOSSY)
def test_a_stored_state_goes_on_as_if_nothing_had_happened(pools, codec):
    """Also what is drawn at random, and the warm-up."""
    compression = {"codec": codec, "warm_up_steps": 4}
    through = pools[2].run(trained, compression=compression, steps=5)
    stopped = pools[2].run(resumed, compression=compression, at=2, steps=5)
    for rank in range(2):
        assert all(map(equal, through[rank][0], stopped[rank]))


def test_a_bucket_smaller_than_a_block_is_sent_dense(pools):
    ranks = pools[2].run(trained, compression={"codec": "int8", "block": 32, "error_feedback": False}, steps=1)
    exact = sum(draw(0, rank)["c"] for rank in range(2)) / 2
    assert torch.equal(ranks[0][0][0]["c"], exact)


def test_a_warm_up_sends_less_and_less(pools):
    compression = {"codec": "top_k", "ratio": 0.02, "warm_up_steps": 3, "error_feedback": False}
    (averages, _), _ = pools[2].run(trained, compression=compression, steps=5)
    counts = [int(sum((part != 0).sum() for part in average.values())) for average in averages]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 3 * counts[3]
    assert counts[3] == counts[4]


def reference(*, steps, momentum, clip, world):
    """Momentum correction in its plain form, with everything sent: u = m u + g, and the sum of u is the update."""
    velocity = [torch.zeros(75) for _ in range(world)]
    found = []
    for step in range(steps):
        for rank in range(world):
            pieces = draw(step, rank)
            parts = [torch.cat([pieces["a"], pieces["b"]]), pieces["c"]]
            if clip is not None:
                parts = [part * min(1.0, clip / math.sqrt(world) / float(part.norm())) for part in parts]
            velocity[rank] = momentum * velocity[rank] + torch.cat(parts)
        found.append(sum(velocity) / world)
        velocity = [torch.zeros(75) for _ in range(world)]  # all got through, and is masked
    return found


@pytest.mark.parametrize("clip", [None, 2.0])
def test_momentum_that_got_through_is_masked(pools, clip):
    compression = {"codec": "top_k", "ratio": 1.0, "momentum_correction": {"momentum": 0.9, "clip": clip}}
    (averages, kept), _ = pools[2].run(trained, compression=compression, steps=3)
    for average, expected in zip(averages, reference(steps=3, momentum=0.9, clip=clip, world=2)):
        assert torch.allclose(torch.cat(list(average.values())), expected, atol=1e-6)
    assert all(not part.any() for part in kept.values())


def test_momentum_that_did_not_get_through_goes_on():
    """``u = m u + g`` and ``v = v + u`` where nothing is sent: after three steps of ones with m = 0.5, v = 1 + 1.5 + 1.75."""
    memory = MomentumCorrection(momentum=0.5)
    for _ in range(3):
        total = memory.corrected(torch.ones(4), ("w",), [4])
        rest = total.clone()
        rest[0] = 0.0  # got through
        memory.keep(("w",), rest)
        memory.settle(made=True)
    velocity, total = memory.state_dict()["w"]
    assert total.tolist() == [0.0, 4.25, 4.25, 4.25]
    assert velocity.tolist() == [0.0, 1.75, 1.75, 1.75]
    other = MomentumCorrection(momentum=0.5)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.corrected(torch.ones(4), ("w",), [4]), memory.corrected(torch.ones(4), ("w",), [4]))


def disagreeing():
    """Rank 1 has another ratio."""
    import torch.distributed as dist

    try:
        hook_of({"codec": "top_k", "ratio": 0.1 * (1 + dist.get_rank())})
    except ConfigError as error:
        return str(error)
    return ""


def test_ranks_that_were_given_different_settings_stop(pools):
    for said in pools[2].run(disagreeing):
        assert "differs between ranks" in said
        assert "rank 0" in said
        assert "0.2" in said


@pytest.mark.parametrize(
    ("compression", "said"),
    [
        (
            {"codec": "int8", "aggregation": "sparse"},
            ["'sparse' cannot sum", "allowed: auto, gathered, hierarchical, two_hop"],
        ),
        ({"codec": "top_k", "aggregation": "sprase"}, ["sprase", "Did you mean 'sparse'"]),
        ({"codec": "torch_fp16", "aggregation": "two_hop"}, ["compression.aggregation is 'two_hop'", "torch_fp16"]),
        ({"codec": "none", "warm_up_steps": 5}, ["compression.warm_up_steps is 5", "'none'"]),
        ({"codec": "power_sgd", "rank": 0}, ["power_sgd: rank must be an integer of at least 1, got 0"]),
        ({"codec": "power_sgd", "rnk": 2}, ["rnk", "it takes ['rank']"]),
        ({"codec": "power_sgd", "aggregation": "two_hop"}, ["compression.aggregation is 'two_hop'", "'power_sgd'"]),
        ({"codec": "top_k", "warm_up_steps": -1}, ["recparallel.compression.warm_up_steps", "-1"]),
        ({"codec": "top_k", "momentum_correction": {"momentum": 1.0}}, ["momentum_correction.momentum", "1.0"]),
        ({"codec": "top_k", "momentum_correction": {"clip": 0}}, ["momentum_correction.clip", "0"]),
        ({"codec": "top_k", "momentum_correction": {"momentm": 0.5}}, ["momentm", "Did you mean 'momentum'"]),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_starts(compression, said):
    with pytest.raises(ConfigError) as raised:
        check_codec(parse_config({"recparallel": {"compression": compression}}).compression)
    for words in said:
        assert words in str(raised.value)


def test_every_codec_of_the_registry_is_lossy_or_named_here():
    classes = {name for name in registry.codecs if isinstance(registry.codecs.load(name), type)}
    assert classes == {*LOSSY, "bf16", "fp16"} - {"power_sgd"}
    assert replace(registry.codecs.load("top_k")(), ratio=0.5).ratio == 0.5
