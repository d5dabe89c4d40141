"""The popularity baseline: recommend to everybody what most users took, less what they have seen."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recparallel.data.batching import evaluation_batches
from recparallel.data.splits import Split
from recparallel.evaluation.metrics import ranks_of_targets, summarize


def popularity_scores(split: Split) -> Tensor:
    """Count every item in the training part of the split.

    Returns:
        float64, shape ``(num_items + 1,)``; entry 0, the padding, is 0.
    """
    counts = np.bincount(np.concatenate(split.train), minlength=split.histories.num_items + 1)
    return torch.from_numpy(counts).double()


def evaluate_popularity(
    split: Split,
    which: Literal["valid", "test"],
    *,
    max_length: int,
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
    for batch in evaluation_batches(split.evaluation(which, max_length), max_length=max_length, batch_size=batch_size):
        scores_BV = scores.expand(batch_size, -1)
        ranks_B = ranks_of_targets(scores_BV, batch.target_B, batch.seen_rows, batch.seen_cols)
        ranks.append(ranks_B[batch.valid_B])
    return summarize(torch.cat(ranks), ks=ks)
