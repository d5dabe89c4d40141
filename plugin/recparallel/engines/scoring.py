"""Look at one position of each row with a model that is spread over a pipeline."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.data.batching import NumberedBatches
from recparallel.engines.bindings import Bindings
from recparallel.engines.replica import common_weights
from recparallel.engines.spread_head import gathered_rows
from recparallel.models.layer import HeadOutput
from recparallel.models.losses.answers import Answers

Progress = Callable[[Iterable[Any]], Iterable[Any]]
Labels = tuple[Tensor, Tensor, Tensor, Tensor]
"""``last_B``, ``target_B``, ``listed_rows``, ``listed_cols`` of an :class:`~recparallel.data.batching.EvaluationBatch`."""


def score_answers(
    engine: Any, rows: Sequence[Mapping[str, Any]], *, max_length: int, progress: Progress = lambda batches: batches
) -> Tensor:
    """How much rather yes than no: the difference of both logits behind each prompt.

    Args:
        engine: a pipeline engine over a recommender with the loss :class:`~recparallel.models.losses.answers.Answers`.
        rows: what :meth:`~recparallel.data.prompts.tokens.Encoder.rows` returns.
        max_length: positions per prompt, as in training.

    Returns:
        fp64, shape (number of rows,), in the order of ``rows``, the same on every rank.
    """
    loss: Answers = engine.module.recommender.loss_fn

    def difference(outputs: HeadOutput, labels: Labels) -> Tensor:
        hidden_BLD, table_VD = outputs
        last_B = labels[0].to(hidden_BLD.device)
        hidden_BD = hidden_BLD[torch.arange(len(last_B), device=hidden_BLD.device), last_B]
        return (hidden_BD.double() * (table_VD[loss.yes].double() - table_VD[loss.no].double())).sum(-1)

    return number_of_each(engine, rows, difference, dtype=torch.float64, max_length=max_length, progress=progress)


def number_of_each(
    engine: Any,
    rows: Sequence[Mapping[str, Any]],
    look: Callable[[HeadOutput, Labels], Tensor],
    *,
    dtype: torch.dtype,
    max_length: int,
    progress: Progress = lambda batches: batches,
) -> Tensor:
    """One number of each row, made on the last stage; collective.

    Rows are dealt out to the replicas of a world, in batches of the training micro-batch's shape: the short last one is filled up,
    so no stage ever meets a new shape. Replicas that train apart each look at all rows, with the weights that they have in common.

    Args:
        engine: a pipeline engine over a recommender.
        rows: as :func:`~recparallel.data.batching.collate_evaluation` takes them.
        look: (B,) numbers of a batch, from what the last layer gives.
        dtype: of the numbers.
        max_length: positions per row, as in training.

    Returns:
        shape (number of rows,), in the order of ``rows``, the same on every rank.
    """
    replicas, replica = engine.grid.data_parallel_size, engine.grid.data_parallel_id
    own = rows[replica::replicas]
    # Every replica makes as many batches: eval_batch starts with a barrier of all ranks.
    rounds = math.ceil(math.ceil(len(rows) / replicas) / engine.micro_batch_size)
    numbers = torch.zeros(len(rows), dtype=dtype, device=engine.device)
    done, training = 0, engine.module.training
    bindings = Bindings()
    bindings.bind(engine.module, "loss_fn", look)  # gives (B,) where a loss would give a scalar
    bindings.bind(engine.monitor, "enabled", False)  # it would log them as a loss
    try:
        with common_weights(engine), gathered_rows(engine):
            for batch in progress(
                NumberedBatches(rounds, own, max_length=max_length, batch_size=engine.micro_batch_size)
            ):
                labels = (batch.last_B, batch.target_B, batch.listed_rows, batch.listed_cols)
                outputs = engine.eval_batch(
                    iter([(batch.inputs_BL, labels)]), reduce_output=None, bcast_loss=False, num_micro_batches=1
                )
                count = int(batch.valid_B.sum())
                if engine.is_last_stage() and engine.module.ranks.rank == 0:
                    at = torch.arange(done, done + count, device=engine.device) * replicas + replica
                    numbers[at] = outputs[0][:count].to(dtype)
                done += count
    finally:
        bindings.remove()
        engine.module.train(training)
    dist.all_reduce(numbers)  # every row was looked at on one rank of the job; the others hold 0
    return numbers.cpu()
