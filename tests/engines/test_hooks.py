"""A gradient hook in a DeepSpeed engine: what it may change, what it must not, and that it comes off again."""

import pytest
from training import Run, make_engine, reference, train, train_on_engine

LAYOUTS = [pytest.param(2, 1, id="data 2"), pytest.param(4, 2, id="pipeline 2 × data 2")]
ENGINES = [(0, "fp32"), (1, "fp32"), (0, "bf16"), (1, "bf16"), (1, "bf16_fp32_accumulation")]


def _run(**options):
    return Run(**{"steps": 6, **options})


@pytest.mark.parametrize(("zero", "dtype"), ENGINES)
@pytest.mark.parametrize(
    ("world_size", "stages", "tied"), [(2, 1, True), pytest.param(4, 2, True, marks=pytest.mark.slow), (4, 2, False)]
)
def test_lossless_hook_changes_no_bit(pools, world_size, stages, zero, dtype, tied):
    run = _run(stages=stages, zero=zero, dtype=dtype, tied=tied)
    without = pools[world_size].run(train_on_engine, run=run)
    with_hook = pools[world_size].run(train_on_engine, run=_run(**{**vars(run), "compression": {"codec": "none"}}))
    assert with_hook == without


def compressed_training(run):
    """Losses, how many exchanges were seen, and the share of the dense bytes that was sent."""
    from recparallel import events

    seen = []
    engine = make_engine(run)
    with events.subscribe(lambda event: seen.append(event) if isinstance(event, events.Exchange) else None):
        losses = train(engine, run)
    wire, dense = sum(e.wire_bytes for e in seen), sum(e.dense_bytes for e in seen)
    return losses, {e.codec for e in seen}, wire / dense, tied_copies_equal(engine)


def tied_copies_equal(engine):
    """Both stages hold the same bits of a tied table."""
    import torch
    import torch.distributed as dist

    for comm in engine.module.tied_comms.values():
        weight = engine.module._recursive_getattr(comm["module"], comm["weight_attr"][0]).detach()
        everyone = [torch.empty_like(weight) for _ in comm["ranks"]]
        dist.all_gather(everyone, weight, group=comm["group"])
        if not all(torch.equal(other, weight) for other in everyone):
            return False
    return True


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize(("world_size", "stages"), LAYOUTS)
@pytest.mark.parametrize(
    ("compression", "most_bytes"),
    [
        ({"codec": "top_k", "ratio": 0.1}, 0.21),  # a tenth of the values, each with a position
        ({"codec": "torch_fp16"}, 0.5),
        ({"codec": "torch_powersgd", "rank": 1, "start_iter": 2}, 0.95),  # the first two steps are dense
    ],
    ids=lambda value: value["codec"] if isinstance(value, dict) else "",
)
def test_lossy_hooks_train(pools, world_size, stages, zero, compression, most_bytes):
    run = Run(stages=stages, zero=zero, compression=compression, steps=30)
    answers = pools[world_size].run(compressed_training, run=run)
    losses, codecs, share, _ = answers[0]
    assert all(answer[0] == losses for answer in answers)
    assert all(ties for *_, ties in answers)
    assert codecs == {compression["codec"]}
    assert share <= most_bytes
    dense = reference(run)
    assert losses[-1] < dense[0] - 0.5 * (dense[0] - dense[-1])  # half of what dense training gains, at least


def test_a_ratio_of_one_is_lossless_up_to_the_order_of_sums(pools):
    run = Run(stages=1, compression={"codec": "top_k", "ratio": 1.0})
    losses = pools[2].run(train_on_engine, run=run)[0]
    assert losses == pytest.approx(reference(run), rel=1e-5)  # fp32


