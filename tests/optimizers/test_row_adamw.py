"""Rows that are stepped when they have a gradient, and catch up otherwise, follow a dense AdamW."""

import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from recparallel.optimizers.idle_steps import AdamWSettings, IdleSteps
from recparallel.optimizers.row_adamw import RowAdamW

V, D = 12, 3
LITTLE = 1e-30
"""For eps: nothing beside any gradient here, and yet no division of 0 by 0 in rows that never had one."""

steps = st.lists(
    st.tuples(
        st.sets(st.integers(0, V - 1), max_size=4),  # rows with a gradient
        st.sampled_from([0.0, 1e-3, 0.02, 0.1]),  # learning rate
        st.booleans(),  # settle behind it
    ),
    min_size=1,
    max_size=40,
)


class Both:
    """The same table under both optimizers, in fp64."""

    def __init__(self, *, seed=0, betas=(0.9, 0.999), eps=LITTLE, decay=0.1, scale=1.0):
        self.random = torch.Generator().manual_seed(seed)
        self.scale, self.betas, self.eps, self.decay = scale, betas, eps, decay
        table = torch.randn(V, D, generator=self.random, dtype=torch.float64)
        self.dense = torch.nn.Parameter(table.clone())
        self.table = table.clone()
        self.theirs = torch.optim.AdamW([self.dense], betas=betas, eps=eps, weight_decay=decay)
        self.ours = RowAdamW(self.table)

    def step(self, rows, lr):
        rows = torch.tensor(sorted(rows), dtype=torch.int64)
        gradient = self.scale * torch.randn(len(rows), D, generator=self.random, dtype=torch.float64)
        self.theirs.param_groups[0]["lr"] = lr
        self.dense.grad = torch.zeros_like(self.dense).index_copy_(0, rows, gradient)
        self.theirs.step()
        self.ours.step(rows, gradient, AdamWSettings.of(self.theirs.param_groups[0]))


@settings(max_examples=examples(150))
@given(steps=steps, betas=st.sampled_from([(0.9, 0.999), (0.8, 0.9), (0.0, 0.99)]), decay=st.sampled_from([0.0, 0.1]))
def test_every_row_is_that_of_a_dense_adamw(steps, betas, decay):
    both = Both(betas=betas, decay=decay)
    for rows, lr, settle in steps:
        both.step(rows, lr)
        if settle:
            both.ours.settle()
            torch.testing.assert_close(both.table, both.dense.data, rtol=1e-10, atol=1e-12)
    rows = torch.tensor([[3, 0], [3, 5]])
    torch.testing.assert_close(both.ours.current(rows), both.dense.data[rows], rtol=1e-10, atol=1e-12)
    state, theirs = both.ours.state(), both.theirs.state[both.dense]
    torch.testing.assert_close(both.table, both.dense.data, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state.weight, both.dense.data, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state.exp_avg, theirs["exp_avg"], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(state.exp_avg_sq, theirs["exp_avg_sq"], rtol=1e-10, atol=1e-14)
    assert state.step == len(steps) == int(theirs["step"])


def test_a_row_that_waits_for_longer_than_its_steps_are_remembered(monkeypatch):
    monkeypatch.setattr(IdleSteps, "CAPACITY", 7)
    both = Both()
    both.step({4}, 0.05)
    for _ in range(40):
        both.step({1, 2}, 0.05)
    both.step({4}, 0.05)
    torch.testing.assert_close(both.ours.current(torch.arange(V)), both.dense.data, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("scale", "share"), [(1e-3, 1e-3), (1e-8, 0.1), (1e-12, 1e-3)])
@pytest.mark.parametrize("steps_before", [0, 200])
def test_what_eps_changes_is_a_share_of_what_a_row_moves_by_itself(scale, share, steps_before):
    """Gradients much larger than eps, as large, and much smaller; at the beginning, when second moments change fast, and later."""
    both = Both(eps=1e-8, decay=0.0, scale=scale)
    for _ in range(steps_before):
        both.step(range(V), 0.0)
    both.step(range(V), 0.05)
    before = both.dense.data.clone()
    for _ in range(60):
        both.step((), 0.05)
    moved, off = (both.dense.data - before).abs(), (both.ours.current(torch.arange(V)) - both.dense.data).abs()
    assert (moved > 0).all()
    assert (off <= share * moved).all()


def test_reading_changes_nothing():
    """So copies of a table, whose readers differ, stay the same to the last bit."""
    one, other = Both(seed=3), Both(seed=3)
    for step in range(30):
        one.step({step % V, 5}, 0.05)
        one.ours.current(torch.tensor([step % 7, 2]))
        other.step({step % V, 5}, 0.05)
    for optimizer in (one.ours, other.ours):
        optimizer.settle()
    assert torch.equal(one.table, other.table)


def test_a_bf16_table_is_rounded_from_an_exact_one():
    torch.manual_seed(0)
    exact = torch.randn(V, D).bfloat16().float()
    half = exact.bfloat16()
    ours, theirs = RowAdamW(half), RowAdamW(exact)
    for step in range(50):
        rows, gradient = torch.tensor([step % 5, 6]), torch.randn(2, D)
        for optimizer in (ours, theirs):
            optimizer.step(rows, gradient, AdamWSettings(lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01))
    assert torch.equal(ours.current(torch.arange(V)), theirs.current(torch.arange(V)).bfloat16())
    ours.settle(), theirs.settle()
    assert torch.equal(half, exact.bfloat16())
    assert ours.state_bytes == theirs.state_bytes + 4 * V * D


def test_it_goes_on_from_the_state_of_another():
    both = Both()
    for step in range(9):
        both.step({step}, 0.05)
    theirs = both.theirs.state[both.dense]
    both.table.zero_()
    both.ours = RowAdamW(both.table)
    moments = {key: theirs[key] for key in ("exp_avg", "exp_avg_sq")}
    both.ours.set_state(both.dense.data, **moments, step=int(theirs["step"]), second_beta=both.betas[1])
    for step in range(9):
        both.step({step, 11 - step}, 0.05)
    both.ours.settle()
    torch.testing.assert_close(both.table, both.dense.data, rtol=1e-10, atol=1e-12)


def test_without_eps_rows_that_never_had_a_gradient_stay():
    table = torch.ones(V, D)
    optimizer = RowAdamW(table)
    for _ in range(3):
        optimizer.step(torch.tensor([1]), torch.ones(1, D), AdamWSettings(0.1, (0.9, 0.999), 0.0, 0.0))
    optimizer.settle()
    assert torch.equal(table[2:], torch.ones(V - 2, D))
    assert (table[1] < 1).all()


@pytest.mark.parametrize("lr", [0.0, 1e-3])
def test_large_gradients_in_fp32_stay_numbers(lr):
    """Moments far above 4, in a row that has missed nothing, and in one that waits while the learning rate is 0."""
    table, dense = torch.ones(V, D), torch.nn.Parameter(torch.ones(V, D))
    ours, theirs = RowAdamW(table), torch.optim.AdamW([dense], lr=lr, weight_decay=0.0)
    for step in range(6):
        dense.grad = torch.zeros_like(dense)
        dense.grad[[1, 2 + step % 2]] = 1e6
        theirs.step()
        ours.step(torch.tensor([1, 2 + step % 2]), torch.full((2, D), 1e6), AdamWSettings.of(theirs.param_groups[0]))
        torch.testing.assert_close(ours.current(torch.arange(V)), dense.data)
