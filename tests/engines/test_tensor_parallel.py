"""Ranks that share layers give the losses and the weights of one process, alone and with stages and replicas."""

import pytest
import torch
from effort import FAMILIES_EVERY_TIME
from training import (
    FAMILIES,
    Run,
    assert_weights_of_one_process,
    make_engine,
    ranks_of_some_targets,
    recommender,
    reference,
    train,
    train_on_engine,
)

RTOL = 1e-5  # fp32; sums are made in another order
BF16 = {"gemma2": 1e-2}
"""What bf16 may change of a loss, otherwise 2e-3: weights and activations are rounded to 8 bits, 4e-3 each, and losses are means
over many. Gemma 2 scales its vectors by the root of their width, and has twice the norms."""
STEPS = 10
PLANS = {"TP 2": (2, 1, 2), "PP 2": (2, 2, 1), "TP 2 x PP 2": (4, 2, 2), "TP 2 x PP 2 x DP 2": (8, 2, 2)}
"""Processes, stages, tensor ranks."""
TWO_REPLICAS = {"TP 2 x DP 2": (4, 1, 2)}


def planned(plan, **options):
    processes, stages, tensor = (PLANS | TWO_REPLICAS)[plan]
    return processes, Run(stages=stages, tensor=tensor, **options)


def trained(run):
    """Losses, and the whole weights that this rank would write."""
    from recparallel.engines.engine_state import collect

    engine = make_engine(run)
    losses = train(engine, run)
    return losses, {name: value for name, value in collect(engine).items() if name.startswith("weight/")}


@pytest.mark.parametrize(
    ("plan", "family"),
    [
        # Many processes take their time on two cores: eight in tests of less than whole weights, and among the slow ones.
        pytest.param(plan, family, marks=pytest.mark.slow)
        if processes == 8 or (processes == 4 and family not in FAMILIES_EVERY_TIME)
        else (plan, family)
        for plan, (processes, _, _) in PLANS.items()
        for family in FAMILIES
    ],
)
def test_every_family_gives_the_losses_and_weights_of_one_process(pools, plan, family):
    # With the usual eps, AdamW makes full steps of gradients that are nothing but rounding, such as those of key biases.
    processes, run = planned(plan, family=family, steps=STEPS, eps=1e-3)
    expected = reference(run)
    assert expected[-1] < expected[0]
    written = {}
    for losses, own in pools[processes].run(trained, run=run):
        assert losses == pytest.approx(expected, rel=RTOL)
        assert not written.keys() & own.keys()
        written |= own
    assert_weights_of_one_process(written, run)


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=[] if family in ("gemma2", "llama") else pytest.mark.slow) for family in FAMILIES],
)
def test_in_bf16_losses_are_near_those_of_one_process(pools, family):
    processes, run = planned("TP 2 x PP 2", family=family, steps=5, dtype="bf16")
    for losses in pools[processes].run(train_on_engine, run=run):
        assert losses == pytest.approx(reference(run), rel=BF16.get(family, 2e-3))


def _agree(pools, plan, **options) -> None:
    processes, run = planned(plan, **options)
    for losses in pools[processes].run(train_on_engine, run=run):
        assert losses == pytest.approx(reference(run), rel=RTOL)


