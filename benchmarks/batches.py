"""Global batches of a workload, made in memory by every rank, the same on each.

Shapes: G sequences of a global batch, B of a micro-batch, L positions.
"""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.workloads import Workload

_GROUP, _LEAVES, _SKEW = 100, 0.1, 4
"""Items of a group, how often a history leaves one, and the power of a uniform number that popularity follows."""

Sample = tuple[Tensor, Tensor]
"""Inputs and labels, both (B, L) int64; a label of -100 is no target, an input of 0 is padding."""


def global_batch(workload: Workload, step: int) -> Sample:
    """Inputs and labels (G, L) of a step; the same for the same step everywhere."""
    generator = torch.Generator().manual_seed(1_000 + step)
    if workload.data_file() is not None:
        return _real(workload, generator)
    shape = (workload.global_batch, workload.length + 1)
    if workload.grouped:
        items = _grouped(workload.num_items, shape, generator)
    else:
        items = torch.randint(1, workload.num_items + 1, shape, generator=generator)
    return items[:, :-1].contiguous(), items[:, 1:].contiguous()


def micro_batches(
    workload: Workload, step: int, *, micro_batch: int, replica: int = 0, num_replicas: int = 1
) -> list[Sample]:
    """The micro-batches of one replica at a step. Replicas hold neighbouring sequences of the global batch.

    Args:
        workload: whose.
        step: from 0.
        micro_batch: sequences of a micro-batch.
        replica, num_replicas: which share.

    Raises:
        ValueError: the global batch cannot be divided so.
    """
    if workload.global_batch % (micro_batch * num_replicas):
        raise ValueError(
            f"a global batch of {workload.global_batch} is no multiple of {num_replicas} replicas x {micro_batch}"
        )
    inputs_GL, labels_GL = global_batch(workload, step)
    share = workload.global_batch // num_replicas
    own = slice(replica * share, (replica + 1) * share)
    inputs = torch.split(inputs_GL[own], micro_batch)
    labels = torch.split(labels_GL[own], micro_batch)
    return list(zip(inputs, labels, strict=True))


def num_targets(workload: Workload, step: int) -> int:
    """Positions with a target in the whole global batch."""
    return int((global_batch(workload, step)[1] != -100).sum())


def _grouped(num_items: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Items (G, L): a history stays in a group of neighbours and leaves it once in ten steps; of groups, and of the items of one,
    few are popular."""
    rows, length = shape
    groups = max(1, num_items // _GROUP)
    leaves_GL = torch.rand(shape, generator=generator) < _LEAVES
    leaves_GL[:, 0] = True
    visit_GL = leaves_GL.cumsum(1) - 1
    visited_GL = (groups * torch.rand(rows, length, generator=generator) ** _SKEW).long()
    group_GL = visited_GL.gather(1, visit_GL)
    within_GL = (_GROUP * torch.rand(shape, generator=generator) ** _SKEW).long()
    return (group_GL * _GROUP + within_GL).clamp_(max=num_items - 1) + 1


def _real(workload: Workload, generator: torch.Generator) -> Sample:
    path = workload.data_file()
    assert path is not None
    histories = _histories(path, workload.length + 1)
    chosen = torch.randint(len(histories), (workload.global_batch,), generator=generator).tolist()
    inputs_GL = torch.zeros(workload.global_batch, workload.length, dtype=torch.int64)
    labels_GL = torch.full_like(inputs_GL, -100)
    for row, number in enumerate(chosen):
        history = histories[number]
        inputs_GL[row, : len(history) - 1] = history[:-1]
        labels_GL[row, : len(history) - 1] = history[1:]
    return inputs_GL, labels_GL


@lru_cache(maxsize=2)
def _histories(path: Path, longest: int) -> list[Tensor]:
    """The last ``longest`` items of each user, numbered from 1 in the order of their ids."""
    lines = [[int(word) for word in line.split()[1:]] for line in path.read_text().splitlines()]
    number = {item: index + 1 for index, item in enumerate(sorted({item for line in lines for item in line}))}
    return [torch.tensor([number[item] for item in line[-longest:]]) for line in lines if len(line) > 1]
