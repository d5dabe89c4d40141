"""Several histories in a row: losses are those of rows that hold one, in one plain process."""

from dataclasses import replace

import pytest
import torch
from training import (
    FAMILIES,
    GLOBAL_MICRO_BATCHES,
    LENGTH,
    Run,
    built,
    deepspeed_config,
    global_batches,
    recommender,
    reference,
)

from recparallel.checkpointing.names import global_name
from recparallel.data.batching import PackedBatch
from recparallel.errors import ConfigError
from recparallel.models.packing import Packing
from recparallel.models.trunk import Trunk

RUN = Run(steps=4, tied=False, bounds=(0, 3, 6))


def histories_of(inputs, labels):
    """Inputs and labels of each row, without padding."""
    lengths = (inputs != 0).sum(1).tolist()
    return [(x[:n], y[:n]) for x, y, n in zip(inputs, labels, lengths) if n]


def packed(inputs, labels, *, rows=None, length=LENGTH):
    """The same histories, from the shortest, as many in a row as fit."""
    rows = rows or len(inputs)
    packed_inputs, packed_labels = torch.zeros(rows, length, dtype=torch.int64), torch.full((rows, length), -100)
    positions = torch.zeros(rows, length, dtype=torch.int64)
    row, begin, histories = 0, 0, sorted(histories_of(inputs, labels), key=lambda history: len(history[0]))
    for x, y in histories:
        if begin + len(x) > length:
            row, begin = row + 1, 0
        end = begin + len(x)
        packed_inputs[row, begin:end], packed_labels[row, begin:end] = x, y
        positions[row, begin:end] = torch.arange(len(x))
        begin = end
    return PackedBatch(packed_inputs, packed_labels, positions, sequences=len(histories))


def train_packed(run):
    """Losses, and the most histories that a row held."""
    import torch.distributed as dist

    import recparallel

    replicas = dist.get_world_size() // (run.stages * run.tensor)
    config = deepspeed_config(run, replicas)
    config["recparallel"]["lengths"] = "packed"
    cut = run.bounds and recparallel.Partition(bounds=run.bounds, method="by hand", recompute=(2,))
    engine, *_ = recparallel.initialize(
        model=recommender(run), config=config, sample=packed(*global_batches(1)[0][0]), partition=cut
    )
    share = GLOBAL_MICRO_BATCHES // replicas
    losses, most = [], 0
    for micro_batches in global_batches(run.steps):
        first = engine.grid.data_parallel_id * share
        own = [packed(*batch) for batch in micro_batches[first : first + share]]
        begins = [((batch.positions_BL == 0) & (batch.inputs_BL != 0)).sum(1).max() for batch in own]
        most = max(most, *map(int, begins))
        losses.append(engine.train_batch(iter(own)).item())
    return losses, most


@pytest.mark.parametrize(
    ("world_size", "changes"),
    [
        (1, {"stages": 1, "bounds": None, "attention": "eager"}),
        (2, {"family": "gpt2"}),
        (2, {"family": "opt", "schedule": "1f1b"}),
        (2, {"family": "mistral"}),
        (4, {"stages": 4, "bounds": (0, 1, 3, 4, 6), "family": "gemma2"}),
        (4, {"zero": 1, "tied": True}),
        (4, {"tensor": 2, "sequence": True}),
        (2, {"spread_head": True, "bounds": None}),
        (2, {"bounds": None, "partition": "profile"}),
    ],
    ids=lambda value: None if isinstance(value, int) else ", ".join(f"{key} {value[key]}" for key in value),
)
def test_losses_are_those_of_one_history_a_row(pools, world_size, changes):
    run = replace(RUN, **changes)
    if run.family in ("gpt2", "opt"):  # a table of positions is a layer
        run = replace(run, bounds=(0, 3, 7))
    for losses, most in pools[world_size].run(train_packed, run=run):
        assert most > 1
        assert losses == pytest.approx(reference(run), rel=1e-5)


WINDOWS = [[1 + (7 * user + 3 * i) % 40 for i in range(2 + user * 5 % LENGTH)] for user in range(30)]
STEEP = 1e4
"""A learning rate beside which the weights that a step begins with are rounding."""


