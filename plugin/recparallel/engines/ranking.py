"""Rank targets with a model that is spread over a pipeline."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import datasets
import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.data.batching import EvaluationBatch, collate_evaluation, evaluation_batches
from recparallel.engines.bindings import Bindings
from recparallel.engines.spread_head import gathered_rows
from recparallel.evaluation.metrics import ranks_of_targets
from recparallel.models.layer import HeadOutput
from recparallel.models.layers import scores_at

Progress = Callable[[Iterable[Any]], Iterable[Any]]


def rank_targets(
    engine: Any, rows: datasets.Dataset, *, max_length: int, progress: Progress = lambda batches: batches
) -> Tensor:
    """1-based rank of every user's target in a full ranking, seen items filtered out.

    Users are dealt out to the replicas, in batches of the training micro-batch's shape: the short last one is filled
    up, so no stage ever meets a new shape. Scores are made for one position a user, on the last stage.

    Args:
        engine: a pipeline engine over a recommender.
        rows: what ``Split.evaluation`` returns.
        max_length: positions per history, as in training.

    Returns:
        int64, shape (number of rows,), in the order of ``rows``, the same on every rank.
    """
    replicas, replica = engine.grid.data_parallel_size, engine.grid.data_parallel_id
    own = rows.select(range(replica, len(rows), replicas))
    # Every replica makes as many batches: eval_batch starts with a barrier of all ranks.
    rounds = math.ceil(math.ceil(len(rows) / replicas) / engine.micro_batch_size)
    ranks = torch.zeros(len(rows), dtype=torch.int64, device=engine.device)
    done, training = 0, engine.module.training
    shared = engine.module.ranks
    columns = engine.module.recommender.num_items + 1

    def ranks_of(outputs: HeadOutput, labels: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """Stands in for the loss: ranks (B,) int64 where a loss would be a scalar."""
        last_B, target_B, seen_rows, seen_cols = labels
        scores_BS = scores_at(outputs, last_B)
        return ranks_of_targets(scores_BS, target_B, seen_rows, seen_cols, num_columns=columns, ranks=shared)

    bindings = Bindings()
    bindings.bind(engine.module, "loss_fn", ranks_of)
    bindings.bind(engine.monitor, "enabled", False)  # it would log the ranks as a loss
    try:
        with gathered_rows(engine):
            for batch in progress(_exactly(rounds, own, max_length, engine.micro_batch_size)):
                labels = (batch.last_B, batch.target_B, batch.seen_rows, batch.seen_cols)
                outputs = engine.eval_batch(
                    iter([(batch.inputs_BL, labels)]), reduce_output=None, bcast_loss=False, num_micro_batches=1
                )
                count = int(batch.valid_B.sum())
                if engine.is_last_stage() and shared.rank == 0:
                    at = torch.arange(done, done + count, device=engine.device) * replicas + replica
                    ranks[at] = outputs[0][:count]
                done += count
    finally:
        bindings.remove()
        engine.module.train(training)
    dist.all_reduce(ranks)  # every user was ranked on one rank of the job; the others hold 0
    return ranks.cpu()


def _exactly(rounds: int, rows: datasets.Dataset, max_length: int, batch_size: int) -> list[EvaluationBatch]:
    batches = list(evaluation_batches(rows, max_length=max_length, batch_size=batch_size))
    filling = collate_evaluation([], max_length=max_length, batch_size=batch_size)
    return batches + [filling] * (rounds - len(batches))
