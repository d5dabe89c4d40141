import pytest
import torch

from recparallel.errors import ConfigError
from recparallel.models.losses import IGNORE
from recparallel.models.losses.answers import Answers
from recparallel.tensor_parallel import TensorRanks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_loss_of_two_classes(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 6, 8, generator=generator).to(dtype).requires_grad_()
    table = torch.randn(20, 8, generator=generator).to(dtype).requires_grad_()
    labels = torch.full((4, 6), IGNORE)
    labels[0, 5], labels[1, 2], labels[3, 0] = 7, 9, 7
    loss = Answers(num_items=19, yes=7, no=9)
    assert loss.count(labels) == 3
    loss((hidden, table), labels).backward()

    other_hidden, other_table = (x.detach().double().requires_grad_() for x in (hidden, table))
    difference = (other_hidden @ (other_table[7] - other_table[9]))[labels != IGNORE]
    signs = torch.where(labels[labels != IGNORE] == 7, 1.0, -1.0).double()
    expected = torch.nn.functional.softplus(-signs * difference).mean()
    expected.backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    assert loss((hidden, table), labels).item() == pytest.approx(expected.item(), rel=tolerance)
    for ours, theirs in ((hidden, other_hidden), (table, other_table)):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance)
    rest = [row for row in range(20) if row not in (7, 9)]
    assert not table.grad[rest].any()


def test_a_micro_batch_without_an_answer():
    hidden, table = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = Answers(num_items=4, yes=1, no=2)((hidden, table), torch.full((2, 3), IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()


@pytest.mark.parametrize(("yes", "no"), [(1, 1), (-1, 2), (1, 5)])
def test_answers_must_be_two_rows(yes, no):
    with pytest.raises(ConfigError, match="answers must be two rows from 0 to 4"):
        Answers(num_items=4, yes=yes, no=no)


def test_tensor_ranks_are_refused():
    with pytest.raises(ConfigError, match="needs the whole table on every rank"):
        Answers(num_items=4, yes=1, no=2).for_ranks(TensorRanks(0, 2))
