"""Layers that move between stages while the model trains: losses stay those of one process, and a failed move changes nothing."""

from dataclasses import replace

import pytest
import torch
from training import Run, make_engine, reference, train

BY_HAND = {"rebalance": {"every": 10**6}}
"""Layers move when the test says so."""

STILL = Run(partition="adaptive", partition_options=BY_HAND, steps=10, clip=0.5)


def train_with_moves(run, moves):
    """Losses, where ``moves`` has the bounds to move to before a step."""
    from recparallel.engines.moving import move_layers

    engine = make_engine(run)
    losses = []
    for step in range(run.steps):
        if step in moves:
            target = engine.module.partition.model_copy(update={"bounds": moves[step]})
            move_layers(engine, target)
            assert engine.recparallel.plan.partition.bounds == moves[step]
            assert len(list(engine.module.forward_funcs)) == engine.module._local_stop - engine.module._local_start
        losses += train(engine, replace(run, steps=step + 1), first=step)
    return losses


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("zero", [0, 1])
def test_four_stages_and_moves_over_several_of_them(pools, zero, tied):
    run = replace(STILL, stages=4, zero=zero, tied=tied, bounds=(0, 1, 2, 4, 6))
    moves = {2: (0, 3, 4, 5, 6), 4: (0, 1, 2, 3, 6), 5: (0, 2, 3, 4, 6), 8: (0, 1, 2, 4, 6)}
    for losses in pools[4].run(train_with_moves, run=run, moves=moves):
        assert losses == pytest.approx(reference(run), rel=1e-5)


THERE_AND_BACK = {2: (0, 4, 6), 5: (0, 1, 6), 8: (0, 3, 6)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("zero", [0, 1])
def test_two_stages_of_two_replicas(pools, zero, tied):
    run = replace(STILL, zero=zero, tied=tied, bounds=(0, 3, 6))
    for losses in pools[4].run(train_with_moves, run=run, moves=THERE_AND_BACK):
        assert losses == pytest.approx(reference(run), rel=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("zero", [0, 1])
def test_residuals_move_with_their_weights(pools, zero, tied):
    """What ``top_k`` leaves out of a layer does not depend on the stage that the layer is on, if its residual comes along."""
    run = replace(STILL, zero=zero, tied=tied, bounds=(0, 3, 6), compression={"codec": "top_k", "ratio": 0.1})
    still = pools[4].run(train_with_moves, run=run, moves={})[0]
    assert still != pytest.approx(reference(run), rel=1e-3)
    for losses in pools[4].run(train_with_moves, run=run, moves=THERE_AND_BACK):
        assert losses == pytest.approx(still, rel=1e-5)


def test_tensor_ranks_move_their_parts(pools):
    run = replace(STILL, tensor=2, tied=False, bounds=(0, 3, 6))
    for losses in pools[4].run(train_with_moves, run=run, moves=THERE_AND_BACK):
        assert losses == pytest.approx(reference(run), rel=1e-5)


@pytest.mark.parametrize(
    ("zero", "dtype"),
    [
        (0, "bf16"),
        pytest.param(1, "bf16", marks=pytest.mark.slow),
        pytest.param(1, "bf16_fp32_accumulation", marks=pytest.mark.slow),
    ],
)
def test_bf16_keeps_its_master_weights(pools, zero, dtype):
    run = replace(STILL, zero=zero, dtype=dtype, bounds=(0, 3, 6), clip=0.0)
    still = pools[4].run(train_with_moves, run=run, moves={})[0]
    for losses in pools[4].run(train_with_moves, run=run, moves=THERE_AND_BACK):
        assert losses == pytest.approx(still, rel=1e-5)


WARMUP = {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 0.01, "warmup_num_steps": 8}}}


@pytest.mark.parametrize("zero", [0, 1])
def test_learning_rates_go_on(pools, zero):
    run = replace(STILL, zero=zero, bounds=(0, 3, 6), deepspeed=WARMUP)
    still = pools[2].run(train_with_moves, run=run, moves={})[0]
    for losses in pools[2].run(train_with_moves, run=run, moves=THERE_AND_BACK):
        assert losses == pytest.approx(still, rel=1e-5)


