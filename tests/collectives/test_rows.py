"""Summing a table's gradient by its touched rows: exact, the same bits everywhere, and dense where that is less."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.collectives.rows import nonzero_rows

ROWS, WIDTH = 400, 4


@settings(deadline=None)
@given(
    touched=st.sets(st.integers(0, 29)),
    width=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    value=st.sampled_from([1.0, -1.0, 1e-45, float("nan"), float("inf")]),
)
def test_exactly_the_rows_that_hold_something_are_found(touched, width, dtype, value):
    table = torch.zeros(30, width, dtype=dtype)
    for row in touched:
        table[row, row % width] = value
    held = {row for row in touched if (table[row] != 0).any()}  # 1e-45 is nothing in half precision
    assert nonzero_rows(table).tolist() == sorted(held)


def summed(*, dtype, counts, steps=1, seed=0):
    """Sums of random tables, rank ``r`` touching ``counts[r]`` rows; beside them those of a dense all-reduce, in fp64."""
    import torch.distributed as dist

    from recparallel.collectives.rows import RowSum

    rank, table_sum = dist.get_rank(), RowSum(dist.group.WORLD)
    generator = torch.Generator().manual_seed(10 * seed + rank)
    found = []
    for _ in range(steps):
        table = torch.zeros(ROWS, WIDTH, dtype=dtype)
        rows = torch.randperm(ROWS, generator=generator)[: counts[rank]]
        table[rows] = torch.randn(len(rows), WIDTH, generator=generator).to(dtype)
        exact = table.double()
        dist.all_reduce(exact)
        found.append((table, exact, *table_sum.sum(table)))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("world", "counts"),
    [(2, (20, 7)), (2, (0, 9)), (2, (0, 0)), (2, (399, 400)), (4, (9, 0, 30, 1)), (4, (100, 0, 0, 0))],
)
def test_the_sum_is_exact_and_the_same_bits_on_every_rank(pools, world, counts, dtype):
    every_rank = pools[world].run(summed, dtype=dtype, counts=counts)
    tables = [found[0][0] for found in every_rank]
    assert all(torch.equal(table, tables[0]) for table in tables)
    exact = every_rank[0][0][1]
    rounding = 2 * world * torch.finfo(dtype).eps
    assert torch.allclose(tables[0].double(), exact, rtol=rounding, atol=rounding)
    if world == 2:
        assert torch.equal(tables[0], exact.to(dtype))  # one addition: rounded once


def test_two_ranks_get_the_bits_of_a_dense_sum_and_send_only_what_they_touched(pools):
    for table, exact, way, sent in [found[0] for found in pools[2].run(summed, dtype=torch.float32, counts=(20, 7))]:
        assert torch.equal(table, exact.float())
        assert (way, sent) == ("rows", 20 * (4 * WIDTH + 8))


@pytest.mark.parametrize(("most", "way"), [(400, "dense"), (267, "dense"), (266, "rows")])
def test_it_takes_the_way_that_sends_less(pools, most, way):
    """The table has 400 rows of 16 bytes; a row that travels alone has 24."""
    every_rank = pools[2].run(summed, dtype=torch.float32, counts=(most, 1))
    assert {(found[0][2], found[0][3]) for found in every_rank} == {(way, 24 * most if way == "rows" else 16 * 400)}


def looks(*, touched):
    """Steps in which the rows are looked for, of 105: rank 0 touches every row at first, and ``touched`` rows from step 1 on."""
    import torch.distributed as dist

    from recparallel.collectives import rows

    seen, original = [], rows.nonzero_rows
    rows.nonzero_rows = lambda table: (seen.append(step), original(table))[1]
    try:
        table_sum = rows.RowSum(dist.group.WORLD)
        for step in range(105):
            table = torch.zeros(ROWS, WIDTH)
            table[: ROWS if step == 0 else touched] = 1.0
            table_sum.sum(table)
            assert float(table[0, 0]) == 2.0
    finally:
        rows.nonzero_rows = original
    return seen


def test_it_looks_again_after_a_hundred_dense_sums(pools):
    assert pools[2].run(looks, touched=3) == [[0, 101, 102, 103, 104]] * 2


def summed_by_rows(*, counts, dtype):
    """Rows and their sums, what was sent, and the sum of dense tables in fp64."""
    import torch.distributed as dist

    from recparallel.collectives.rows import sum_rows

    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(rank)
    rows = torch.randperm(ROWS, generator=generator)[: counts[rank]]
    values = torch.randn(len(rows), WIDTH, generator=generator).to(dtype)
    exact = torch.zeros(ROWS, WIDTH, dtype=torch.float64).index_copy_(0, rows, values.double())
    dist.all_reduce(exact)
    return *sum_rows(rows, values, dist.group.WORLD), exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("world", "counts"), [(2, (20, 7)), (2, (0, 0)), (4, (9, 0, 30, 400)), (3, (1, 1, 0))])
def test_rows_are_added_up_without_the_table(pools, world, counts, dtype):
    every_rank = pools[world].run(summed_by_rows, counts=counts, dtype=dtype)
    for rows, sums, sent, exact in every_rank:
        assert rows.tolist() == exact.abs().sum(1).nonzero().view(-1).tolist()
        torch.testing.assert_close(sums.double(), exact[rows], rtol=1e-6, atol=1e-6)
        assert torch.equal(rows, every_rank[0][0])
        assert torch.equal(sums, every_rank[0][1])
        assert sent == max(counts) * (WIDTH * dtype.itemsize + 8)
