"""Gradients of look-ups that are kept by rows are those that autograd makes of the whole table."""

import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recparallel.models.layers import ItemEmbedding, score_with_table
from recparallel.models.losses.sampled_softmax import SampledSoftmax
from recparallel.models.row_gradients import KEEPER, RowGradients, look_up_rows

ITEMS, D = 40, 3


def both(dtype=torch.float64):
    """Two tables with the same rows, the second with a keeper."""
    tables = [
        nn.Parameter(torch.randn(ITEMS + 1, D, generator=torch.Generator().manual_seed(1)).to(dtype)) for _ in "ab"
    ]
    return *tables, RowGradients(tables[1])


@settings(max_examples=examples(60), deadline=None)
@given(look_ups=st.lists(st.lists(st.integers(0, ITEMS), max_size=30), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_the_sum_over_look_ups_is_autograds(look_ups, seed):
    """Rows again and again, none at all, and more than a keeper holds."""
    plain, kept, keeper = both()
    generator = torch.Generator().manual_seed(seed)
    for look_up in look_ups:
        rows = torch.tensor(look_up, dtype=torch.int64)
        weights = torch.randn(len(rows), D, generator=generator, dtype=torch.float64)
        (plain[rows] * weights).sum().backward()
        values = look_up_rows(rows, keeper)
        assert torch.equal(values, kept[rows])
        (values * weights).sum().backward()
    keeper.hand_over()
    if any(look_ups):
        torch.testing.assert_close(kept.grad, plain.grad, rtol=1e-12, atol=1e-12)
    before = None if kept.grad is None else kept.grad.clone()
    keeper.hand_over()  # everything was handed over
    assert before is None or torch.equal(kept.grad, before)


def test_a_keeper_holds_a_quarter_of_the_rows_at_most():
    _, table, keeper = both()
    look_up_rows(torch.arange(ITEMS // 4), keeper).sum().backward()
    assert table.grad is None
    look_up_rows(torch.tensor([3]), keeper).sum().backward()
    assert table.grad[3].tolist() == [2.0] * D
    assert table.grad[ITEMS].tolist() == [0.0] * D


def test_in_bf16_rows_are_summed_in_fp32():
    _, table, keeper = both(torch.bfloat16)
    for value in [1.0] + [2.0**-9] * 8:  # each alone is too small for the sum in bf16
        (look_up_rows(torch.tensor([5]), keeper) * value).sum().backward()
    keeper.hand_over()
    assert table.grad[5].tolist() == [1.0 + 2.0**-6] * D


@pytest.mark.parametrize("trained_before", [True, False])
def test_a_tied_table_gets_those_of_its_look_up_and_of_its_head(trained_before):
    """The head sees the table as a view, which knows the keeper of the table."""
    gradients = []
    for keeps in (False, True):
        torch.manual_seed(4)
        table = ItemEmbedding(num_items=ITEMS, dim=D, std=1.0)
        if trained_before:
            table.weight.grad = torch.ones_like(table.weight)
        keeper = RowGradients(table.weight)
        if keeps:
            setattr(table.weight, KEEPER, keeper)
        loss = SampledSoftmax(num_items=ITEMS, num_negatives=3)
        ids = torch.tensor([[1, 2, 2, 0]])
        loss(score_with_table(table, table(ids)), torch.tensor([[2, 2, 7, -100]])).backward()
        if keeps:
            assert trained_before or table.weight.grad is None
            keeper.hand_over()
        gradients.append(table.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
