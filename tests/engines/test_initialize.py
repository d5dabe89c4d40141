"""`recparallel.initialize` and `attach` as a user's script calls them."""

import pytest
from training import LENGTH, NUM_ITEMS, Run, deepspeed_config, recommender


def _windows():
    import datasets

    rows = [[(start + 3 * i) % NUM_ITEMS + 1 for i in range(2 + start % LENGTH)] for start in range(37)]
    return datasets.Dataset.from_dict({"items": rows})


def script(run, *, explicit):
    """The README's five lines; or the same with a loop over the loader."""
    import torch.distributed as dist

    import recparallel

    config = deepspeed_config(run, dist.get_world_size() // run.stages)
    engine, optimizer, loader, _ = recparallel.initialize(
        model=recommender(run), config=config, training_data=_windows(), max_length=LENGTH
    )
    assert optimizer is engine.optimizer
    losses = []
    if explicit:
        while len(losses) < run.steps:
            losses += [engine.train_batch(iter(micro_batches)).item() for micro_batches in loader]
    else:
        losses = [engine.train_batch().item() for _ in range(run.steps)]
    return losses[: run.steps], len(loader), loader.sampler.epoch


@pytest.mark.parametrize(("world_size", "stages"), [(1, 1), (2, 2), (2, 1), (4, 2), (4, 4)])
def test_five_lines_train(pools, world_size, stages):
    run = Run(stages=stages, partition="profile", steps=12)  # 5 steps an epoch: two epochs and a bit
    five_lines = pools[world_size].run(script, run=run, explicit=False)
    loop = pools[world_size].run(script, run=run, explicit=True)
    for mine, theirs in zip(five_lines, loop):
        assert mine[0] == pytest.approx(theirs[0], rel=1e-6)  # both cut by time, maybe at different layers
    losses, steps_per_epoch, epoch = five_lines[0]
    assert (steps_per_epoch, epoch) == (5, 2)
    assert losses[-1] < losses[0]
    one_process = pools[1].run(script, run=Run(stages=1, steps=12), explicit=True)[0][0]
    assert losses == pytest.approx(one_process, rel=1e-5)  # fp32, sums in another order


def refusal(run, *, section=None, **options):
    import recparallel
    from recparallel.errors import RecParallelError

    config = deepspeed_config(run, 1)
    config["recparallel"].update(section or {})
    try:
        recparallel.initialize(model=recommender(run), config=config, **options)
    except RecParallelError as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


@pytest.mark.parametrize(
    ("section", "options", "said"),
    [
        ({"compression": {"codec": "top_k", "ratoi": 0.1}}, {}, ["ConfigError", "ratoi", "['ratio']"]),
        ({"compression": {"codec": "top_k", "ratio": 2}}, {}, ["ConfigError", "(0, 1]", "2"]),
        ({"compression": {"codec": "torch_powersgd", "rnk": 2}}, {}, ["ConfigError", "rnk", "'rank', 'start_iter'"]),
        ({"compression": {"codec": "torch_powersgd", "rank": 0}}, {}, ["ConfigError", "rank", "at least 1", "0"]),
        ({"compression": {"codec": "none", "ratio": 2}}, {}, ["ConfigError", "no options"]),
        ({"compression": {"codec": "torch_fp16", "error_feedback": True}}, {}, ["ConfigError", "remove the key"]),
        ({"stages": 9}, {}, ["ConfigError", "stages is 9"]),
        ({}, {"training_data": [1]}, ["ConfigError", "without max_length"]),
    ],
)
def test_bad_input_is_refused_by_name(pools, section, options, said):
    for message in pools[1].run(refusal, run=Run(stages=1), section=section, **options):
        for words in said:
            assert words in message


def hook_and_config():
    from training import make_engine

    import recparallel
    from recparallel.errors import ConfigError

    engine = make_engine(Run(stages=1, compression={"codec": "none"}))
    engine.recparallel.remove()
    try:
        recparallel.attach(engine, {"recparallel": {"compression": {"codec": "none"}}}, hook=print)
    except ConfigError as error:
        return str(error)
    return "accepted"


def test_two_hooks_are_one_too_many(pools):
    assert all("use one" in message for message in pools[2].run(hook_and_config))


def zero_without_contiguous_gradients():
    from training import make_engine

    import recparallel
    from recparallel.errors import HookError

    engine = make_engine(
        Run(stages=1, zero=1, deepspeed={"zero_optimization": {"stage": 1, "contiguous_gradients": False}})
    )
    engine.recparallel.remove()
    before = dict(vars(engine.optimizer))
    try:
        recparallel.attach(engine, {"recparallel": {"compression": {"codec": "none"}}})
    except HookError as error:
        return str(error), dict(vars(engine.optimizer)).keys() == before.keys()
    return "accepted", True


def test_a_refused_hook_leaves_nothing_behind(pools):
    for message, clean in pools[2].run(zero_without_contiguous_gradients):
        assert "contiguous_gradients=False" in message
        assert clean


def attached_twice():
    from training import make_engine

    import recparallel
    from recparallel.errors import HookError

    engine = make_engine(Run(stages=1))
    try:
        recparallel.attach(engine)
    except HookError as error:
        message = str(error)
    engine.recparallel.remove()
    return message, recparallel.attach(engine) is engine.recparallel


def test_a_second_attach_is_refused_until_the_first_is_off(pools):
    assert all("engine.recparallel.remove()" in message and again for message, again in pools[1].run(attached_twice))


def someone_elses_pipeline(section):
    """A PipelineModule that recparallel did not make: its stages are its own business."""
    import torch
    from deepspeed.pipe import LayerSpec, PipelineModule

    import recparallel
    from recparallel.errors import ConfigError

    layers = [LayerSpec(torch.nn.Linear, 4, 4), LayerSpec(torch.nn.Linear, 4, 4)]
    module = PipelineModule(layers, num_stages=2, loss_fn=torch.nn.MSELoss())
    config = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 4,
        "steps_per_print": 10**9,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "recparallel": section,
    }
    try:
        engine, *_ = recparallel.initialize(model=module, config=config, model_parameters=module.parameters())
    except ConfigError as error:
        return str(error)
    data = torch.linspace(-1, 1, 32).view(8, 4)
    return [engine.train_batch(iter([(data[:4], data[:4]), (data[4:], data[4:])])).item() for _ in range(20)]


