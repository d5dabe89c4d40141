import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.data.batching import WindowLoader, collate_evaluation, collate_windows, evaluation_batches
from recparallel.data.sampler import EMPTY_ROW, GlobalBatchSampler
from recparallel.data.windows import WINDOW_FEATURES, Windows
from recparallel.errors import ConfigError, DataError


def make_dataset(windows):
    return datasets.Dataset.from_dict({"items": windows}, features=WINDOW_FEATURES)


def make_sampler(num_rows, *, micro_batch=2, num_micro_batches=2):
    return GlobalBatchSampler(
        num_rows, micro_batch=micro_batch, num_micro_batches=num_micro_batches, num_replicas=1, replica=0, seed=0
    )


def test_windows_are_padded_on_the_right():
    inputs_BL, labels_BL = collate_windows([[1, 2, 3, 4], None, [5, 6]], max_length=3)
    assert inputs_BL.tolist() == [[1, 2, 3], [0, 0, 0], [5, 0, 0]]
    assert labels_BL.tolist() == [[2, 3, 4], [-100, -100, -100], [6, -100, -100]]
    assert inputs_BL.dtype == labels_BL.dtype == torch.int64


def test_a_batch_may_be_all_empty():
    inputs_BL, labels_BL = collate_windows([None, None], max_length=2)
    assert inputs_BL.tolist() == [[0, 0], [0, 0]]
    assert labels_BL.tolist() == [[-100, -100], [-100, -100]]


@pytest.mark.parametrize("window", [[1], [1, 2, 3, 4]])
def test_a_window_of_the_wrong_length_is_named(window):
    with pytest.raises(DataError, match=f"window 1 has {len(window)} items; allowed are 2 to max_length \\+ 1 = 3"):
        collate_windows([[1, 2], window], max_length=2)


def test_max_length_must_be_positive():
    with pytest.raises(ConfigError, match="max_length"):
        collate_windows([[1, 2]], max_length=0)


@settings(deadline=None)
@given(
    windows=st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=6), min_size=1, max_size=12),
    micro_batch=st.integers(1, 3),
    max_length=st.integers(5, 7),
)
def test_the_loader_gives_the_samplers_rows_collated(windows, micro_batch, max_length):
    loader = WindowLoader(
        make_dataset(windows), make_sampler(len(windows), micro_batch=micro_batch), max_length=max_length
    )
    steps = list(loader)
    expected = list(make_sampler(len(windows), micro_batch=micro_batch))
    assert len(steps) == len(expected) == len(loader)
    for micro_batches, indices in zip(steps, expected):
        assert len(micro_batches) == len(indices) == 2
        for (inputs_BL, labels_BL), index in zip(micro_batches, indices):
            rows = [None if i == EMPTY_ROW else windows[i] for i in index]
            naive = torch.tensor([(row or [0])[:-1] + [0] * (max_length - len(row or [0]) + 1) for row in rows])
            assert torch.equal(inputs_BL, naive)
            naive = torch.tensor([(row or [0])[1:] + [-100] * (max_length - len(row or [0]) + 1) for row in rows])
            assert torch.equal(labels_BL, naive)


