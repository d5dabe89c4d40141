"""One hook in three engines: torch's DistributedDataParallel and DeepSpeed train alike."""

import pytest

STEPS = 12
CODECS = [
    {"codec": "int8", "block": 8},
    {"codec": "sign"},
    {"codec": "top_k", "ratio": 0.2},
    {"codec": "top_k", "ratio": 0.2, "momentum_correction": {"momentum": 0.5, "clip": 5.0}},
    {"codec": "random_k", "ratio": 0.3, "warm_up_steps": 3},
    {"codec": "power_sgd", "rank": 1},
    {"codec": "torch_fp16"},
    {"codec": "torch_powersgd", "rank": 1},
]


def make_model():
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4, bias=False))


def batches():
    import torch
    import torch.distributed as dist

    generator = torch.Generator().manual_seed(dist.get_rank())
    return [torch.randn(4, 8, generator=generator) for _ in range(STEPS)]


def loss_of(model, x):
    return (model(x) - x[:, :4]).square().mean()


def in_ddp(*, compression, bucket_mb):
    """Losses and final weights. ``bucket_mb`` so small that every parameter has a bucket of its own, or so large that there is
    one."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    import recparallel

    module = DistributedDataParallel(make_model(), bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True)
    module._set_static_graph()
    handle = recparallel.attach(module, {"recparallel": {"compression": compression}})
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for x in batches():
        optimizer.zero_grad()
        loss = loss_of(module, x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    state = handle.state_dict()
    return losses, [p.detach().clone() for p in module.parameters()], state["hook"]


def in_deepspeed(*, compression, zero):
    import recparallel

    model = make_model()
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "steps_per_print": 10**9,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "zero_optimization": {"stage": zero, "reduce_bucket_size": 10**9},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "recparallel": {"compression": compression},
    }
    engine, *_ = recparallel.initialize(model=model, config=config, model_parameters=model.parameters())
    losses = []
    for x in batches():
        loss = loss_of(engine, x)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("compression", CODECS, ids=lambda c: "-".join(map(str, c.values())))
def test_a_hook_trains_in_ddp_and_ranks_stay_equal(pools, compression):
    ranks = pools[2].run(in_ddp, compression=compression, bucket_mb=1e-5)
    _, weights, name = ranks[0]
    assert name == compression["codec"]
    for _, others, _ in ranks[1:]:
        assert all(map(lambda a, b: a.equal(b), weights, others))
    assert sum(rank[0][-1] for rank in ranks) < sum(rank[0][0] for rank in ranks)


@pytest.mark.parametrize("zero", [0, 1])
def test_ddp_and_deepspeed_train_alike_where_buckets_do_not_matter(pools, zero):
    """With one bucket in each, in another order of parameters: a codec that is element by element gives the same."""
    for compression in ({"codec": "bf16", "aggregation": "gathered"}, {"codec": "torch_bf16"}, {"codec": "none"}):
        ddp = pools[2].run(in_ddp, compression=compression, bucket_mb=100)
        deepspeed = pools[2].run(in_deepspeed, compression=compression, zero=zero)
        for (losses, _, _), (others, _) in zip(ddp, deepspeed):
            assert others == pytest.approx(losses, rel=1e-5)


def removed():
    """A handle taken off, put on again, and one hook too many."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    import recparallel
    from recparallel.errors import ConfigError, HookError

    module = DistributedDataParallel(make_model())
    said = []

    def gradient():
        module.zero_grad()
        loss_of(module, batches()[0]).backward()
        return torch.cat([p.grad.view(-1) for p in module.parameters()])

    plain = gradient()
    handle = recparallel.attach(module, {"recparallel": {"compression": {"codec": "sign", "error_feedback": False}}})
    try:
        recparallel.attach(module, {"recparallel": {"compression": {"codec": "sign"}}})
    except HookError as error:
        said.append(str(error))
    signs = gradient()
    handle.remove()
    handle.remove()
    again = gradient()
    recparallel.attach(module, {"recparallel": {"compression": {"codec": "none"}}})
    dense = gradient()
    with_hook = DistributedDataParallel(make_model())
    with_hook.register_comm_hook(None, lambda _, bucket: None)
    for wrong in (
        lambda: recparallel.attach(with_hook, {"recparallel": {"compression": {"codec": "none"}}}),
        lambda: recparallel.attach(module, {"recparallel": {"compression": {"codec": "top_k", "ratio": 2}}}),
        lambda: recparallel.attach(
            DistributedDataParallel(make_model()), {"recparallel": {"compression": {"codec": "x"}}}
        ),
    ):
        try:
            wrong()
        except (HookError, ConfigError) as error:
            said.append(str(error))
    return plain.equal(again), plain.equal(signs), dense.allclose(plain), said


def test_a_hook_comes_off_and_one_too_many_is_refused(pools):
    for again, signs, dense, said in pools[2].run(removed):
        assert again
        assert dense
        assert not signs
        assert len(said) == 4
        assert "module.recparallel.remove()" in said[0]
        assert "communication hook already" in said[1]
        assert "module.recparallel.remove()" in said[2]
        assert "unknown codec 'x'" in said[3]


def sparse_gradients():
    """An embedding with sparse gradients."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    import recparallel

    module = DistributedDataParallel(torch.nn.Embedding(5, 2, sparse=True))
    recparallel.attach(module, {"recparallel": {"compression": {"codec": "int8"}}})
    try:
        module(torch.tensor([1, 2])).sum().backward()
    except RuntimeError as error:
        return str(error)
    return ""


def test_sparse_gradients_are_refused_by_name(pools):
    for said in pools[2].run(sparse_gradients):
        assert "the gradients of weight are sparse" in said


def failing():
    """A hook that fails on rank 1 in the second step."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    import recparallel

    calls = []

    def hook(state, bucket):
        calls.append(bucket.index())
        if dist.get_rank() == 1 and len(calls) == 2:
            raise RuntimeError("this rank's exchange failed")
        return recparallel.data_parallel.synchronous._done(bucket.buffer())

    module = DistributedDataParallel(make_model())
    recparallel.attach(module, hook=hook)
    for x in batches()[:2]:
        try:
            loss_of(module, x).backward()
        except RuntimeError as error:
            return str(error)
    return ""


def test_an_error_in_a_hook_ends_the_backward_pass(pools):
    said = pools[2].run(failing)
    assert said[0] == ""
    assert "this rank's exchange failed" in said[1]