def gradient_of_an_epoch(run):
    """By name, of this rank's parameters: what one SGD step over the whole epoch does."""
    import datasets
    import torch.distributed as dist

    import recparallel
    from recparallel.data.windows import WINDOW_FEATURES
    from recparallel.engines.engine_state import parameters_by_name

    replicas = dist.get_world_size() // run.stages
    config = deepspeed_config(run, replicas)
    config["recparallel"]["lengths"] = "packed"
    config |= {
        "optimizer": {"type": "SGD", "params": {"lr": STEEP}},
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 6 // replicas,
    }
    del config["gradient_clipping"]
    engine, _, loader, _ = recparallel.initialize(
        model=recommender(run),
        config=config,
        training_data=datasets.Dataset.from_dict({"items": WINDOWS}, features=WINDOW_FEATURES),
        max_length=LENGTH,
        partition=recparallel.Partition(bounds=run.bounds, method="by hand"),
    )
    assert len(loader) == 1
    before = {name: parameter.detach().clone() for name, parameter in parameters_by_name(engine).items()}
    engine.train_batch()
    return {name: (before[name] - now.detach()) / STEEP for name, now in parameters_by_name(engine).items()}


def test_the_gradient_of_an_epoch_is_that_of_one_history_after_the_other(pools):
    run = replace(RUN, clip=0.0)
    layers, modules = built(run)
    loss_fn = recommender(run).loss_fn
    loss_fn.targets_per_micro_batch = float(sum(len(window) - 1 for window in WINDOWS))
    for window in WINDOWS:
        x = torch.tensor([window[:-1]])
        for layer, module in zip(layers, modules):
            x = layer.run(module, x)
        loss_fn(x, torch.tensor([window[1:]])).backward()
    trunk = Trunk.of(recommender(run).config)
    expected = {
        global_name(layer, name, trunk): parameter.grad
        for layer, module in zip(layers, modules)
        for name, parameter in module.named_parameters()
    }
    found = {}
    for own in pools[4].run(gradient_of_an_epoch, run=run):
        found |= own
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item(), msg=name)


def refused(run, lengths, batches):
    """What a training step says to these micro-batches."""
    import recparallel
    from recparallel.errors import ConfigError

    config = deepspeed_config(run, 1)
    config["recparallel"]["lengths"] = lengths
    plain = global_batches(1)[0]
    engine, *_ = recparallel.initialize(model=recommender(run), config=config, sample=plain[0])
    made = [packed(*batch) if number in batches else batch for number, batch in enumerate(plain)]
    said = []
    for use in (engine.train_batch, engine.eval_batch):
        try:
            use(iter(made))
        except ConfigError as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize(
    ("lengths", "batches", "said"),
    [
        (
            "fixed",
            (0, 1, 2, 3),
            "rank 0 was given 4 packed micro-batches of 4: with recparallel.lengths 'fixed or dynamic' none",
        ),
        ("packed", (1,), "rank 0 was given 1 packed micro-batches of 4: with recparallel.lengths 'packed' all"),
    ],
)
def test_micro_batches_of_another_kind_are_refused(pools, lengths, batches, said):
    run = replace(RUN, stages=1, bounds=None)
    (answers,) = pools[1].run(refused, run=run, lengths=lengths, batches=batches)
    assert answers[0].startswith(said)
    assert answers[1] == "packed micro-batches are for training; eval_batch takes rows of one history each"


@pytest.mark.parametrize("positions", [[[1, 2]], [[0, 2]], [[0, 1, 1]]])
def test_positions_that_do_not_count_are_refused(positions):
    with pytest.raises(ConfigError, match="count up from 0 in each history"):
        Packing(torch.tensor(positions))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_keeps_histories_apart(family):
    run = replace(RUN, family=family)
    layers, modules = built(run)
    inputs, positions = torch.tensor([[5, 9, 7, 30, 2, 11]]), torch.tensor([[0, 1, 0, 1, 2, 3]])
    together, apart = inputs, [inputs[:, :2], inputs[:, 2:]]
    packing = Packing(positions)
    for layer, module in zip(layers[:-1], modules):
        together = layer.run(module, together, packing)
        apart = [layer.run(module, part) for part in apart]
    torch.testing.assert_close(together, torch.cat(apart, 1), rtol=1e-5, atol=1e-6)
