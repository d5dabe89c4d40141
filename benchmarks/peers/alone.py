"""One process, nothing exchanged: what a sequence and an update cost. The basis of the compute bound, not a peer."""

import time
from typing import Any

import torch

from benchmarks.batches import micro_batches, num_targets
from benchmarks.peers.sparse import TableAndRest
from benchmarks.peers.trainer import LEARNING_RATE, WEIGHT_DECAY, Job, StepResult
from benchmarks.peers.whole import WholeModel
from recparallel.models.recommender import Recommender


class Alone:
    """Plain torch: forward, backward, ``AdamW``."""

    def __init__(self, job: Job, recommender: Recommender, *, sparse: bool) -> None:
        self._job = job
        self._loss = recommender.loss_fn
        self._model = WholeModel(recommender, precision=job.setting.precision, sparse=sparse)
        self._optimizer: torch.optim.Optimizer = (
            TableAndRest.of(self._model, self._model.table, "adam")
            if sparse
            else torch.optim.AdamW(self._model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        )

    def step(self, number: int) -> StepResult:
        """Train one global batch on this rank alone."""
        spec, micro_batch = self._job.spec, self._job.setting.micro_batch
        micro = micro_batches(spec, number, micro_batch=micro_batch)
        self._loss.targets_per_micro_batch = num_targets(spec, number) / len(micro)
        total = torch.zeros(())
        for inputs_BL, labels_BL in micro:
            loss = self._model(inputs_BL, labels_BL) / len(micro)
            loss.backward()
            total += loss.detach()
        started = time.process_time()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return StepResult(total, optimizer_cpu_seconds=time.process_time() - started)

    def close(self) -> None:
        """Nothing beyond memory."""


def build(job: Job, recommender: Recommender, **options: Any) -> Alone:
    """One process of its own."""
    return Alone(job, recommender, **{"sparse": False, **options})
