"""Tensor ranks that share positions too give the losses and weights of one process, with half of the hidden states on each."""

import dataclasses

import pytest
import torch
from effort import some_every_time
from training import (
    FAMILIES,
    LENGTH,
    MICRO_BATCH,
    Run,
    assert_weights_of_one_process,
    deepspeed_config,
    make_engine,
    ranks_of_some_targets,
    recommender,
    reference,
    train,
    train_on_engine,
)

from recparallel.errors import ConfigError
from recparallel.models.shared import shared_among
from recparallel.tensor_parallel import TensorRanks

RTOL = 1e-5  # fp32; sums are made in another order


def run_of(**options):
    return Run(**{"stages": 2, "tensor": 2, "sequence": True, "steps": 5, **options})


def trained(run):
    """Losses, the whole weights that this rank would write, and the shape of what the second stage takes in."""
    from recparallel.engines.engine_state import collect

    engine = make_engine(run)
    losses = train(engine, run)
    taken = None if engine.pipe_recv_buf is None else tuple(engine.pipe_recv_buf.shape)
    return losses, collect(engine), taken


@pytest.mark.parametrize("family", some_every_time(FAMILIES))
def test_every_family_gives_the_losses_and_weights_of_one_process(pools, family):
    run = run_of(family=family, eps=1e-3)
    expected = reference(run)
    written = {}
    shapes = []
    for losses, own, taken in pools[4].run(trained, run=run):
        assert losses == pytest.approx(expected, rel=RTOL)
        written |= own
        shapes.append(taken)
    assert [shape for shape in shapes if shape] == [(MICRO_BATCH, LENGTH // 2, 16)] * 2
    assert_weights_of_one_process(written, run)


def _agree(pools, world_size, run, *, rtol=RTOL):
    for losses in pools[world_size].run(train_on_engine, run=run):
        assert losses == pytest.approx(reference(run), rel=rtol)


@pytest.mark.parametrize(("dtype", "zero"), [("bf16", 0), ("bf16_fp32_accumulation", 1)])
def test_in_bf16_losses_are_near_those_of_one_process(pools, dtype, zero):
    _agree(pools, 4, run_of(dtype=dtype, zero=zero), rtol=2e-3)


@pytest.mark.slow
def test_with_stages_replicas_and_zero_1(pools):
    _agree(pools, 8, run_of(zero=1, family="qwen3, one key head"))


@pytest.mark.parametrize(("loss", "tied"), [("sampled_softmax", True), ("chunked_cross_entropy", False)])
def test_every_loss_sees_all_positions(pools, loss, tied):
    _agree(pools, 4, run_of(loss=loss, tied=tied, schedule="1f1b"))


def test_cut_by_measured_shares(pools):
    _agree(pools, 4, run_of(partition="simulated", steps=3))


def with_dropout(run):
    """Losses; whether the weights that every rank has are the same on all; which entries of the first layer's output are zero."""
    import torch.distributed as dist

    engine = make_engine(run)
    losses = train(engine, run)
    whole = torch.cat([p.detach().view(-1) for p in engine.module.parameters() if not hasattr(p, "recparallel_split")])
    every = [torch.empty_like(whole) for _ in range(dist.get_world_size())]
    dist.all_gather(every, whole)
    torch.manual_seed(3)
    ids = torch.ones(MICRO_BATCH, LENGTH, dtype=torch.int64)
    vectors = engine.module.tied_modules["item_table"](ids)
    return losses, all(torch.equal(each, whole) for each in every), vectors.detach() == 0


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_with_dropout_weights_stay_together_and_positions_drop_apart(pools, family):
    run = run_of(stages=1, dropout=0.3, family=family, steps=8)
    (losses, together, dropped), (other, _, others) = pools[2].run(with_dropout, run=run)
    assert losses == other
    assert together
    assert losses[-1] < losses[0]
    assert dropped.shape == (MICRO_BATCH, LENGTH // 2, 16)
    assert 0 < dropped.float().mean() < 1
    assert not torch.equal(dropped, others)


def ranked(run):
    """Ranks of targets, after a training."""
    engine = make_engine(run)
    train(engine, run)
    return ranks_of_some_targets(engine)


def test_targets_rank_as_in_one_process(pools):
    whole = pools[1].run(ranked, run=Run(stages=1, steps=3))[0]
    assert pools[4].run(ranked, run=run_of(steps=3)) == [whole] * 4


def with_odd_length(run, way):
    """What each rank says where a length cannot be divided that nobody knew when the engine was made."""
    from recparallel.errors import ConfigError

    engine = make_engine(run)
    batch = (
        torch.ones(MICRO_BATCH, LENGTH - 1, dtype=torch.int64),
        torch.ones(MICRO_BATCH, LENGTH - 1, dtype=torch.int64),
    )
    batches = iter([batch] * engine.micro_batches)
    try:
        engine.train_batch(batches) if way == "train" else engine.eval_batch(batches)
    except ConfigError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize("way", ["train", "evaluate"])
def test_a_length_that_cannot_be_divided_stops_every_stage(pools, way):
    said = pools[4].run(with_odd_length, run=run_of(), way=way)
    assert all(f"{LENGTH - 1} positions cannot be divided among 2 tensor ranks" in message for message in said)


def refused(run, length):
    import recparallel
    from recparallel.errors import ConfigError

    sample = torch.ones(MICRO_BATCH, length, dtype=torch.int64), torch.ones(MICRO_BATCH, length, dtype=torch.int64)
    try:
        recparallel.initialize(model=recommender(run), config=deepspeed_config(run, 1), sample=sample)
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_a_layer_that_does_not_know_of_shared_positions_is_refused():
    rec = recommender(run_of())
    other = dataclasses.replace(rec.layers[1], name="mine", module_class=torch.nn.Identity, kwargs={})
    rec = dataclasses.replace(rec, layers=(rec.layers[0], other, *rec.layers[1:]))
    assert len(shared_among(rec, TensorRanks(0, 2)).layers) == len(rec.layers)
    with pytest.raises(ConfigError, match="layer 'mine' does not know of shared positions"):
        shared_among(rec, TensorRanks(0, 2, sequence=True))


@pytest.mark.parametrize(
    ("options", "length", "said"),
    [
        ({}, 11, "11 positions cannot be divided among 2 tensor ranks; use a max_length that is a multiple of 2"),
        ({"tensor": 1}, 12, "recparallel.sequence_parallel with recparallel.tensor 1"),
    ],
)
def test_what_cannot_be_shared_is_refused_on_every_rank(pools, options, length, said):
    answers = pools[2].run(refused, run=run_of(stages=1, **options), length=length)
    assert all(said in message for message in answers)