def error_feedback_identity():
    """On a real engine: what the group received is the gradient plus the old residuals minus the new ones, on average."""
    import torch
    import torch.distributed as dist

    run = _run(stages=1, compression={"codec": "top_k", "ratio": 0.05})
    engine = make_engine(run)
    hook = engine.recparallel.hook
    checked = []
    inner = hook.hook

    def checking(state, bucket):
        before = {k: v.clone() for k, v in state.memory.state_dict().items()}
        gradient = bucket.buffer().clone()
        old = torch.cat([before.get(n, torch.zeros(s)) for n, s in zip(bucket.names, bucket.sizes())])
        future = inner(state, bucket)
        state.settle()
        new = torch.cat([state.memory.state_dict()[n] for n in bucket.names])
        sent = gradient + old - new
        dist.all_reduce(sent)
        torch.testing.assert_close(future.wait(), sent / 2, rtol=1e-6, atol=1e-8)  # one rounding of each sum
        checked.append(bucket.index())
        return future

    hook.hook = checking
    train(engine, run)
    return len(checked)


def test_sent_plus_residual_is_the_input(pools):
    assert pools[2].run(error_feedback_identity) == [6, 6]


def attach_and_remove():
    """An engine before, with, and after a hook."""
    import recparallel

    run = _run(stages=1, zero=1, steps=3)
    engine = make_engine(run)
    engine.recparallel.remove()
    parts = {"engine": engine, "optimizer": engine.optimizer, "loss": engine.module.loss_fn}
    before = {name: dict(vars(part)) for name, part in parts.items()}
    handle = recparallel.attach(engine, {"recparallel": {"compression": {"codec": "top_k", "ratio": 0.1}}})
    attached = set(vars(engine)) - set(before["engine"])
    train(engine, run)
    handle.remove()
    handle.remove()
    after = {name: dict(vars(part)) for name, part in parts.items()}
    bindings = ("train_batch", "eval_batch", "_INSTRUCTION_MAP", "recparallel", "reduce_scatter", "reduce_gradients")
    for part in (before, after):  # what training itself changes is not ours
        for name in ("engine", "optimizer"):
            part[name] = {k: v for k, v in part[name].items() if k in bindings or "reduce" in k or k.startswith("clip")}
    different = [
        (name, key)
        for name in parts
        for key in {*before[name], *after[name]}
        if before[name].get(key, "absent") is not after[name].get(key, "absent")
    ]
    return attached, different


def test_a_removed_hook_leaves_the_engine_as_it_was(pools):
    for attached, different in pools[2].run(attach_and_remove):
        assert {"train_batch", "_INSTRUCTION_MAP"} <= attached
        assert not different


def two_engines():
    """A hook on one engine, and another engine of the same class beside it."""
    import recparallel

    run = _run(stages=1)
    first, second = make_engine(run), make_engine(run)
    first.recparallel.remove()
    recparallel.attach(first, {"recparallel": {"compression": {"codec": "none"}}})
    return "_reduce_non_expert_gradients" in vars(first), "_reduce_non_expert_gradients" in vars(second)


def test_other_engines_are_not_touched(pools):
    assert pools[2].run(two_engines) == [(True, False)] * 2


def foreign_group():
    """A PowerSGD state over the whole world, on a pipeline: gradients of two stages would be summed."""
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

    import recparallel
    from recparallel.errors import HookError

    engine = make_engine(_run(stages=2))
    engine.recparallel.remove()
    state = PowerSGDState(process_group=dist.group.WORLD, matrix_approximation_rank=1)
    try:
        recparallel.attach(engine, hook=powerSGD_hook, state=state)
    except HookError as error:
        message = str(error)
    unbound = PowerSGDState(process_group=None, matrix_approximation_rank=1)
    handle = recparallel.attach(engine, hook=powerSGD_hook, state=unbound)
    bound_to = dist.get_process_group_ranks(unbound.process_group)
    handle.remove()
    return message, bound_to


def test_a_state_of_another_group_is_refused_and_an_unbound_one_bound(pools):
    for rank, (message, bound_to) in enumerate(pools[4].run(foreign_group)):
        assert "[0, 1, 2, 3]" in message
        assert bound_to == ([0, 1] if rank < 2 else [2, 3])
        assert str(bound_to) in message


