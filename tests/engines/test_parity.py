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
@pytest.mark.parametrize("loss", ["cross_entropy", "chunked_cross_entropy", "sampled_softmax", "answers"])
def test_dropout_and_negatives_do_not_depend_on_the_cut(pools, world_size, loss):
    """Seeds belong to layers and micro-batches, so that even random parts agree."""
    _agree(pools, Run(dropout=0.3, block_dropout=0.2, loss=loss, steps=6), world_size)


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


def tied_training(run):
    """Losses, what travelled of the tied table, and whether its copies are the same in the end."""
    from test_hooks import tied_copies_equal

    from recparallel import events

    seen = []
    engine = make_engine(run)
    with events.subscribe(lambda event: seen.append(event) if isinstance(event, events.TiedExchange) else None):
        losses = train(engine, run)
    return losses, seen, tied_copies_equal(engine)


@pytest.mark.parametrize(("world_size", "zero"), [(2, 0), (4, 0), (4, 1)])
def test_tied_copies_exchange_the_rows_that_were_touched(pools, world_size, zero):
    run = Run(loss="sampled_softmax", zero=zero, steps=6, num_items=600)
    expected = reference(run)
    for losses, seen, equal in pools[world_size].run(tied_training, run=run):
        assert losses == pytest.approx(expected, rel=RTOL)
        assert equal
        assert [event.way for event in seen] == ["rows"] * run.steps
        assert all(event.wire_bytes < event.dense_bytes / 2 for event in seen)


def test_a_tied_table_that_is_touched_everywhere_travels_whole(pools):
    for losses, seen, _ in pools[2].run(tied_training, run=Run(steps=3)):
        assert losses == pytest.approx(reference(Run(steps=3)), rel=RTOL)
        assert [event.way for event in seen] == ["dense"] * 3
        assert all(event.wire_bytes == event.dense_bytes for event in seen)


@pytest.mark.parametrize(("zero", "dtype"), [(0, "bf16"), (1, "bf16_fp32_accumulation")])
def test_a_stage_of_nothing_but_a_tied_copy_trains_in_bf16(pools, zero, dtype):
    """DeepSpeed alone finds no gradient for the norm there, and fails."""
    cut = (0, 2, 3, 5, 6)
    run = Run(stages=4, bounds=cut, zero=zero, dtype=dtype, steps=6, loss="sampled_softmax", num_items=600)
    for rank, (losses, seen, equal) in enumerate(pools[4].run(tied_training, run=run)):
        assert losses == pytest.approx(reference(run), rel=2e-3)
        assert equal
        assert [event.way for event in seen] == (["rows"] * run.steps if rank in (0, 3) else [])


@pytest.mark.parametrize(("zero", "dtype"), [(0, "bf16"), (1, "bf16"), (1, "bf16_fp32_accumulation")])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stages", [1, 2])
def test_bf16_is_near_fp32(pools, stages, tied, zero, dtype):
    """A head whose gradient is lost learns too slowly, which changes losses by ten times as much: DeepSpeed clears bf16 gradients
    that arrive before those of the hidden states."""
    run = Run(stages=stages, tied=tied, zero=zero, dtype=dtype, steps=10)
    for losses in pools[stages].run(train_on_engine, run=run):
        assert losses == pytest.approx(reference(run), rel=2e-3)


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


def one_rank_without_a_cut():
    """A profile that only fits into memory on rank 0: rank 1 has no cut, and both must stop."""
    import torch.distributed as dist

    import recparallel
    from recparallel.errors import PartitionError
    from recparallel.plan import Device, LayerCost, Profile

    layers = tuple(LayerCost(name=str(i), forward_seconds=1, backward_seconds=1, parameter_bytes=100) for i in range(6))
    devices = (Device(memory_bytes=10_000 if dist.get_rank() == 0 else 10),) * 2
    profile = Profile(layers=layers, micro_batch=1, sequence_length=1, devices=devices)
    run = Run(partition="profile")
    try:
        recparallel.initialize(model=recommender(run), config=deepspeed_config(run, 1), profile=profile)
    except PartitionError as error:
        return str(error)
    return "accepted"


def test_a_rank_that_finds_no_cut_stops_all(pools):
    assert all("no cut into 2 stages fits" in message for message in pools[2].run(one_rank_without_a_cut))