def state_of(engine):
    from recparallel.engines.engine_state import collect_parts

    return {name: value.clone() for name, value in collect_parts(engine).items()}


def train_with_a_failed_move(run, fails, rank):
    """Losses, the error, and whether state and cut were the old ones behind it."""
    import torch.distributed as dist

    from recparallel.engines import moving
    from recparallel.errors import MoveError

    engine = make_engine(run)
    losses = train(engine, replace(run, steps=3))
    before, bounds = state_of(engine), engine.module.partition.bounds
    original = getattr(moving, fails)
    calls = []

    def failing(*args, **kwargs):
        calls.append(1)
        if dist.get_rank() == rank and len(calls) == 1:
            raise MemoryError("no room")
        return original(*args, **kwargs)

    setattr(moving, fails, failing)
    try:
        with pytest.raises(MoveError) as raised:
            moving.move_layers(engine, engine.module.partition.model_copy(update={"bounds": (0, 1, 6)}))
    finally:
        setattr(moving, fails, original)
    after = state_of(engine)
    same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    cut = engine.module.partition.bounds == engine.recparallel.plan.partition.bounds == bounds
    losses += train(engine, run, first=3)
    return losses, str(raised.value), same and cut


@pytest.mark.parametrize(
    ("fails", "zero"), [("build_layer", 0), ("pack", 1), ("let_it_train", 0), ("restore", 0), ("restore", 1)]
)
def test_a_move_that_fails_changes_nothing(pools, fails, zero):
    """While layers are built or packed, and while they are installed."""
    run = replace(STILL, zero=zero, bounds=(0, 3, 6))
    rank = {"build_layer": 3, "pack": 1}.get(fails, 2)
    for losses, said, same in pools[4].run(train_with_a_failed_move, run=run, fails=fails, rank=rank):
        assert said == f"rank {rank}: MemoryError: no room"
        assert same
        assert losses == pytest.approx(reference(run), rel=1e-5)


def broken_move(run):
    """What ends the job where a rank can neither install the new layers nor the old ones."""
    import torch.distributed as dist

    from recparallel.engines import moving
    from recparallel.errors import MoveError, RecParallelError

    engine = make_engine(run)
    train(engine, replace(run, steps=1))
    original = moving.rearrange

    def failing(*args):
        if dist.get_rank() == 1:
            raise MemoryError("no room")
        original(*args)

    moving.rearrange = failing
    try:
        with pytest.raises(RecParallelError) as raised:
            moving.move_layers(engine, engine.module.partition.model_copy(update={"bounds": (0, 1, 6)}))
    finally:
        moving.rearrange = original
    return type(raised.value) is not MoveError, str(raised.value)


def test_a_rank_that_cannot_go_back_either_ends_the_job(pools):
    assert (
        pools[2].run(broken_move, run=replace(STILL, bounds=(0, 3, 6))) == [(True, "rank 1: MemoryError: no room")] * 2
    )


def move_with_company(run):
    """A user's wrapper around ``train_batch``, a stateful buffer, and the engine behind ``remove()``."""
    from recparallel.engines.moving import move_layers

    engine = make_engine(run)
    calls = []
    ours = engine.train_batch
    engine.train_batch = lambda *args, **kwargs: calls.append(1) or ours(*args, **kwargs)
    for number in range(engine.module._local_start, engine.module._local_stop):
        module = engine.module.get_submodule(str(number))
        for buffer in module.buffers():
            buffer.add_(number + 1.0)
    train(engine, replace(run, steps=1))
    values = {}
    for bounds in ((0, 2, 6), (0, 4, 6)):
        move_layers(engine, engine.module.partition.model_copy(update={"bounds": bounds}))
        start = engine.module._local_start
        values |= {
            (bounds, start + place): [buffer.sum().item() for buffer in module.buffers()]
            for place, module in enumerate(engine.module.forward_funcs)
        }
    train(engine, replace(run, steps=2), first=1)
    rng = torch.get_rng_state()
    move_layers(engine, engine.module.partition.model_copy(update={"bounds": (0, 3, 6)}))
    same = torch.equal(rng, torch.get_rng_state())
    engine.recparallel.remove()
    return len(calls), same, values, hasattr(engine, "recparallel"), "_INSTRUCTION_MAP" in vars(engine)


