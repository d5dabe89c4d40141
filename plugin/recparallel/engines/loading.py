"""Training data of an engine: its loader, by the config's ``lengths``."""

import math
from collections.abc import Iterator
from typing import Any

from recparallel.config import RecParallelConfig
from recparallel.data.batching import PackedLoader, WindowLoader, first_rows, packed_batch
from recparallel.data.dealt_sampler import DealtSampler
from recparallel.data.packing import Packs
from recparallel.data.sampler import GlobalBatchSampler
from recparallel.data.shared_sampler import SharedSampler
from recparallel.data.windows import Windows
from recparallel.engines.packed_rows import Sample
from recparallel.engines.places import data_parallel_place
from recparallel.engines.replica_own_pace import OwnPaceReplicas

_POSITIONS = 8
"""Dynamic lengths are multiples of it: fewer different shapes."""


def packs_of(rows: Any, *, max_length: int, seed: int) -> Packs:
    """Which windows share a row; the same on every rank."""
    return Packs(Windows.of(rows).lengths - 1, max_length=max_length, seed=seed)


def rows_per_epoch(rows: Any, section: RecParallelConfig, *, max_length: int) -> int:
    """Rows that a loader of these windows deals out."""
    return len(packs_of(rows, max_length=max_length, seed=0)) if section.lengths == "packed" else len(rows)


def first_micro_batch(rows: Any, count: int, section: RecParallelConfig, *, max_length: int) -> Sample:
    """What a loader of these windows gives, to time layers with: ``count`` rows."""
    if section.lengths != "packed":
        return first_rows(rows, count, max_length=max_length)
    packed = packs_of(rows, max_length=max_length, seed=section.seed).rows(epoch=0)
    return packed_batch(Windows.of(rows), [packed[i] for i in range(min(count, len(packed)))], max_length)


def loader_of(engine: Any, rows: Any, section: RecParallelConfig, *, max_length: int) -> WindowLoader | PackedLoader:
    """This replica's loader.

    Args:
        engine: says how many micro-batches of how many rows, and which replica this is.
        rows: windows of item ids.
    """
    packs = packs_of(rows, max_length=max_length, seed=section.seed) if section.lengths == "packed" else None
    sampler = _sampler_of(engine, len(rows if packs is None else packs), section)
    if packs is not None:
        return PackedLoader(rows, packs, sampler, max_length=max_length)
    multiple = math.lcm(_POSITIONS, section.tensor if section.sequence_parallel else 1)
    return WindowLoader(rows, sampler, max_length=max_length, dynamic=section.lengths == "dynamic", multiple=multiple)


def _sampler_of(engine: Any, num_rows: int, section: RecParallelConfig) -> GlobalBatchSampler:
    replica, count = data_parallel_place(engine)
    batches = {"micro_batch": engine.micro_batch_size, "num_micro_batches": engine.micro_batches}
    common = {**batches, "num_replicas": count, "seed": section.seed}
    replicas = engine.recparallel.replicas
    if isinstance(replicas, OwnPaceReplicas):
        replicas.dealt_from = f"{num_rows} rows by seed {section.seed}"
        return DealtSampler(
            num_rows,
            worlds=replicas.place[1],
            deal=lambda *start: engine.recparallel.replicas.deal(*start),  # a change of mode changes the replicas
            trained=lambda: engine.recparallel.progress,
            replica=engine.grid.data_parallel_id,
            **common,
        )
    if (shares := engine.recparallel.shares) is not None:
        return SharedSampler(num_rows, rows=lambda: shares.rows, replica=replica, **common)
    return GlobalBatchSampler(num_rows, replica=replica, **common)


def endless(loader: WindowLoader | PackedLoader) -> Iterator[Any]:
    """Micro-batch after micro-batch, epoch after epoch, as ``engine.train_batch()`` reads them."""
    while True:
        for micro_batches in loader:
            yield from micro_batches
