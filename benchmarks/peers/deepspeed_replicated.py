"""Stock DeepSpeed data parallelism: ZeRO stage 0 or 1, dense or with sparse gradients of the table."""

from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from benchmarks.batches import micro_batches, num_targets
from benchmarks.peers.deepspeed_config import config_of, forget_groups, join
from benchmarks.peers.sparse import TableAndRest
from benchmarks.peers.trainer import Job, StepResult
from benchmarks.peers.whole import WholeModel
from recparallel.models.recommender import Recommender


class Replicated:
    """``engine(batch)``, ``engine.backward``, ``engine.step``."""

    def __init__(self, job: Job, recommender: Recommender, *, zero: int, sparse: bool, table: str = "adam") -> None:
        join()
        self._job = job
        self._loss = recommender.loss_fn
        model = WholeModel(recommender, sparse=sparse)
        optimizer = TableAndRest.of(model, model.table, table) if sparse else None
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            model_parameters=None if sparse else list(model.parameters()),
            config=config_of(job, num_replicas=dist.get_world_size(), zero=zero, own_optimizer=sparse),
        )

    def step(self, number: int) -> StepResult:
        """Train this rank's share of a global batch."""
        spec, replicas = self._job.spec, dist.get_world_size()
        micro = micro_batches(
            spec,
            number,
            micro_batch=self._job.setting.micro_batch,
            replica=dist.get_rank(),
            num_replicas=replicas,
        )
        self._loss.targets_per_micro_batch = num_targets(spec, number) / (len(micro) * replicas)
        total = torch.zeros(())
        for inputs_BL, labels_BL in micro:
            loss = self._engine(inputs_BL, labels_BL)
            self._engine.backward(loss)
            self._engine.step()
            total += loss.detach().float() / len(micro)
        return StepResult(total)

    def close(self) -> None:
        """Drop hooks and groups."""
        self._engine.destroy()
        del self._engine
        forget_groups()


def build(job: Job, recommender: Recommender, **options: Any) -> Replicated:
    """Data parallelism as ``options`` say."""
    return Replicated(job, recommender, **{"zero": 0, "sparse": False, **options})
