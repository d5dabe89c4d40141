"""Softmax over two rows of the table: the answers to a question."""

import torch
from torch import Tensor
from torch.nn import functional

from recparallel.errors import ConfigError
from recparallel.models.losses.base import TargetLoss


class Answers(TargetLoss):
    """Cross-entropy of the answer against both answers, in at least fp32: the rest of the vocabulary takes no part.

    Source: Bao et al., "TALLRec: An effective and efficient tuning framework to align large language model with
    recommendation", RecSys 2023, whose measure compares the same two logits.

    Args:
        num_items: tokens are rows 0 … num_items of the table.
        yes, no: the rows of the answers.

    Raises:
        ConfigError: a row does not exist, or both are the same.
    """

    def __init__(self, *, num_items: int, yes: int, no: int) -> None:
        if not (0 <= yes <= num_items and 0 <= no <= num_items) or yes == no:
            raise ConfigError(f"answers must be two rows from 0 to {num_items}, got {yes} and {no}")
        self.yes, self.no = yes, no

    def total(self, hidden_ND: Tensor, table_SD: Tensor, targets_N: Tensor) -> Tensor:
        exact = torch.promote_types(hidden_ND.dtype, torch.float32)
        scores_N2 = (hidden_ND @ table_SD[[self.no, self.yes]].T).to(exact)
        return functional.cross_entropy(scores_N2, (targets_N == self.yes).long(), reduction="sum")
