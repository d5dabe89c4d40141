"""Bounded staleness: rounds by speed, weights by staleness, and the optimizer whose momentum waits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recparallel.data_parallel.bounded_staleness import BoundedStaleness
from recparallel.data_parallel.delayed_nesterov import DelayedNesterov
from recparallel.errors import ConfigError


def test_rounds_take_about_as_long_on_every_replica():
    mode = BoundedStaleness(local_steps=12)
    assert [mode.round_of([0.1, 0.2, 0.35], number, 0) for number in range(3)] == [12, 6, 3]
    assert mode.round_of([0.1, 9.0], 1, 0) == 1
    assert BoundedStaleness(local_steps=12, match_speed=False).round_of([0.1, 0.2], 1, 0) == 12


def test_rounds_can_be_told_for_each_replica():
    mode = BoundedStaleness(local_steps=[12, 5])
    assert [mode.round_of([0.1, 0.1], number, 0) for number in range(2)] == [12, 5]
    mode.check_replicas(2, come_and_go=False)
    with pytest.raises(ConfigError, match=r"\[12, 5\] has 2 numbers for 3 replicas"):
        mode.check_replicas(3, come_and_go=False)
    with pytest.raises(ConfigError, match="the numbers of replicas that come and go change"):
        mode.check_replicas(2, come_and_go=True)
    for wrong in ([], [0, 1], [1.5, 2]):
        with pytest.raises(ConfigError, match="local_steps must be a whole number of at least 1"):
            BoundedStaleness(local_steps=wrong)


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 8)), min_size=1, max_size=6),
    st.floats(0, 2),
)
def test_shares_are_those_of_the_targets_less_for_what_is_stale(replicas, discount):
    targets, staleness = zip(*replicas)
    shares = BoundedStaleness(discount=discount).shares(targets, staleness)
    assert sum(shares) == pytest.approx(1)
    total = sum(count * (1 + late) ** -discount for count, late in replicas)
    if total:
        assert shares == pytest.approx([count * (1 + late) ** -discount / total for count, late in replicas])


def test_with_a_period_of_one_it_is_torchs_nesterov():
    gradients = torch.randn(6, 5)
    found, expected = torch.zeros(5, requires_grad=True), torch.zeros(5, requires_grad=True)
    ours = DelayedNesterov([found], lr=0.7, momentum=0.9, period=1)
    torchs = torch.optim.SGD([expected], lr=0.7, momentum=0.9, nesterov=True)
    for gradient in gradients:
        found.grad, expected.grad = gradient.clone(), gradient.clone()
        ours.step()
        torchs.step()
        torch.testing.assert_close(found, expected)


def test_momentum_moves_once_a_period():
    gradients = torch.randn(6, 5)
    weight = torch.zeros(5, requires_grad=True)
    optimizer = DelayedNesterov([weight], lr=0.5, momentum=0.8, period=3)
    expected, momentum = torch.zeros(5), torch.zeros(5)
    for step, gradient in enumerate(gradients, 1):
        weight.grad = gradient.clone()
        optimizer.step()
        expected -= 0.5 * gradient / 3
        if step % 3 == 0:
            momentum = 0.8 * momentum + gradients[step - 3 : step].mean(0)
            expected -= 0.5 * 0.8 * momentum
        torch.testing.assert_close(weight.detach(), expected)
