"""Stages that share the head give the losses and weights of one process."""

import pytest
from training import (
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

RTOL = 1e-5  # fp32; sums are made in another order


def run_of(**options):
    return Run(**{"tied": False, "spread_head": True, "steps": 10, "num_items": 41, **options})


def _agree(pools, world_size, run, *, rtol=RTOL):
    expected = reference(run)
    assert expected[-1] < expected[0]
    for losses in pools[world_size].run(train_on_engine, run=run):
        assert losses == pytest.approx(expected, rel=rtol)


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize(("world_size", "stages"), [(2, 2), (4, 4), (4, 2)])
def test_losses_are_those_of_one_process(pools, world_size, stages, zero):
    _agree(pools, world_size, run_of(stages=stages, zero=zero, dropout=0.2))


@pytest.mark.parametrize(("zero", "dtype"), [(0, "bf16"), (1, "bf16"), (1, "bf16_fp32_accumulation")])
def test_bf16_is_near_fp32(pools, zero, dtype):
    _agree(pools, 4, run_of(stages=2, zero=zero, dtype=dtype), rtol=2e-3)


@pytest.mark.parametrize("partition", ["uniform", "parameters", "profile", "simulated_any_order"])
def test_under_every_kind_of_cut(pools, partition):
    _agree(pools, 4, run_of(stages=4, partition=partition, steps=4))


def test_with_a_gradient_hook(pools):
    _agree(pools, 4, run_of(stages=2, compression={"codec": "none"}))


def trained(run, stages=(0, 1, 2, 3), shares=()):
    """Losses, the weights that this rank would write, and how many rows of the head it holds."""
    import torch.distributed as dist

    import recparallel
    from recparallel.engines.engine_state import collect
    from recparallel.plan import SpreadLayer

    cut = recparallel.Partition(
        bounds=(0, 2, 3, 4, 6), method="by hand", spread=(SpreadLayer(layer=5, stages=stages, shares=shares),)
    )
    engine, *_ = recparallel.initialize(
        model=recommender(run), config=deepspeed_config(run, dist.get_world_size() // 4), partition=cut
    )
    losses = train(engine, run)
    head = engine.module.spread_head
    return losses, collect(engine), 0 if head is None else len(head.weight)


@pytest.mark.parametrize(
    ("stages", "shares", "rows"),
    [
        ((0, 1, 2, 3), (), [10, 11, 10, 11]),
        ((0, 1, 2, 3), (0.5, 0.25, 0.0, 0.25), [21, 11, 1, 9]),
        ((0, 3), (0.75, 0.25), [32, 0, 0, 10]),
        ((1, 2, 3), (), [0, 14, 14, 14]),
    ],
)
def test_every_row_of_the_head_is_written_once(pools, stages, shares, rows):
    run = run_of(stages=4, eps=1e-3)
    answers = pools[4].run(trained, run=run, stages=stages, shares=shares)
    assert [held for *_, held in answers] == rows
    written = {}
    for losses, own, _ in answers:
        assert losses == pytest.approx(reference(run), rel=RTOL)
        assert not written.keys() & own.keys()
        written |= own
    assert_weights_of_one_process(written, run)


def ranked(run):
    """Ranks of targets after a training, and the losses of more of it: ranking leaves it alone."""
    engine = make_engine(run)
    train(engine, run)
    return ranks_of_some_targets(engine), train(engine, run)


def test_targets_rank_as_in_one_process_and_training_goes_on(pools):
    (whole, more), *_ = pools[1].run(ranked, run=Run(tied=False, stages=1, steps=3, num_items=41))
    assert len(set(whole)) > 1
    for found, losses in pools[4].run(ranked, run=run_of(stages=4, steps=3)):
        assert found == whole
        assert losses == pytest.approx(more, rel=RTOL)


def evaluated(run):
    """The loss of a batch that is not trained on."""
    from training import GLOBAL_MICRO_BATCHES, global_batches

    engine = make_engine(run)
    train(engine, run)
    replicas, replica = engine.grid.data_parallel_size, engine.grid.data_parallel_id
    share = GLOBAL_MICRO_BATCHES // replicas
    return engine.eval_batch(iter(global_batches(4)[3][replica * share : (replica + 1) * share])).item()


def test_evaluation_gives_the_loss_of_one_process(pools):
    whole = pools[1].run(evaluated, run=Run(tied=False, stages=1, steps=3, num_items=41))[0]
    assert pools[4].run(evaluated, run=run_of(stages=2, steps=3)) == pytest.approx([whole] * 4, rel=RTOL)


def refused(run, config=None, bounds=None):
    import recparallel
    from recparallel.errors import RecParallelError

    cut = bounds and recparallel.Partition(bounds=bounds, method="by hand")
    try:
        recparallel.initialize(model=recommender(run), config=deepspeed_config(run, 1) | (config or {}), partition=cut)
    except RecParallelError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run": run_of(tied=True)}, "with a tied head"),
        ({"run": run_of(loss="sampled_softmax")}, "with loss SampledSoftmax"),
        ({"run": run_of(stages=1)}, "there is nobody to share the head with"),
        ({"run": run_of(stages=1, tensor=2)}, "there is nobody to share"),
        ({"run": run_of(schedule="1f1b")}, "it runs with 'eager_1f1b'"),
        ({"run": run_of(), "config": {"fp16": {"enabled": True}}}, "the head's gradients are not scaled"),
        ({"run": run_of(), "bounds": (0, 3, 6)}, "the partition shares no layer among stages"),
        ({"run": run_of(), "bounds": (0, 5, 6)}, "the partition shares no layer"),
    ],
)
def test_what_cannot_be_shared_is_refused_on_every_rank(pools, options, said):
    assert all(said in message for message in pools[2].run(refused, **options))


def with_other_data(run, *, none):
    """What each rank says where rank 0 has data and rank 1 has none, or others."""
    import torch.distributed as dist
    from training import global_batches

    from recparallel.errors import ConfigError

    engine = make_engine(run)
    batches = iter(global_batches(2)[dist.get_rank()])
    try:
        engine.train_batch(None if none and dist.get_rank() else batches)
    except ConfigError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize(("none", "found"), [(True, "some stage has none"), (False, "they differ")])
def test_stages_with_other_data_all_stop(pools, none, found):
    said = pools[2].run(with_other_data, run=run_of(), none=none)
    assert all(f"need the same micro-batches, but {found} (stage {s} has" in message for s, message in enumerate(said))


def checkpointed(run, folder):
    """What DeepSpeed's own checkpoint says."""
    from recparallel.errors import CheckpointError

    try:
        make_engine(run).save_checkpoint(folder)
    except CheckpointError as error:
        return str(error)
    return "written"


def test_deepspeeds_own_checkpoint_would_lose_the_head_and_is_refused(pools, tmp_path):
    said = pools[2].run(checkpointed, run=run_of(), folder=str(tmp_path))
    assert all("would leave it out; use recparallel.engines.checkpoint" in message for message in said)
