"""Pipelines, hybrid runs, ties, clipping and ZeRO give the losses of one plain process."""

import pytest
from training import (
    Run,
    deepspeed_config,
    global_batches,
    make_engine,
    recommender,
    reference,
    train,
    train_on_engine,
)

CUTS = ["uniform", "type:ItemEmbedding|FinalNorm"]
RTOL = 1e-5  # fp32; sums are made in another order


def _agree(pools, run: Run, world_size: int) -> None:
    every_rank = pools[world_size].run(train_on_engine, run=run)
    expected = reference(run)
    assert expected[-1] < expected[0]
    for losses in every_rank:
        assert losses == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("partition", CUTS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_hybrid_gives_losses_of_one_process(pools, world_size, partition, tied, zero):
    _agree(pools, Run(partition=partition, tied=tied, zero=zero), world_size)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax"])
def test_dropout_and_negatives_do_not_depend_on_the_cut(pools, world_size, loss):
    """Seeds belong to layers and micro-batches, so that even random parts agree."""
    _agree(pools, Run(dropout=0.3, loss=loss, steps=6), world_size)


def test_gpt2_with_learned_positions(pools):
    _agree(pools, Run(family="gpt2"), 2)


def test_replicas_alone(pools):
    _agree(pools, Run(stages=1), 2)


def test_one_process_is_its_own_reference(pools):
    _agree(pools, Run(stages=1), 1)


@pytest.mark.parametrize("stages", [3, 4])
def test_stages_of_a_single_layer(pools, stages):
    """An embedding-only stage under ZeRO-1 (DeepSpeed #1522, #5384), and a head-only one."""
    run = Run(stages=4, partition="profile", zero=1, tied=stages == 4)
    _agree(pools, run, 4)


def norms(run):
    """The gradient norm of each step as the engine reports it."""
    engine = make_engine(run)
    seen = []
    clip = engine.clip_fp32_gradients
    engine.__dict__["clip_fp32_gradients"] = lambda: (clip(), seen.append(engine.get_global_grad_norm()))
    train(engine, run)
    return seen


@pytest.mark.parametrize("tied", [True, False])
def test_the_norm_counts_every_parameter_once(pools, tied):
    """Stock DeepSpeed counts the first stage's alone: 0.334 where one process has 0.601."""
    cut = pools[2].run(norms, run=Run(tied=tied, steps=5))
    whole = pools[1].run(norms, run=Run(tied=tied, steps=5, stages=1))
    assert cut[0] == cut[1]
    assert cut[0] == pytest.approx(whole[0], rel=1e-5)


def cut_of(run):
    return make_engine(run).recparallel.plan.partition


def test_the_two_cuts_differ(pools):
    cuts = {pools[2].run(cut_of, run=Run(partition=method))[0].bounds for method in CUTS}
    assert len(cuts) == 2


def test_measured_cut_is_the_same_on_every_rank(pools):
    cuts = pools[4].run(cut_of, run=Run(stages=4, partition="profile"))
    assert len({cut.bounds for cut in cuts}) == 1
    assert cuts[0].method == "profile"
    assert len(cuts[0].stage_seconds) == 4


def refused(run, *, sampled=True, bounds=None):
    import recparallel
    from recparallel.errors import PartitionError

    try:
        recparallel.initialize(
            model=recommender(run),
            config=deepspeed_config(run, 1),
            sample=global_batches(1)[0][0] if sampled else None,
            partition=bounds and recparallel.Partition(bounds=bounds, method="by hand"),
        )
    except PartitionError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"run": Run(), "bounds": (0, 6, 6)}, "leaves stage 1 of 2 without layers"),
        ({"run": Run(), "bounds": (0, 3, 5)}, "covers 5 layers, the model has 6"),
        ({"run": Run(), "bounds": (0, 2, 4, 6)}, "has 3 stages, the pipeline 2"),
        ({"run": Run(partition="type:NoSuchLayer")}, "DecoderBlock, FinalNorm, ItemEmbedding"),
        ({"run": Run(partition="profile"), "sampled": False}, "pass training_data"),
    ],
)
def test_bad_cuts_are_refused_on_every_rank(pools, options, said):
    assert all(said in message for message in pools[2].run(refused, **options))


def disagreeing_ranks():
    """A profile that differs by rank: every rank must refuse, none may wait."""
    import torch.distributed as dist

    import recparallel
    from recparallel.errors import PartitionError
    from recparallel.plan import LayerCost, Profile

    seconds = [1.0, 1, 1, 1, 1, 9] if dist.get_rank() == 0 else [9.0, 1, 1, 1, 1, 1]
    layers = [
        LayerCost(name=str(i), forward_seconds=s, backward_seconds=s, num_parameters=1, parameter_bytes=4)
        for i, s in enumerate(seconds)
    ]
    profile = Profile(layers=tuple(layers), micro_batch=1, sequence_length=1)
    run = Run(partition="profile")
    try:
        recparallel.initialize(model=recommender(run), config=deepspeed_config(run, 1), profile=profile)
    except PartitionError as error:
        return str(error)
    return "accepted"


def test_ranks_that_disagree_on_the_cut_all_stop(pools):
    assert all("rank 0 has [0, 5, 6], rank 1 has [0, 1, 6]" in message for message in pools[2].run(disagreeing_ranks))