def in_device_order(run, order, bounds):
    """Losses where stage ``s`` runs on rank group ``order[s]``, and the stage of this rank."""
    import torch.distributed as dist

    import recparallel

    engine, *_ = recparallel.initialize(
        model=recommender(run),
        config=deepspeed_config(run, dist.get_world_size() // run.stages),
        partition=recparallel.Partition(bounds=bounds, method="by hand", device_order=order),
    )
    return engine.module.stage_id, train(engine, run)


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize(
    ("world_size", "bounds", "order"),
    [(4, (0, 1, 3, 4, 6), (2, 0, 3, 1)), (4, (0, 2, 6), (1, 0)), (2, (0, 5, 6), (1, 0))],
)
def test_on_devices_in_another_order_losses_are_those_of_one_process(pools, world_size, bounds, order, zero):
    """The tied table begins with its first stage's weights, though that is not the lowest rank."""
    run = Run(stages=len(order), zero=zero, dropout=0.3, steps=8)
    answers = pools[world_size].run(in_device_order, run=run, order=order, bounds=bounds)
    replicas = world_size // len(order)
    assert [stage for stage, _ in answers] == [order.index(rank // replicas) for rank in range(world_size)]
    expected = reference(run)
    for _, losses in answers:
        assert losses == pytest.approx(expected, rel=RTOL)


def with_profile_file(path):
    import recparallel
    from recparallel.errors import PartitionError

    run = Run()
    config = deepspeed_config(run, 1)
    config["recparallel"]["partition"] = {"method": "simulated", "profile": path}
    try:
        engine, *_ = recparallel.initialize(model=recommender(run), config=config, sample=global_batches(1)[0][0])
    except PartitionError as error:
        return str(error)
    return engine.module.partition


def write_profile(path, names, **options):
    from recparallel.plan import LayerCost, Profile

    layers = tuple(LayerCost(name=n, forward_seconds=1, backward_seconds=1) for n in names)
    path.write_text(Profile(layers=layers, **{"micro_batch": 2, "sequence_length": 12, **options}).model_dump_json())
    return str(path)


NAMES = ["embedding", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]


def test_a_profile_from_a_file_is_cut_as_the_command_line_cuts_it(pools, tmp_path):
    from recparallel.partitioning.even_cut import minimize_step_evenly
    from recparallel.profiling.files import read_profile

    path = write_profile(tmp_path / "profile.json", NAMES)
    cuts = pools[2].run(with_profile_file, path=path)
    assert cuts[0] == cuts[1]
    profile = read_profile(path).model_copy(update={"num_micro_batches": 4})
    assert cuts[0] == minimize_step_evenly(profile, 2)


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (
            NAMES[:-1],
            {},
            "is of another model: it has 5 layers, this model 6; the first that differs is number 5: nothing there",
        ),
        (["tokens", *NAMES[1:]], {}, "number 0: tokens there, embedding here"),
        (NAMES, {"micro_batch": 4}, "says nothing of micro-batch 2 × length 12; measured are 4 × 12"),
    ],
)
def test_a_profile_of_another_model_is_refused_on_every_rank(pools, tmp_path, names, options, said):
    path = write_profile(tmp_path / "profile.json", names, **options)
    assert all(said in message for message in pools[2].run(with_profile_file, path=path))


def test_a_profile_file_that_is_missing_is_refused_on_every_rank(pools, tmp_path):
    said = pools[2].run(with_profile_file, path=str(tmp_path / "none.json"))
    assert all("none.json: No such file" in message for message in said)


def second_start(run):
    """What a second start measures where the first one has, and its cut."""
    from recparallel.profiling import ranks

    make_engine(run)
    original, measured = ranks.measure_layers, []
    ranks.measure_layers = lambda *args, **kwargs: (measured.append(1), original(*args, **kwargs))[1]
    try:
        engine = make_engine(run)
    finally:
        ranks.measure_layers = original
    return measured, engine.module.partition.bounds


def test_a_second_start_measures_nothing(pools):
    (first, cut), (second, same) = pools[2].run(second_start, run=Run(partition="simulated_any_order"))
    assert first == second == []
    assert cut == same


def limited(run, memory_gib):
    import recparallel
    from recparallel.errors import PartitionError

    config = deepspeed_config(run, 1)
    config["recparallel"]["partition"] = {"method": "profile", "memory_gib": memory_gib}
    try:
        recparallel.initialize(model=recommender(run), config=config, sample=global_batches(1)[0][0])
    except PartitionError as error:
        return str(error)
    return "accepted"


def test_a_memory_limit_of_the_config_reaches_the_solver(pools):
    assert pools[2].run(limited, run=Run(), memory_gib=1.0) == ["accepted", "accepted"]
    for message in pools[2].run(limited, run=Run(), memory_gib=1e-6):
        assert "no cut into 2 stages fits" in message
        assert "on rank" in message
