import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from recparallel.errors import DataError
from recparallel.evaluation.auc import auc


@given(rows=st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_the_share_of_pairs_in_the_right_order(rows):
    scores, positive = (torch.tensor(column) for column in zip(*rows))
    if positive.all() or not positive.any():
        with pytest.raises(DataError, match="needs positives and negatives"):
            auc(scores.double(), positive)
        return
    pairs = [(p, n) for p, is_p in rows if is_p for n, is_n in rows if not is_n]
    naive = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)
    assert auc(scores.double(), positive) == pytest.approx(naive)
    # torchmetrics puts scores outside [0, 1] through a sigmoid, which keeps their order.
    assert auc(scores.double(), positive) == pytest.approx(
        float(binary_auroc(scores.float(), positive.int())), abs=1e-6
    )


def test_nan_is_an_error():
    with pytest.raises(DataError, match="1 scores are NaN"):
        auc(torch.tensor([0.0, float("nan")]), torch.tensor([True, False]))
