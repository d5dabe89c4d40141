import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.data.batching import PackedLoader, WindowLoader, packed_batch, sequences_of
from recparallel.data.packing import Packs, best_fit
from recparallel.data.sampler import GlobalBatchSampler
from recparallel.data.windows import WINDOW_FEATURES, Windows
from recparallel.errors import ConfigError, DataError

SIZE = 9
LENGTHS = st.lists(st.integers(1, SIZE), min_size=1, max_size=60)


def loader_of(windows, *, replica=0, num_replicas=1, micro_batch=2, num_micro_batches=2):
    dataset = datasets.Dataset.from_dict({"items": windows}, features=WINDOW_FEATURES)
    packs = Packs(Windows.of(dataset).lengths - 1, max_length=SIZE, seed=3)
    sampler = GlobalBatchSampler(
        len(packs),
        micro_batch=micro_batch,
        num_micro_batches=num_micro_batches,
        num_replicas=num_replicas,
        replica=replica,
        seed=3,
    )
    return PackedLoader(dataset, packs, sampler, max_length=SIZE)


@given(lengths=LENGTHS)
def test_rows_hold_each_window_once_and_are_not_overfull(lengths):
    lengths = np.array(lengths)
    packs = Packs(lengths, max_length=SIZE, seed=0)
    for epoch in range(2):
        rows = packs.rows(epoch)
        assert len(rows) == len(packs)
        assert sorted(n for i in range(len(rows)) for n in rows[i].tolist()) == list(range(len(lengths)))
        assert all(0 < lengths[rows[i]].sum() <= SIZE for i in range(len(rows)))
        assert [lengths[rows[i]].tolist() for i in range(len(rows))] == [
            lengths[packs.rows(0)[i]].tolist() for i in range(len(rows))
        ]


@given(lengths=LENGTHS)
def test_two_rows_would_not_fit_into_one(lengths):
    """What any best fit promises; so rows are more than half full on average, and at most twice as many as needed."""
    patterns = best_fit(np.bincount(lengths), SIZE)
    filled = sorted(sum(pattern) for pattern, rows in patterns for _ in range(rows))
    assert len(filled) < 2 or filled[0] + filled[1] > SIZE
    assert sum(filled) == sum(lengths)


def test_windows_of_a_length_change_places_from_epoch_to_epoch():
    packs = Packs(np.full(64, 3), max_length=SIZE, seed=0)
    first, second, again = (packs.rows(epoch).windows.tolist() for epoch in (0, 1, 0))
    assert first == again != second
    assert Packs(np.full(64, 3), max_length=SIZE, seed=1).rows(0).windows.tolist() != first


def test_many_windows_are_packed_tightly():
    lengths = np.random.default_rng(0).integers(1, 201, 100_000)
    assert len(Packs(lengths, max_length=200, seed=0)) < 1.005 * lengths.sum() / 200


@pytest.mark.parametrize("length", [0, SIZE + 1])
def test_a_window_that_no_row_holds_is_named(length):
    with pytest.raises(DataError, match=f"window 1 has {length} positions; allowed are 1 to {SIZE}"):
        Packs(np.array([2, length]), max_length=SIZE, seed=0)


def test_rows_have_positions():
    with pytest.raises(ConfigError, match="max_length must be at least 1, got 0"):
        Packs(np.array([1]), max_length=0, seed=0)


@pytest.mark.parametrize("last_only", [False, True])
def test_windows_stand_one_behind_the_other(last_only):
    of = [np.array(items) for items in ([1, 2, 3], [4, 5], [6, 7, 8, 9])]
    numbers = np.arange(3)
    windows = Windows(of, numbers, np.zeros(3, dtype=np.int64), np.array([3, 2, 4]), last_only=last_only)
    batch = packed_batch(windows, [np.array([2, 1]), np.array([0]), np.zeros(0, dtype=np.int64)], 5)
    assert batch.inputs_BL.tolist() == [[6, 7, 8, 4, 0], [1, 2, 0, 0, 0], [0] * 5]
    assert batch.positions_BL.tolist() == [[0, 1, 2, 0, 0], [0, 1, 0, 0, 0], [0] * 5]
    targets = (
        [[-100, -100, 9, 5, -100], [-100, 3, -100, -100, -100]]
        if last_only
        else [[7, 8, 9, 5, -100], [2, 3, *[-100] * 3]]
    )
    assert batch.labels_BL.tolist() == [*targets, [-100] * 5]
    assert sequences_of(batch) == 3
    assert sequences_of((batch.inputs_BL, batch.labels_BL)) == 3  # its rows


@settings(deadline=None)
@given(windows=st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=SIZE + 1), min_size=1, max_size=20))
def test_an_epoch_has_the_transitions_of_the_windows(windows):
    def transitions(batches):
        return sorted(
            (int(x), int(y))
            for inputs_BL, labels_BL, *_ in batches
            for x, y in zip(inputs_BL[labels_BL != -100], labels_BL[labels_BL != -100])
        )

    loader = loader_of(windows)
    packed = [batch for step in loader for batch in step]
    plain = WindowLoader(
        datasets.Dataset.from_dict({"items": windows}, features=WINDOW_FEATURES),
        GlobalBatchSampler(len(windows), micro_batch=1, num_micro_batches=1, num_replicas=1, replica=0, seed=0),
        max_length=SIZE,
    )
    assert transitions(packed) == transitions(batch for step in plain for batch in step)
    assert sum(map(sequences_of, packed)) == len(windows)
    assert len(packed) == 2 * len(loader)


def test_replicas_share_what_one_reads():
    windows = [[i + 1] * (2 + i % 5) for i in range(23)]
    whole = [batch.inputs_BL for step in loader_of(windows, num_micro_batches=4) for batch in step]
    parts = [list(loader_of(windows, replica=replica, num_replicas=2)) for replica in (0, 1)]
    shared = [batch.inputs_BL for steps in zip(*parts) for step in steps for batch in step]
    assert all(map(torch.equal, whole, shared))
    assert len(whole) == len(shared)


def test_it_goes_on_where_its_sampler_is():
    windows = [[i + 1] * (2 + i % 5) for i in range(23)]
    loader = loader_of(windows)
    epochs = [[step[0].inputs_BL.tolist() for step in loader] for _ in range(2)]
    resumed = loader_of(windows)
    resumed.sampler.load_state_dict({**resumed.sampler.state_dict(), "epoch": 1, "step": 1})
    assert [step[0].inputs_BL.tolist() for step in resumed] == epochs[1][1:]
    assert epochs[0] != epochs[1]


def test_a_sampler_of_other_rows_is_refused():
    loader = loader_of([[1, 2]])
    packs = Packs(np.array([1]), max_length=1, seed=0)
    loader.sampler.num_rows = 5
    with pytest.raises(DataError, match="the sampler was made for 5 rows, but the windows make 1"):
        PackedLoader([], packs, loader.sampler, max_length=1)
