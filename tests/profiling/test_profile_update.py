from itertools import count

import pytest
import torch
from torch import nn

from recparallel.profiling.update import measure_update


def test_an_update_is_timed_and_the_weights_are_left_alone():
    module = nn.Linear(3, 5)
    before = [p.clone() for p in module.parameters()]
    clock = count()  # one second goes by between two looks
    cost = measure_update(module, 3, lambda: float(next(clock)))
    assert cost.seconds == 1.0
    assert cost.state_bytes == 2 * 4 * (3 * 5 + 5)  # two moments in fp32
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))
    assert all(p.grad is None for p in module.parameters())


def test_half_precision_weights_have_fp32_ones_beside_them():
    cost = measure_update(nn.Linear(3, 5).to(torch.bfloat16), 1, lambda: 0.0)
    assert cost.state_bytes == 4 * 4 * (3 * 5 + 5)  # weights, two moments, and the gradient while it is applied


@pytest.mark.parametrize("module", [nn.Identity(), nn.Linear(2, 2).requires_grad_(False)])
def test_what_is_not_trained_costs_nothing(module):
    cost = measure_update(module, 1, lambda: 0.0)
    assert (cost.seconds, cost.state_bytes) == (0.0, 0)
