"""Item tables that are stepped by rows: trainings are those of one process with a dense AdamW."""

from dataclasses import replace

import pytest
import torch
from training import (
    LR,
    Run,
    assert_same_names,
    deepspeed_config,
    global_batches,
    make_engine,
    ranks_of_some_targets,
    recommender,
    reference,
    reference_weights,
    train,
)

from recparallel.errors import CheckpointError, ConfigError

ITEMS = 200
SAMPLED = {"loss": "sampled_softmax", "num_items": ITEMS}


def lazy(run):
    """The same with lazy rows; ``deepspeed`` holds what is merged into the config."""
    import torch.distributed as dist

    config = deepspeed_config(run, dist.get_world_size() // (run.stages * run.tensor) if dist.is_initialized() else 1)
    return replace(run, deepspeed={**run.deepspeed, "recparallel": {**config["recparallel"], "lazy_rows": True}})


def trained(run):
    """Losses, what ranks write, and of how many exchanges of rows there were news."""
    from recparallel import events
    from recparallel.engines.engine_state import collect

    told = []
    engine = make_engine(lazy(run))
    with events.subscribe(told.append):
        losses = train(engine, run)
    by_rows = [e for e in told if "rows" in (getattr(e, "codec", ""), getattr(e, "way", ""))]
    return losses, collect(engine), len(by_rows)


@pytest.mark.parametrize(
    ("ranks", "options", "exchanges"),
    [
        (1, {"stages": 1}, 0),
        (2, {"stages": 2}, 1),  # the table and its copy
        (2, {"stages": 2, "tied": False, "loss": "cross_entropy"}, 0),  # the head has a dense gradient
        (2, {"stages": 1, "compression": {"codec": "none"}}, 1),
        (2, {"stages": 1, "tensor": 2, "eps": 1e-3}, 0),  # with less a rounded gradient makes whole steps
        (4, {"stages": 2}, 2),
        (4, {"stages": 2, "zero": 1}, 2),
        (4, {"stages": 2, "zero": 1, "tied": False, "clip": 0.0}, 1),
    ],
    ids=str,
)
def test_losses_and_weights_are_those_of_one_process(pools, ranks, options, exchanges):
    run = Run(steps=10, **{**SAMPLED, **options})
    written = {}
    for losses, own, by_rows in pools[ranks].run(trained, run=run):
        assert losses == pytest.approx(reference(run), rel=1e-5)
        assert by_rows == exchanges * run.steps
        written |= own
    assert_same_names(written, run)
    for name, whole in reference_weights(run).items():
        ours, lazy_table = written[f"weight/{name}"], len(whole) == ITEMS + 1
        others = 1e-6 if run.eps == 1e-8 else 1e-5  # they follow the table, whose rows follow eps
        torch.testing.assert_close(ours, whole, rtol=1e-4, atol=0.05 * LR if lazy_table else others, msg=name)
        assert (ours - whole).abs().median() < 2e-6


@pytest.mark.parametrize(
    "options",
    [
        {"stages": 2},
        {"stages": 1},
        {"stages": 1, "zero": 1},
        {"stages": 2, "zero": 1, "dtype": "bf16_fp32_accumulation"},
    ],
    ids=str,
)
def test_in_bf16_too(pools, options):
    run = Run(steps=10, **{"dtype": "bf16", **SAMPLED, **options})
    for losses, _, _ in pools[2].run(trained, run=run):
        assert losses == pytest.approx(reference(run), rel=2e-3)


def copies(run):
    """Every rank's item table and its moments."""
    from recparallel.engines.engine_state import collect_parts, parameters_by_name

    engine = make_engine(lazy(run))
    train(engine, run)
    parts = collect_parts(engine, parameters_by_name(engine))
    return {key: value.clone() for key, value in parts.items() if value.shape[:1] == (ITEMS + 1,)}


def test_copies_and_replicas_hold_the_same_to_the_last_bit(pools):
    found = pools[4].run(copies, run=Run(stages=2, steps=10, **SAMPLED))
    assert len(found[0]) == 3  # the table and two moments
    for tables in found[1:]:
        assert tables.keys() == found[0].keys()
        for key, value in tables.items():
            assert torch.equal(value, found[0][key]), key


def copies_behind_a_checkpoint(run, folder):
    from pathlib import Path

    from recparallel.engines.checkpoint import save_checkpoint
    from recparallel.engines.engine_state import collect_parts, parameters_by_name

    engine = make_engine(lazy(run))
    train(engine, replace(run, steps=5))
    save_checkpoint(engine, Path(folder), sampler={"epoch": 0, "step": 5})
    train(engine, run, first=5)
    parts = collect_parts(engine, parameters_by_name(engine))
    return {key: value.clone() for key, value in parts.items() if value.shape[:1] == (ITEMS + 1,)}


def test_copies_are_the_same_behind_a_checkpoint_too(pools, tmp_path):
    """What a row catches up with in two steps differs by rounding from one: all copies must do it alike."""
    one, other = pools[2].run(copies_behind_a_checkpoint, run=Run(stages=2, steps=10, **SAMPLED), folder=str(tmp_path))
    assert all(torch.equal(one[key], other[key]) for key in one | other)


@pytest.mark.parametrize("rows", [False, True])
def test_gradients_that_arrive_in_one_buffer_are_kept_apart(pools, rows):
    """DeepSpeed's own schedule receives every micro-batch's gradient in the same memory, and a stage of table and positions hands
    it to the look-up as it is. The table is large: nothing is summed before the end of the step."""
    run = Run(family="gpt2", stages=2, bounds=(0, 2, 7), schedule="1f1b", steps=6, **{**SAMPLED, "num_items": 2000})
    for losses in pools[2].run(trained_alone, run=run, rows=rows):
        assert losses == pytest.approx(reference(run), rel=1e-5)


def trained_alone(run, *, rows):
    return train(make_engine(lazy(run) if rows else run), run)


def evaluated(run):
    engine = make_engine(lazy(run))
    losses = train(engine, replace(run, steps=5))
    found = ranks_of_some_targets(engine)
    return losses + train(engine, run, first=5), found


def evaluated_densely(run):
    engine = make_engine(run)
    train(engine, replace(run, steps=5))
    return ranks_of_some_targets(engine)


def test_an_evaluation_sees_rows_that_are_up_to_date(pools):
    run = Run(stages=2, steps=10, **SAMPLED)
    expected = pools[2].run(evaluated_densely, run=run)[0]
    for losses, found in pools[2].run(evaluated, run=run):
        assert losses == pytest.approx(reference(run), rel=1e-5)
        assert found == expected


def stored(run, folder, *, rows):
    from pathlib import Path

    from recparallel.engines.checkpoint import save_checkpoint

    engine = make_engine(lazy(run) if rows else run)
    train(engine, replace(run, steps=4))
    save_checkpoint(engine, Path(folder), sampler={"epoch": 0, "step": 4})


def resumed(run, folder, *, rows):
    from pathlib import Path

    from recparallel.engines.checkpoint import load_checkpoint

    engine = make_engine(lazy(run) if rows else run)
    load_checkpoint(engine, Path(folder))
    return train(engine, run, first=4)


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_a_checkpoint_goes_on_with_lazy_rows_or_without(pools, tmp_path, before, after):
    run = Run(stages=2, steps=10, **SAMPLED)
    pools[2].run(stored, run=run, folder=str(tmp_path), rows=before)
    other = replace(run, stages=1, zero=1)
    for losses in pools[2].run(resumed, run=other, folder=str(tmp_path), rows=after):
        assert losses == pytest.approx(reference(run)[4:], rel=1e-5)


def skipping(run):
    """The table before and behind a step whose gradient is not finite, and the steps that the engine skipped."""
    engine = make_engine(lazy(run))
    train(engine, replace(run, steps=3))
    rows = engine.recparallel.rows
    rows.settle()
    before = [weight.clone() for weight, _ in rows.gradients()]
    for table in rows._tables:
        weight = table.weight
        table.keeper.add(torch.tensor([1]), torch.full((1, weight.shape[1]), float("nan"), dtype=weight.dtype))
    micro_batches = global_batches(4)[3]
    engine.train_batch(iter(micro_batches))
    rows.settle()
    return engine.skipped_steps, [torch.equal(b, w) for b, (w, _) in zip(before, rows.gradients())]


@pytest.mark.parametrize(("dtype", "zero"), [("bf16", 0), ("fp32", 1)])
def test_a_step_that_deepspeed_skips_leaves_tables_alone(pools, dtype, zero):
    """A number that is none in a row alone counts in the norm, and every rank skips."""
    for skipped, same in pools[2].run(skipping, run=Run(stages=2, steps=4, dtype=dtype, zero=zero, **SAMPLED)):
        assert skipped == 1
        assert same == [True]


def taken_off_and_put_on_again(run):
    import recparallel

    engine = make_engine(lazy(run))
    config = lazy(run).deepspeed
    losses = train(engine, replace(run, steps=4))
    engine.recparallel.remove()
    with pytest.raises(ConfigError, match="nobody would train them"):
        recparallel.attach(engine, {"recparallel": {"stages": 1}})
    recparallel.attach(engine, config)
    with pytest.raises(CheckpointError, match="trained by rows"):
        engine.module.save_state_dict("nowhere", None)
    return losses + train(engine, run, first=4)


def test_put_on_again_it_goes_on_with_what_it_kept(pools):
    run = Run(stages=1, steps=8, **SAMPLED)
    assert pools[1].run(taken_off_and_put_on_again, run=run) == [pytest.approx(reference(run), rel=1e-5)]


def taken_off(run):
    from recparallel.models.row_gradients import KEEPER

    engine = make_engine(lazy(run))
    train(engine, run)
    rows = engine.recparallel.rows
    waited = [table.optimizer._idle.newest for table in rows._tables]
    engine.recparallel.remove()
    return (
        waited,
        [table.optimizer._idle.newest for table in rows._tables],
        [hasattr(t.weight, KEEPER) for t in rows._tables],
    )


def test_taken_off_it_leaves_tables_up_to_date(pools):
    assert pools[1].run(taken_off, run=Run(stages=1, steps=3, **SAMPLED)) == [([3], [0], [False])]


def refused(run, **given):
    import recparallel

    config = deepspeed_config(run, 1)
    config["recparallel"]["lazy_rows"] = True
    sample = global_batches(1)[0][0]
    with pytest.raises(ConfigError) as error:
        recparallel.initialize(model=recommender(run), config=config, sample=sample, **given)
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "given", "said"),
    [
        ({"loss": "cross_entropy"}, {}, "CrossEntropy"),
        ({}, {"model_parameters": []}, "model_parameters"),
        ({"deepspeed": {"optimizer": {"type": "SGD", "params": {"lr": 1e-3}}}}, {}, "AdamW"),
        ({"deepspeed": {"fp16": {"enabled": True}}}, {}, "fp16"),
    ],
)
def test_what_it_cannot_do_is_refused(options, given, said):
    assert said in refused(Run(stages=1, **{**SAMPLED, **options}), **given)


def attached_elsewhere(run):
    import recparallel

    engine = make_engine(run)
    engine.recparallel.remove()
    with pytest.raises(ConfigError, match="build it by recparallel"):
        recparallel.attach(engine, {"recparallel": {"lazy_rows": True, "stages": 1}})


def test_an_engine_whose_optimizer_has_the_tables_is_refused(pools):
    pools[1].run(attached_elsewhere, run=Run(stages=1, **SAMPLED))


def lonely(run):
    from recparallel.errors import PartitionError

    with pytest.raises(PartitionError, match="nothing but an item table"):
        make_engine(lazy(run))


def test_a_stage_of_nothing_but_a_table_is_refused_on_every_rank(pools):
    pools[2].run(lonely, run=Run(stages=2, bounds=(0, 1, 6), **SAMPLED))