@pytest.mark.parametrize("loss", ["cross_entropy", "chunked_cross_entropy", "sampled_softmax"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_loss_runs_over_shares_of_the_catalogue(pools, loss, tied):
    _agree(pools, "TP 2 x PP 2", loss=loss, tied=tied, steps=4)


@pytest.mark.parametrize("plan", ["TP 2", "TP 2 x DP 2", pytest.param("TP 2 x PP 2 x DP 2", marks=pytest.mark.slow)])
def test_zero_1(pools, plan):
    _agree(pools, plan, zero=1, steps=4, family="qwen3, one key head")


@pytest.mark.parametrize("schedule", [pytest.param("1f1b", marks=pytest.mark.slow), "eager_1f1b"])
def test_both_schedules_and_a_hook(pools, schedule):
    _agree(pools, "TP 2 x PP 2 x DP 2", steps=4, schedule=schedule, compression={"codec": "none"})


@pytest.mark.parametrize("partition", ["parameters", "profile", "simulated"])
def test_cuts_are_the_same_on_all_ranks(pools, partition):
    _agree(pools, "TP 2 x PP 2", steps=3, partition=partition)


def with_dropout(run):
    """Losses, and whether the weights that every rank has are the same on all."""
    import torch.distributed as dist

    engine = make_engine(run)
    losses = train(engine, run)
    whole = torch.cat([p.detach().view(-1) for p in engine.module.parameters() if not hasattr(p, "recparallel_split")])
    every = [torch.empty_like(whole) for _ in range(dist.get_world_size())]
    dist.all_gather(every, whole)
    return losses, all(torch.equal(each, whole) for each in every)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_with_dropout_ranks_stay_together(pools, family):
    """GPT-2 drops inside attention, where ranks must differ, and behind it in the same module, where they must not."""
    (losses, together), (other, _) = pools[2].run(
        with_dropout, run=Run(stages=1, tensor=2, dropout=0.3, family=family, steps=STEPS)
    )
    assert losses == other
    assert together
    assert losses[-1] < losses[0]


def ranked(run):
    """Ranks of targets, after a training."""
    engine = make_engine(run)
    train(engine, run)
    return ranks_of_some_targets(engine)


@pytest.mark.parametrize("plan", ["TP 2", "TP 2 x PP 2 x DP 2"])
def test_targets_rank_as_in_one_process(pools, plan):
    whole = pools[1].run(ranked, run=Run(stages=1, steps=3))[0]
    assert len(set(whole)) > 5
    processes, run = planned(plan, steps=3)
    assert pools[processes].run(ranked, run=run) == [whole] * processes


def refused(run, config):
    from training import deepspeed_config

    import recparallel
    from recparallel.errors import ConfigError

    try:
        recparallel.initialize(model=recommender(run), config={**deepspeed_config(run, 1), **config})
    except ConfigError as error:
        return str(error)
    return "accepted"


def with_a_hook_of_torch(run):
    """What attaching a lossy hook says."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    import recparallel
    from recparallel.errors import HookError

    engine = make_engine(run)
    engine.recparallel.remove()
    try:
        recparallel.attach(engine, hook=fp16_compress_hook)
    except HookError as error:
        return str(error)
    return "accepted"


def test_a_lossy_hook_is_refused_too(pools):
    said = pools[4].run(with_a_hook_of_torch, run=Run(stages=1, tensor=2))
    assert all("'fp16_compress_hook' with tensor ranks" in message for message in said)


@pytest.mark.parametrize(
    ("options", "config", "said"),
    [
        ({"tensor": 4}, {}, "2 attention heads cannot be divided among 4 tensor ranks; allowed are [1, 2]"),
        ({"tensor": 4, "family": "phi3"}, {}, "2 key/value heads for 4 tensor ranks: self_attn.qkv_proj holds queries"),
        ({"tensor": 4, "family": "qwen3", "num_items": 2}, {}, "2 items and the padding cannot be divided among 4"),
        ({"tensor": 3}, {}, "the launch has 4 processes; stages × tensor must be one of [1, 2, 4]"),
        ({"tensor": 2}, {"tensor_parallel": {"autotp_size": 2}}, "both cut the layers"),
        (
            {"tensor": 2, "compression": {"codec": "top_k", "ratio": 0.5}},
            {},
            "such as norms, would be compressed differently",
        ),
        ({"tensor": 2}, {"pipeline": {"pipe_partitioned": True}}, "boundary tensors travel whole"),
    ],
)
def test_what_cannot_be_divided_is_refused_on_every_rank(pools, options, config, said):
    assert all(said in message for message in pools[4].run(refused, run=Run(stages=1, **options), config=config))
