import numpy as np
import pyarrow
import pytest

from recparallel.data.lists import Lists


@pytest.fixture
def lists(tmp_path):
    """Four lists in three files, the second of which has two batches."""
    parts = [[[[1, 2], []]], [[[3]], [[4, 5, 6]]], [[[7]]]]
    paths = []
    for number, batches in enumerate(parts):
        paths.append(tmp_path / f"{number}.arrow")
        schema = pyarrow.schema({"items": pyarrow.list_(pyarrow.int32())})
        with pyarrow.OSFile(str(paths[-1]), "wb") as file, pyarrow.ipc.new_stream(file, schema) as stream:
            for batch in batches:
                stream.write_batch(pyarrow.record_batch({"items": batch}, schema=schema))
    return Lists(paths, "items")


EXPECTED = [[1, 2], [], [3], [4, 5, 6], [7]]


def test_a_list_is_found_in_whichever_file(lists):
    assert [items.tolist() for items in lists] == EXPECTED
    assert [lists[i].tolist() for i in range(len(lists))] == EXPECTED
    assert [lists[i - len(lists)].tolist() for i in range(len(lists))] == EXPECTED
    assert [items.tolist() for items in lists[1:4]] == EXPECTED[1:4]
    assert lists.lengths.tolist() == [2, 0, 1, 3, 1]
    for outside in (5, -6):
        with pytest.raises(IndexError, match=f"list {outside} of 5"):
            lists[outside]


def test_what_is_mapped_cannot_be_changed(lists):
    with pytest.raises(ValueError, match="read-only"):
        lists[0][0] = 9
    assert isinstance(lists[0], np.ndarray)
