"""The popularity baseline: recommend to everybody what most users took, less what they have seen."""

from collections.abc import Sequence
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recparallel.data.batching import evaluation_batches
from recparallel.data.protocols import FULL, Protocol
from recparallel.data.splits.base import Split
from recparallel.evaluation.metrics import ranks_of_targets, summarize

_AT_ONCE = 10_000
"""Users; numpy counts many items at once, and not all of them have to be in memory."""


def popularity_scores(split: Split) -> Tensor:
    """Count every item in the training part of the split.

    Returns:
        float64, shape ``(num_items + 1,)``; entry 0, the padding, is 0.
    """
    counts = np.zeros(split.histories.num_items + 1, dtype=np.int64)
    train = split.train
    while some := list(islice(train, _AT_ONCE)):
        counts += np.bincount(np.concatenate(some), minlength=len(counts))
    return torch.from_numpy(counts).double()


def evaluate_popularity(
    split: Split,
    which: Literal["valid", "test"],
    *,
    max_length: int,
    protocol: Protocol = FULL,
    ks: Sequence[int] = (10,),
    batch_size: int = 256,
) -> dict[str, float]:
    """Rank the targets of ``which`` by popularity, under the same protocol as a model.

    ``max_length`` changes nothing here, for popularity reads no history; it is asked for so that both are called alike.

    Returns:
        ``HR@k``, ``NDCG@k`` for every ``k`` in ``ks``, and ``MRR``.

    Raises:
        ConfigError: ``which`` is neither, or a size is less than 1.
    """
    scores = popularity_scores(split)
    ranks = []
    rows = split.evaluation(which, max_length, protocol)
    for batch in evaluation_batches(rows, max_length=max_length, batch_size=batch_size):
        scores_BV = scores.expand(batch_size, -1)
        ranks_B = ranks_of_targets(
            scores_BV, batch.target_B, batch.listed_rows, batch.listed_cols, among=protocol.among_listed
        )
        ranks.append(ranks_B[batch.valid_B])
    return summarize(torch.cat(ranks), ks=ks)