def plain_engine(compression, zero=0, bf16=False):
    """A model that is no pipeline, under plain DeepSpeed with several micro-batches a step."""
    import deepspeed
    import torch

    import recparallel

    losses = []
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_print": 10**9,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        "recparallel": {} if compression is None else {"compression": compression},
    }
    engine, *_ = recparallel.initialize(model=model, config=config, model_parameters=model.parameters())
    generator = torch.Generator().manual_seed(deepspeed.comm.get_rank())
    for _ in range(80):
        x = torch.randn(4, 8, generator=generator).to(torch.bfloat16 if bf16 else torch.float32)
        loss = (engine(x) - x[:, :4]).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("zero", [0, 1])
def test_hooks_run_in_a_plain_deepspeed_engine(pools, zero, bf16):
    options = {"zero": zero, "bf16": bf16}
    plain = pools[2].run(plain_engine, compression=None, **options)
    assert pools[2].run(plain_engine, compression={"codec": "none"}, **options) == plain
    compressed = pools[2].run(plain_engine, compression={"codec": "top_k", "ratio": 0.2}, **options)
    assert compressed != plain
    assert compressed[0][-1] < 0.7 * compressed[0][0]


CODECS = ["auto", "block_top_k", "fp16", "int4"]
"""Those that test_one_hook_everywhere.py leaves out."""


@pytest.mark.parametrize("zero", [0, 2])
def test_other_codecs_train_a_pipeline_and_with_zero_2(pools, zero):
    """Short trainings, one after the other: every rank has the same losses, and they fall."""
    for codec in CODECS:
        ratio = {"ratio": 0.2} if codec.endswith("_k") else {}
        if zero:
            losses = pools[2].run(plain_engine, compression={"codec": codec, **ratio}, zero=2)[0]
        else:
            run = Run(stages=2, compression={"codec": codec, **ratio}, steps=8)
            ranks = pools[4].run(compressed_training, run=run)
            losses = ranks[0][0]
            assert all(answer[0] == losses and answer[3] for answer in ranks), codec
        assert losses[-1] < 0.95 * losses[0], codec


def half_precision(*, zero, compression):
    """A model in fp16 under a loss scale that is too high at first, so that steps are skipped: losses, how many were, and the most
    that is kept."""
    import deepspeed
    import torch

    import recparallel

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "steps_per_print": 10**9,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": True, "initial_scale_power": 28, "loss_scale_window": 10, "hysteresis": 1},
        "recparallel": {} if compression is None else {"compression": compression},
    }
    engine, *_ = recparallel.initialize(model=model, config=config, model_parameters=model.parameters())
    generator, losses, largest = torch.Generator().manual_seed(deepspeed.comm.get_rank()), [], []
    for _ in range(60):
        x = torch.randn(4, 8, generator=generator).half()
        loss = (engine(x) - x[:, :4]).float().square().mean()
        before = {} if compression is None else engine.recparallel.hook.by_parameter()
        before, skipped = {name: kept.clone() for name, kept in before.items()}, engine.skipped_steps
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        if compression is not None:
            after = engine.recparallel.hook.by_parameter()
            if engine.skipped_steps > skipped:
                assert before.keys() <= after.keys()
                assert all(torch.equal(after[name], before.get(name, torch.zeros_like(after[name]))) for name in after)
            largest.append(max(float(kept.abs().max()) for kept in after.values()))
    return losses, engine.skipped_steps, largest


@pytest.mark.parametrize("zero", [1, 2])
def test_residuals_outlive_loss_scales(pools, zero):
    """fp16: what is kept is of the size of gradients, whatever the scale, and skipped steps leave it untouched."""
    plain, skipped, _ = pools[2].run(half_precision, zero=zero, compression=None)[0]
    assert skipped > 0
    lossless = pools[2].run(half_precision, zero=zero, compression={"codec": "top_k", "ratio": 1.0})[0]
    assert lossless[1] == skipped
    assert lossless[0] == pytest.approx(plain, rel=2e-2)  # fp16 sums, rounded at other places
    losses, _, largest = pools[2].run(half_precision, zero=zero, compression={"codec": "top_k", "ratio": 0.2})[0]
    assert losses[-1] < 0.7 * losses[0]
    assert max(largest) < 10