def test_a_pipeline_of_ones_own_is_attached_to(pools):
    losses = pools[2].run(someone_elses_pipeline, section={})
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("section", [{"attention": "fastest"}, {"tensor": 2}, {"spread_head": True, "tensor": 2}])
def test_what_needs_layers_of_ours_is_refused_for_others(pools, section):
    said = pools[2].run(someone_elses_pipeline, section=section)
    named = ", ".join(f"recparallel.{key}" for key in ("tensor", "spread_head", "attention") if key in section)
    assert all(f"{named} apply to a Recommender, the model is a PipelineModule" in message for message in said)


def evaluation_losses(stages):
    """Three evaluations of different shapes, one with a short last micro-batch, and training in between."""
    import torch
    from training import global_batches, make_engine, train

    run = Run(stages=stages, steps=2)
    engine = make_engine(run)
    micro = global_batches(3)[2]
    short = [micro[0], (micro[1][0][:1], micro[1][1][:1])]
    wide = [tuple(torch.cat([micro[i][part] for i in (0, 1)])[:, :7] for part in (0, 1))]
    found = [
        engine.eval_batch(iter(batches), num_micro_batches=len(batches)).item() for batches in (short, wide, short)
    ]
    return found, train(engine, run)


def test_evaluation_takes_any_shape_and_means_over_targets(pools):
    import torch
    from training import global_batches, recommender, reference

    from recparallel.engines.seeding import base_seed, seed_layer

    cut, trained = pools[2].run(evaluation_losses, stages=2)[0]
    assert cut[0] == cut[2]  # an evaluation leaves nothing behind for the next
    assert trained == pytest.approx(reference(Run(steps=2)), rel=1e-5)
    rec, modules, shared = recommender(Run()), [], {}
    for index, layer in enumerate(rec.layers):
        seed_layer(base_seed(1234) + index)
        module = shared.get(layer.tie) or layer.build()
        shared[layer.tie or layer.name] = module
        modules.append(module.eval())
    micro = global_batches(3)[2]
    whole = [torch.cat([micro[0][part], micro[1][part][:1]]) for part in (0, 1)]
    x = whole[0]
    for layer, module in zip(rec.layers, modules):
        x = layer.run(module, x)
    assert cut[0] == pytest.approx(rec.loss_fn(x, whole[1]).item(), rel=1e-5)
