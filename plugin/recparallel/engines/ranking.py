"""Rank targets with a model that is spread over a pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recparallel.data.protocols import FULL, Protocol
from recparallel.engines.scoring import Labels, Progress, number_of_each
from recparallel.evaluation.metrics import ranks_of_targets
from recparallel.models.layer import HeadOutput
from recparallel.models.layers import scores_at


def rank_targets(
    engine: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    max_length: int,
    protocol: Protocol = FULL,
    progress: Progress = lambda batches: batches,
) -> Tensor:
    """1-based rank of every user's target, under a protocol. Scores are made for one position a user.

    Args:
        engine: a pipeline engine over a recommender.
        rows: what ``Split.evaluation`` returns.
        max_length: positions per history, as in training.
        protocol: that ``rows`` were made with.

    Returns:
        int64, shape (number of rows,), in the order of ``rows``, the same on every rank.
    """
    shared = engine.module.ranks
    columns = engine.module.recommender.num_items + 1

    def ranks_of(outputs: HeadOutput, labels: Labels) -> Tensor:
        last_B, *others = labels
        among = protocol.among_listed
        return ranks_of_targets(scores_at(outputs, last_B), *others, among=among, num_columns=columns, ranks=shared)

    return number_of_each(engine, rows, ranks_of, dtype=torch.int64, max_length=max_length, progress=progress)