def test_what_else_hangs_on_an_engine(pools):
    run = replace(STILL, tied=False, bounds=(0, 3, 6))
    everyone = pools[2].run(move_with_company, run=run)
    seen = {}
    for calls, same_random_state, values, left, instructions in everyone:
        assert calls == 2
        assert same_random_state
        assert not left
        assert not instructions
        for (_, layer), sums in values.items():
            assert seen.setdefault(layer, sums) == sums  # the same on either rank
    assert any(sums for sums in seen.values())


def frozen_stage(run):
    from recparallel.engines.moving import move_layers
    from recparallel.errors import MoveError

    engine = make_engine(run)
    for number in range(engine.module._local_start, engine.module._local_stop):
        if number in (0, 1):
            engine.module.get_submodule(str(number)).requires_grad_(False)
    with pytest.raises(MoveError) as raised:
        move_layers(engine, engine.module.partition.model_copy(update={"bounds": (0, 2, 6)}))
    return str(raised.value)


def test_no_stage_is_left_without_anything_to_train(pools):
    (said, _) = pools[2].run(frozen_stage, run=replace(STILL, tied=False, bounds=(0, 3, 6)))
    assert "leaves stage 0 without parameters that are trained" in said


def disagreeing(run):
    import torch.distributed as dist

    from recparallel.engines.moving import move_layers
    from recparallel.errors import MoveError

    engine = make_engine(run)
    bounds = (0, 2 + dist.get_rank(), 6)
    with pytest.raises(MoveError) as raised:
        move_layers(engine, engine.module.partition.model_copy(update={"bounds": bounds}))
    return str(raised.value)


def test_ranks_that_were_told_different_cuts_all_refuse(pools):
    said = pools[2].run(disagreeing, run=replace(STILL, bounds=(0, 4, 6)))
    assert said == ["rank 0 was told to move to [0, 2, 6], rank 1 to [0, 3, 6]"] * 2


def test_stages_that_run_in_another_order_of_devices(pools):
    run = replace(STILL, bounds=(0, 3, 6), tied=False)
    for losses in pools[2].run(train_backwards, run=run, moves=THERE_AND_BACK):
        assert losses == pytest.approx(reference(run), rel=1e-5)


def train_backwards(run, moves):
    from training import deepspeed_config, global_batches, recommender

    import recparallel
    from recparallel.engines.moving import move_layers

    cut = recparallel.Partition(bounds=run.bounds, method="by hand", device_order=(1, 0))
    sample = global_batches(1)[0][0]
    engine, *_ = recparallel.initialize(
        model=recommender(run), config=deepspeed_config(run, 1), sample=sample, partition=cut
    )
    losses = []
    for step in range(run.steps):
        if step in moves:
            move_layers(engine, engine.module.partition.model_copy(update={"bounds": moves[step]}))
        losses += train(engine, replace(run, steps=step + 1), first=step)
    return losses


def refusals(run, moves):
    from recparallel.engines import moving
    from recparallel.errors import MoveError

    engine = make_engine(run)
    said = []
    for changes in moves:
        with pytest.raises(MoveError) as raised:
            moving.move_layers(engine, engine.module.partition.model_copy(update=changes))
        said.append(str(raised.value))
    return said


def test_moves_that_cannot_be_are_refused_on_every_rank(pools):
    run = replace(STILL, bounds=(0, 3, 6))
    moves = [{"bounds": (0, 6, 6)}, {"bounds": (0, 3, 7)}, {"bounds": (0, 2, 4, 6)}, {"device_order": (1, 0)}]
    for said in pools[2].run(refusals, run=run, moves=moves):
        assert "leaves stage 1 without layers" in said[0]
        assert "6 layers into 2 stages" in said[1]
        assert "6 layers into 2 stages" in said[2]
        assert "not their devices" in said[3]
