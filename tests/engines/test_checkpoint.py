"""What was saved under one plan goes on under any other: losses are those of one uninterrupted process."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from training import Run, reference

SCHEDULER = {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 6, "warmup_max_lr": 5e-3}}}
HALF, ALL = 3, 6


def saved(run, folder):
    """Losses of the first half, which is then saved, and of the second half."""
    from training import make_engine, train

    from recparallel.engines.checkpoint import save_checkpoint

    engine = make_engine(run)
    first = train(engine, Run(**{**vars(run), "steps": HALF}))
    save_checkpoint(engine, Path(folder), sampler={"step": HALF})
    return first + train(engine, run, first=HALF)


def resumed(run, folder):
    """Losses of the second half, on a fresh engine."""
    from training import make_engine, train

    from recparallel.engines.checkpoint import load_checkpoint

    engine = make_engine(run)
    assert load_checkpoint(engine, Path(folder)) == {"step": HALF}
    assert engine.global_steps == HALF
    return train(engine, run, first=HALF)


def world(processes, **options):
    return processes, Run(steps=ALL, **options)


PLANS = {
    "1": world(1, stages=1),
    "DP 2": world(2, stages=1),
    "DP 2, ZeRO-1": world(2, stages=1, zero=1),
    "PP 2": world(2, stages=2),
    "PP 2 x DP 2": world(4, stages=2),
    "PP 2 x DP 2, ZeRO-1": world(4, stages=2, zero=1),
    "PP 4": world(4, stages=4, bounds=(0, 1, 2, 4, 6)),
}


SHARED = {
    "TP 2": world(2, stages=1, tensor=2),
    "TP 2, ZeRO-1": world(4, stages=1, tensor=2, zero=1),
    "TP 2 x PP 2": world(4, stages=2, tensor=2),
    "PP 4, head spread": world(4, stages=4, spread_head=True),
}
"""Attention drops by rank where ranks share it: these go on as one process does without dropout alone."""

FEW = ["1", "PP 2 x DP 2, ZeRO-1"]
GOES_ON = {
    "PP 2 x DP 2": list(PLANS),
    "PP 2 x DP 2, ZeRO-1": ["1", "PP 4"],
    "DP 2, ZeRO-1": FEW,
    "PP 4": FEW,
    "1": FEW,
}


@pytest.mark.parametrize("plan", GOES_ON)
def test_a_run_goes_on_under_other_plans(pools, tmp_path, plan):
    _goes_on(pools, tmp_path, plan, GOES_ON[plan], tied=True)


def test_untied_ends_go_on_too(pools, tmp_path):
    _goes_on(pools, tmp_path, "PP 2 x DP 2", ["1"], tied=False)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("plan", "others"),
    [
        ("PP 2 x DP 2", ["TP 2", "TP 2, ZeRO-1", "TP 2 x PP 2"]),
        pytest.param("TP 2 x PP 2", ["1", "PP 4", "TP 2"], marks=pytest.mark.slow),
        ("TP 2, ZeRO-1", ["PP 2 x DP 2, ZeRO-1"]),
    ],
)
def test_tensor_ranks_go_on_from_any_plan_and_any_plan_from_them(pools, tmp_path, plan, others, tied):
    _goes_on(pools, tmp_path, plan, others, tied=tied, dropout=0.0, family="qwen3, one key head")


@pytest.mark.parametrize(
    ("plan", "others"),
    [("PP 2 x DP 2", ["PP 4, head spread"]), ("PP 4, head spread", ["1", "TP 2", "PP 4, head spread"])],
)
def test_a_head_that_stages_share_goes_on_as_any_other(pools, tmp_path, plan, others):
    _goes_on(pools, tmp_path, plan, others, tied=False, dropout=0.0)


def _goes_on(pools, folder, plan, others, *, tied, dropout=0.2, family="llama"):
    options = {"dropout": dropout, "tied": tied, "family": family}
    expected = reference(Run(steps=ALL, **options))
    processes, run = {**PLANS, **SHARED}[plan]
    for losses in pools[processes].run(saved, run=Run(**{**vars(run), **options}), folder=str(folder)):
        assert losses == pytest.approx(expected, rel=1e-5)
    for other in others:
        processes, run = {**PLANS, **SHARED}[other]
        for losses in pools[processes].run(resumed, run=Run(**{**vars(run), **options}), folder=str(folder)):
            assert losses == pytest.approx(expected[HALF:], rel=1e-5), other


@pytest.mark.parametrize(
    ("zero", "dtype"), [(0, "fp32"), (0, "bf16"), (1, "fp32"), (1, "bf16"), (1, "bf16_fp32_accumulation")]
)
def test_under_the_same_plan_nothing_changes_by_a_bit(pools, tmp_path, zero, dtype):
    run = Run(stages=2, zero=zero, dtype=dtype, dropout=0.2, steps=ALL, deepspeed=SCHEDULER)
    whole = pools[4].run(saved, run=run, folder=str(tmp_path))
    assert pools[4].run(resumed, run=run, folder=str(tmp_path)) == [losses[HALF:] for losses in whole]


@pytest.mark.parametrize("other", ["1", "DP 2, ZeRO-1"])
def test_bf16_goes_on_from_the_same_master_weights(pools, tmp_path, other):
    run = Run(stages=2, dtype="bf16", steps=ALL)
    whole = pools[4].run(saved, run=run, folder=str(tmp_path))[0]
    processes, plan = PLANS[other]
    for losses in pools[processes].run(resumed, run=Run(**{**vars(plan), "dtype": "bf16"}), folder=str(tmp_path)):
        assert losses == pytest.approx(whole[HALF:], rel=2e-2)  # sums of bf16 gradients in another order


def test_the_rate_of_learning_goes_on_too(pools, tmp_path):
    run = Run(stages=2, steps=ALL, deepspeed=SCHEDULER)
    whole = pools[2].run(saved, run=run, folder=str(tmp_path))[0]
    under = Run(stages=1, steps=ALL, deepspeed=SCHEDULER)
    assert pools[1].run(resumed, run=under, folder=str(tmp_path))[0] == pytest.approx(whole[HALF:], rel=1e-5)


TOP_K = {"codec": "top_k", "ratio": 0.5}


def refusals(runs, folder):
    """What loading under each run says."""
    from training import make_engine

    from recparallel.engines.checkpoint import load_checkpoint
    from recparallel.errors import CheckpointError

    messages = []
    for run in runs:
        try:
            load_checkpoint(make_engine(run), Path(folder))
            messages.append("loaded")
        except CheckpointError as error:
            messages.append(str(error))
    return messages


def test_a_hook_goes_on_under_its_own_plan_alone(pools, tmp_path):
    run = Run(stages=1, compression=TOP_K, steps=ALL)
    whole = pools[2].run(saved, run=run, folder=str(tmp_path))
    assert pools[2].run(resumed, run=run, folder=str(tmp_path)) == [losses[HALF:] for losses in whole]
    others = [
        Run(stages=2, compression=TOP_K),
        Run(stages=1, zero=1, compression=TOP_K),
        Run(stages=1, compression={"codec": "none"}),
        Run(stages=1, compression=None),
    ]
    for stages, zero, codec, none in pools[2].run(refusals, runs=others, folder=str(tmp_path)):
        assert "pipeline: stored 1, now 2" in stages
        assert "zero_stage: stored 0, now 1" in zero
        assert "compression: stored 'top_k', now 'none'" in codec
        assert "compression: stored 'top_k', now 'none'" in none
        assert "where neither has a hook, any plan can go on" in none


def test_another_model_is_refused_with_what_differs(pools, tmp_path):
    pools[2].run(saved, run=Run(stages=2, steps=ALL), folder=str(tmp_path))
    others = [Run(tied=False), Run(num_items=50), Run(family="gpt2")]
    for untied, larger, family in pools[2].run(refusals, runs=others, folder=str(tmp_path)):
        assert "is of another model: lm_head.weight is not in the checkpoint" in untied
        assert "model.embed_tokens.weight: stored [41, 16], now [51, 16]" in larger
        assert "and" in family
        assert "more" in family
    for (message,) in pools[2].run(refusals, runs=[Run()], folder=str(tmp_path / "none")):
        assert "holds no checkpoint" in message


def test_a_harmed_checkpoint_is_refused_on_every_rank(pools, tmp_path):
    pools[2].run(saved, run=Run(stages=2, steps=ALL), folder=str(tmp_path / "good"))
    target = Path("step_3", "tensors")
    for name, change in (("missing", lambda path: path.unlink()), ("changed", _change_a_bit)):
        shutil.copytree(tmp_path / "good", tmp_path / name)
        shards = sorted((tmp_path / name / target).glob("*.distcp"))
        assert len(shards) == 2
        change(shards[1])
        for (message,) in pools[2].run(refusals, runs=[Run()], folder=str(tmp_path / name)):
            assert str(shards[1]) in message
            assert {"missing": "is missing", "changed": "its checksum is not"}[name] in message


def _change_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def saved_on_a_full_disk(folder, where):
    """The second save fails on rank 1; then there is room again."""
    import errno
    import os

    import torch.distributed as dist
    from training import make_engine, train

    from recparallel.checkpointing.commit import latest
    from recparallel.engines import checkpoint
    from recparallel.errors import CheckpointError

    folder = Path(folder)
    run = Run(stages=2, steps=3)
    engine = make_engine(run)
    train(engine, Run(steps=1))
    checkpoint.save_checkpoint(engine, folder, sampler={})
    train(engine, Run(steps=2), first=1)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner, name = {"tensors": (os, "fsync"), "files": (checkpoint, "describe_files")}[where]
    original = getattr(owner, name)
    if dist.get_rank() == 1:
        setattr(owner, name, full)
    try:
        checkpoint.save_checkpoint(engine, folder, sampler={})
        said = "saved"
    except CheckpointError as error:
        said = str(error)
    finally:
        setattr(owner, name, original)
    dist.barrier()  # rank 0 removes what was written
    before = latest(folder).name, sorted(path.name for path in folder.iterdir())
    dist.barrier()
    checkpoint.save_checkpoint(engine, folder, sampler={})
    return said, before, latest(folder).name


@pytest.mark.parametrize("where", ["tensors", "files"])
def test_a_full_disk_leaves_the_checkpoint_before(pools, tmp_path, where):
    for said, before, after in pools[2].run(saved_on_a_full_disk, folder=str(tmp_path), where=where):
        assert "No space left on device" in said
        assert before == ("step_1", ["latest", "step_1"])
        assert after == "step_2"


def written_beside_the_training(folder):
    """Two checkpoints, each while the next steps run; and the same step of another run."""
    from training import make_engine, train

    from recparallel.checkpointing.commit import latest
    from recparallel.engines.checkpoint import Checkpointer, save_checkpoint
    from recparallel.errors import CheckpointError

    folder = Path(folder)
    engine = make_engine(Run())
    checkpointer = Checkpointer(engine, folder)
    train(engine, Run(steps=1))
    checkpointer.save(sampler={"step": 1})
    first = train(engine, Run(steps=HALF), first=1)
    checkpointer.save(sampler={"step": HALF})
    checkpointer.save(sampler={"step": HALF})  # nothing new
    second = train(engine, Run(steps=ALL), first=HALF)
    checkpointer.close()
    fresh = make_engine(Run())
    train(fresh, Run(steps=HALF))
    try:
        save_checkpoint(fresh, folder, sampler={})
        said = "saved"
    except CheckpointError as error:
        said = str(error)
    return first + second, latest(folder).name, said


def test_a_checkpoint_is_written_while_the_training_goes_on(pools, tmp_path):
    whole = reference(Run(steps=ALL))
    for losses, name, said in pools[2].run(written_beside_the_training, folder=str(tmp_path)):
        assert losses == pytest.approx(whole[1:], rel=1e-5)
        assert name == "step_3"
        assert "step_3 is the latest checkpoint already" in said
    for losses in pools[2].run(resumed, run=Run(steps=ALL), folder=str(tmp_path)):
        assert losses == pytest.approx(whole[HALF:], rel=1e-5)  # what it was at the step, not what it became


def with_two_groups(run, folder, first):
    """An optimizer of one's own, which decays matrices alone; the losses from step ``first`` on."""
    import deepspeed
    import torch.distributed as dist
    from training import deepspeed_config, recommender, train

    import recparallel
    from recparallel.config import PartitionConfig
    from recparallel.engines.checkpoint import load_checkpoint, save_checkpoint
    from recparallel.engines.pipeline import RecommenderPipeline

    pipeline = RecommenderPipeline(
        recommender(run), num_stages=run.stages, partition=PartitionConfig(method="uniform"), schedule=run.schedule
    )
    matrices = [p for p in pipeline.parameters() if p.dim() == 2]
    vectors = [p for p in pipeline.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors}], lr=5e-3)
    config = deepspeed_config(run, dist.get_world_size() // run.stages)
    del config["optimizer"]
    engine, *_ = deepspeed.initialize(model=pipeline, optimizer=optimizer, config=config)
    recparallel.attach(engine, config)
    if first:
        load_checkpoint(engine, Path(folder))
        return train(engine, run, first=first)
    losses = train(engine, Run(**{**vars(run), "steps": HALF}))
    save_checkpoint(engine, Path(folder), sampler={})
    return losses + train(engine, run, first=HALF)


def test_every_group_of_parameters_goes_on(pools, tmp_path):
    run = Run(stages=2, zero=1, steps=ALL)
    whole = pools[4].run(with_two_groups, run=run, folder=str(tmp_path), first=0)[0]
    for other in (run, Run(stages=2, zero=0, steps=ALL)):
        for losses in pools[4].run(with_two_groups, run=other, folder=str(tmp_path), first=HALF):
            assert losses == pytest.approx(whole[HALF:], rel=1e-5)
    for (message,) in pools[4].run(refusals, runs=[run], folder=str(tmp_path)):
        assert "stored are 2 groups of parameters, the optimizer has 1" in message


def test_the_last_count_of_steps_of_a_group_counts():
    """As DeepSpeed's FusedAdam leaves it."""
    from recparallel.engines.engine_state import _Plain

    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizer = torch.optim.AdamW(parameters)
    for parameter, step in zip(parameters, (0, 0, 7)):
        optimizer.state[parameter].update(step=step, exp_avg=torch.zeros(2))
    assert [int(_Plain(optimizer).states(parameter)["step"]) for parameter in parameters] == [7, 7, 7]


def test_a_run_goes_on_in_another_precision(pools, tmp_path):
    whole = pools[2].run(saved, run=Run(steps=ALL), folder=str(tmp_path))[0]
    for losses in pools[2].run(resumed, run=Run(dtype="bf16", steps=ALL), folder=str(tmp_path)):
        assert losses == pytest.approx(whole[HALF:], rel=2e-2)


def test_the_names_are_those_of_the_language_model(pools, tmp_path):
    from recparallel.checkpointing.tensors import stored_tensors

    pools[4].run(saved, run=Run(stages=2, zero=1, steps=ALL), folder=str(tmp_path))
    stored = stored_tensors(tmp_path / "step_3" / "tensors")
    assert stored["weight/model.embed_tokens.weight"].shape == (41, 16)
    assert stored["optimizer/model.layers.2.mlp.up_proj.weight/exp_avg"].shape == (24, 16)
    assert stored["optimizer/model.norm.weight/step"].shape == ()
    assert {t.dtype for name, t in stored.items() if name.startswith("weight/")} == {torch.float32}
    assert len(stored) == 4 * (2 + 3 * 9)  # weight, two moments, steps; embedding, norm, three blocks of nine
    assert json.loads((tmp_path / "step_3" / "manifest.json").read_text())["plan"]["pipeline"] == 2
