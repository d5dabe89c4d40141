import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.data.sampler import EMPTY_ROW, GlobalBatchSampler
from recparallel.errors import ConfigError, DataError

sizes = st.fixed_dictionaries(
    {
        "num_rows": st.integers(1, 60),
        "micro_batch": st.integers(1, 4),
        "num_micro_batches": st.integers(1, 3),
        "num_replicas": st.integers(1, 4),
        "seed": st.integers(0, 3),
        "shuffle": st.booleans(),
    }
)


def make(*, num_rows=23, micro_batch=2, num_micro_batches=2, num_replicas=1, replica=0, seed=0, shuffle=True):
    return GlobalBatchSampler(
        num_rows,
        micro_batch=micro_batch,
        num_micro_batches=num_micro_batches,
        num_replicas=num_replicas,
        replica=replica,
        seed=seed,
        shuffle=shuffle,
    )


def as_lists(steps):
    return [[micro_batch.tolist() for micro_batch in step] for step in steps]


def replicas_of(size):
    return [make(**size, replica=replica) for replica in range(size["num_replicas"])]


@settings(deadline=None)
@given(size=sizes)
def test_an_epoch_has_every_row_once_and_empty_rows_at_the_very_end(size):
    epoch = list(zip(*replicas_of(size)))
    assert len(epoch) == make(**size).steps_per_epoch
    rows = np.array([[list(step) for step in steps] for steps in epoch]).reshape(-1)
    assert sorted(rows[: size["num_rows"]]) == list(range(size["num_rows"]))
    assert (rows[size["num_rows"] :] == EMPTY_ROW).all()
    assert len(rows) - size["num_rows"] < make(**size).global_batch


@settings(deadline=None)
@given(size=sizes)
def test_one_replica_reads_what_many_read_replica_major(size):
    num_micro_batches = size["num_replicas"] * size["num_micro_batches"]
    alone = make(**{**size, "num_replicas": 1, "num_micro_batches": num_micro_batches})
    samplers = replicas_of(size)
    for _ in range(2):  # epochs
        together = [list(chain(*steps)) for steps in zip(*(as_lists(sampler) for sampler in samplers))]
        assert as_lists(alone) == together


@settings(deadline=None)
@given(size=sizes, num_done=st.integers(0, 40), data=st.data())
def test_a_resumed_run_goes_on_as_if_never_stopped_with_any_division(size, num_done, data):
    original = make(**size)
    stream = (step for _ in range(100) for step in original)
    for _ in range(num_done):
        next(stream)
    state = json.loads(json.dumps(original.state_dict()))

    parts = size["num_replicas"] * size["num_micro_batches"]
    num_replicas = data.draw(st.sampled_from([i for i in range(1, parts + 1) if parts % i == 0]))
    other_size = {**size, "num_replicas": num_replicas, "num_micro_batches": parts // num_replicas}
    resumed, uninterrupted = replicas_of(other_size), replicas_of(size)
    for sampler in resumed:
        sampler.load_state_dict(state)
    for sampler in uninterrupted:
        walked = (step for _ in range(100) for step in sampler)
        for _ in range(num_done):
            next(walked)
    for _ in range(2):  # the rest of this epoch, and the next one
        rows = [np.concatenate([np.concatenate(step) for step in steps]).tolist() for steps in zip(*resumed)]
        expected = [np.concatenate([np.concatenate(step) for step in steps]).tolist() for steps in zip(*uninterrupted)]
        assert rows == expected
        assert rows


def test_shapes_and_types():
    for step in make(micro_batch=3, num_micro_batches=2):
        assert [(rows.shape, rows.dtype) for rows in step] == [((3,), np.int64)] * 2


def test_seed_and_epoch_decide_the_order():
    sampler = make()
    first, second = as_lists(sampler), as_lists(sampler)
    assert first != second
    assert as_lists(make()) == first
    assert as_lists(make(seed=1)) != first
    sampler.set_epoch(0)
    assert as_lists(sampler) == first
    sampler.set_epoch(1)
    assert as_lists(sampler) == second


def test_without_shuffling_rows_come_in_order():
    sampler = make(num_rows=5, shuffle=False)
    assert as_lists(sampler) == as_lists(sampler) == [[[0, 1], [2, 3]], [[4, -1], [-1, -1]]]


def test_epoch_and_step_name_the_batch_that_comes_next():
    sampler = make(num_rows=8)
    positions = [(sampler.epoch, sampler.step)]
    positions += [(sampler.epoch, sampler.step) for _ in sampler]
    assert positions == [(0, 0), (0, 1), (1, 0)]


def test_setting_the_current_epoch_keeps_the_position():
    sampler = make()
    steps = as_lists(make())
    next(iter(sampler))
    sampler.set_epoch(0)
    assert as_lists(sampler) == steps[1:]
    next(iter(sampler))
    sampler.set_epoch(0)
    assert as_lists(sampler) == steps


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ({"num_rows": 24}, "num_rows"),
        ({"seed": 1}, "seed"),
        ({"micro_batch": 3}, "global_batch"),
        ({"shuffle": False}, "shuffle"),
    ],
)
def test_a_state_of_another_order_is_refused_and_both_are_named(other, name):
    theirs, mine = make(**other), make()
    with pytest.raises(DataError) as error:
        mine.load_state_dict(theirs.state_dict())
    assert f"{name}={theirs.state_dict()[name]}" in str(error.value)
    assert f"{name}={mine.state_dict()[name]}" in str(error.value)


@pytest.mark.parametrize("wrong", [{"step": 6}, {"step": -1}, {"epoch": -1}])
def test_a_position_that_cannot_be_is_refused(wrong):
    sampler = make()
    with pytest.raises(DataError, match="steps from 0 to 5"):
        sampler.load_state_dict({**sampler.state_dict(), **wrong})


def test_an_incomplete_state_is_refused():
    sampler = make()
    with pytest.raises(DataError, match="lacks seed, step"):
        sampler.load_state_dict(
            {key: value for key, value in sampler.state_dict().items() if key not in ("seed", "step")}
        )


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"num_rows": 0}, DataError),
        ({"micro_batch": 0}, ConfigError),
        ({"num_micro_batches": 0}, ConfigError),
        ({"num_replicas": 0}, ConfigError),
        ({"replica": 1}, ConfigError),
        ({"replica": -1}, ConfigError),
        ({"seed": -1}, ConfigError),
    ],
)
def test_wrong_arguments_are_named(wrong, error):
    with pytest.raises(error, match=next(iter(wrong))):
        make(**wrong)


def test_a_negative_epoch_is_refused():
    with pytest.raises(ConfigError, match="epoch"):
        make().set_epoch(-1)
