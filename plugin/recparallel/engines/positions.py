"""Lengths that tensor ranks cannot divide, told on every rank before a stage waits for another."""

from typing import Any

import torch
import torch.distributed as dist

from recparallel.tensor_parallel import TensorRanks
from recparallel.tensor_parallel.ranks import check_positions


def agree_on_positions(engine: Any, batches: list[Any] | None) -> None:
    """Collective over all ranks where tensor ranks share positions; otherwise nothing.

    Args:
        engine: a pipeline engine.
        batches: micro-batches that are about to run, on the stages that have them.

    Raises:
        ConfigError: on every rank, if the length of one cannot be divided.
    """
    ranks: TensorRanks | None = getattr(engine.module, "ranks", None)
    if ranks is None or not ranks.sequence:
        return
    lengths = [inputs.shape[1] for inputs, _ in batches or ()]
    worst = torch.tensor(
        max((length for length in lengths if length % ranks.size), default=0), dtype=torch.int64, device=engine.device
    )
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    check_positions(int(worst), ranks.size)