@settings(deadline=None)
@given(
    windows=st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=12), min_size=1, max_size=12),
    micro_batch=st.integers(1, 3),
    multiple=st.integers(1, 5),
)
def test_a_dynamic_batch_is_as_long_as_its_longest_window(windows, micro_batch, multiple):
    def loader(**options):
        sampler = make_sampler(len(windows), micro_batch=micro_batch)
        return WindowLoader(make_dataset(windows), sampler, max_length=11, **options)

    for fixed, dynamic in zip(loader(), loader(dynamic=True, multiple=multiple), strict=True):
        for (inputs_BL, labels_BL), (short_BL, short_labels_BL) in zip(fixed, dynamic, strict=True):
            longest = int((labels_BL != -100).sum(1).max())
            positions = short_BL.shape[1]
            assert positions == min(11, max(multiple, -(-longest // multiple) * multiple))
            assert torch.equal(short_BL, inputs_BL[:, :positions])
            assert torch.equal(short_labels_BL, labels_BL[:, :positions])


def test_the_loader_goes_on_where_its_sampler_is():
    dataset = make_dataset([[i, i + 1] for i in range(1, 10)])
    loader = WindowLoader(dataset, make_sampler(9), max_length=1)
    everything = [[x.tolist() for x, _ in step] for step in loader]
    resumed = make_sampler(9)
    resumed.load_state_dict({**resumed.state_dict(), "step": 2})
    assert [[x.tolist() for x, _ in step] for step in WindowLoader(dataset, resumed, max_length=1)] == everything[2:]


def test_the_loader_reads_a_selection_of_a_dataset():
    dataset = make_dataset([[1, 2], [3, 4, 5], [6, 7]]).select([2, 1])
    (((inputs_BL, _),),) = WindowLoader(dataset, make_sampler(2, num_micro_batches=1), max_length=2)
    assert sorted(inputs_BL.tolist()) == [[3, 4], [6, 0]]


def test_changing_a_batch_does_not_change_the_next_epoch():
    loader = WindowLoader(make_dataset([[1, 2]]), make_sampler(1, micro_batch=1, num_micro_batches=1), max_length=1)
    for ((inputs_BL, labels_BL),) in loader:
        inputs_BL.fill_(7)
        labels_BL.fill_(7)
    (((inputs_BL, labels_BL),),) = loader
    assert (inputs_BL.item(), labels_BL.item()) == (1, 2)


def test_the_loader_refuses_what_does_not_fit():
    dataset = make_dataset([[1, 2, 3, 4], [1, 2]])
    with pytest.raises(DataError, match="made for 3 rows, but the dataset has 2"):
        WindowLoader(dataset, make_sampler(3), max_length=3)
    with pytest.raises(DataError, match="window 0 has 4 items"):
        WindowLoader(dataset, make_sampler(2), max_length=2)


ROWS = [
    {"user": 0, "history": [1, 2, 3], "target": 4, "listed": [9, 1, 2, 3]},
    {"user": 1, "history": [5], "target": 6, "listed": [5]},
]


def test_evaluation_rows_are_padded_to_the_batch():
    batch = collate_evaluation(ROWS, max_length=4, batch_size=3)
    assert batch.inputs_BL.tolist() == [[1, 2, 3, 0], [5, 0, 0, 0], [0, 0, 0, 0]]
    assert batch.last_B.tolist() == [2, 0, 0]
    assert batch.target_B.tolist() == [4, 6, 0]
    assert list(zip(batch.listed_rows.tolist(), batch.listed_cols.tolist())) == [(0, 9), (0, 1), (0, 2), (0, 3), (1, 5)]
    assert batch.valid_B.tolist() == [True, True, False]
    for tensor in (batch.inputs_BL, batch.last_B, batch.target_B, batch.listed_rows, batch.listed_cols):
        assert tensor.dtype == torch.int64


def test_a_long_evaluation_history_keeps_its_end():
    batch = collate_evaluation(ROWS, max_length=2, batch_size=2)
    assert batch.inputs_BL.tolist() == [[2, 3], [5, 0]]
    assert batch.last_B.tolist() == [1, 0]


def test_evaluation_refuses_what_it_cannot_hold():
    with pytest.raises(DataError, match="2 rows do not fit into a batch of batch_size=1"):
        collate_evaluation(ROWS, max_length=2, batch_size=1)
    with pytest.raises(DataError, match="user 7 has no history"):
        collate_evaluation([{"user": 7, "history": [], "target": 1, "listed": []}], max_length=2, batch_size=1)


def test_evaluation_batches_are_all_rows_in_order():
    dataset = datasets.Dataset.from_list(
        [{"user": i, "history": [i + 1], "target": i + 2, "listed": [i + 1]} for i in range(5)]
    )
    batches = list(evaluation_batches(dataset, max_length=3, batch_size=2))
    assert [batch.inputs_BL.shape for batch in batches] == [(2, 3)] * 3
    assert torch.cat([batch.target_B[batch.valid_B] for batch in batches]).tolist() == [2, 3, 4, 5, 6]
    assert batches[2].valid_B.tolist() == [True, False]


def test_windows_of_histories_and_of_a_dataset_are_the_same_batches():
    sequences = [np.arange(1, 30), np.arange(40, 43), np.arange(50, 51), np.arange(60, 75)]
    windows = Windows.cut(sequences, np.array([29, 2, 1, 0]), max_length=4)
    copied = make_dataset([window["items"] for window in windows])
    sides = [WindowLoader(rows, make_sampler(len(windows)), max_length=4) for rows in (windows, copied)]
    for ours, theirs in zip(*sides, strict=True):
        for (inputs_BL, labels_BL), (other_BL, other_labels_BL) in zip(ours, theirs, strict=True):
            assert torch.equal(inputs_BL, other_BL)
            assert torch.equal(labels_BL, other_labels_BL)
