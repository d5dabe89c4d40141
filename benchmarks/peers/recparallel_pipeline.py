"""Our pipeline as its users run it: ``recparallel.initialize`` with a measured cut, and what it predicted."""

import time
from typing import Any

import torch
import torch.distributed as dist

import recparallel
from benchmarks.batches import micro_batches, num_targets
from benchmarks.peers.deepspeed_config import config_of, forget_groups, join
from benchmarks.peers.stage_timer import StageTimer
from benchmarks.peers.trainer import Job, StepResult
from recparallel.models.recommender import Recommender
from recparallel.partitioning.indivisible import fastest_step, shortest_step
from recparallel.partitioning.step_costs import computing_seconds, predict_step

EXTRAS = {
    "stage_seconds": "s/step",
    "stage_wall_seconds": "s/step",
    "predicted_stage_seconds": "s/step",
    "stage_error": "",
    "predicted_step_seconds": "s",
    "fastest_step_seconds": "s",
    "shortest_step_seconds": "s",
    "start_seconds": "s",
    "stage": "",
    "layers": "",
}
"""What each rank reports: how long its stage computes in a step, on its device
(:class:`~benchmarks.peers.stage_timer.StageTimer`) and by the clock alone; what was predicted of it, and by which share that was
wrong; what was predicted of the step, the fastest that any cut can have, and a bound on that; the seconds of ``initialize`` with
its profile; and which stage the rank runs, with how many layers."""


class Ours:
    """``engine.train_batch(iterator)``.

    Args:
        job: workload and setting.
        recommender: layers and loss.
        stages: of the pipeline; 0 is one for each rank.
        method: of the cut.
        tensor: ranks that share every layer of a stage.
        sequence_parallel: they share positions too.
        spread_head: stages share the head.
        schedule: of the pipeline.
        wire: what tensors are while they cross.
        compression: what replicas exchange; None is DeepSpeed's own exchange.
        lazy_rows: the item table is updated by rows.
    """

    def __init__(
        self,
        job: Job,
        recommender: Recommender,
        *,
        stages: int,
        method: str,
        tensor: int = 1,
        sequence_parallel: bool = False,
        spread_head: bool = False,
        schedule: str = "eager_1f1b",
        wire: str = "same",
        compression: str | dict[str, Any] | None = None,
        lazy_rows: bool = False,
    ) -> None:
        join()
        self._job = job
        num_stages = stages or dist.get_world_size()
        replicas = dist.get_world_size() // (num_stages * tensor)
        config = config_of(job, num_replicas=replicas)
        # Each time measured anew: a prediction is as good as the profile of any start.
        config["recparallel"] = {
            "stages": num_stages,
            "tensor": tensor,
            "sequence_parallel": sequence_parallel,
            "spread_head": spread_head,
            "schedule": schedule,
            "wire_format": wire,
            "attention": "fastest",
            "lazy_rows": lazy_rows,
            "partition": {"method": method, "cache": False},
            **({} if compression is None else {"compression": compression}),
        }
        self._predicts = num_stages > 1 and tensor == 1 and not spread_head and method != "adaptive"
        start = time.perf_counter()
        self._engine, *_ = recparallel.initialize(
            model=recommender, config=config, sample=_sample(job, replicas=replicas)
        )
        started = time.perf_counter() - start
        # Instructions of an engine that moves layers are bound anew with every move; its events tell what they take.
        self._timer = StageTimer(self._engine) if method != "adaptive" else None
        self._told = (self._predictions() if self._predicts else self._place()) | {"start_seconds": started}

    def step(self, number: int) -> StepResult:
        """Train this replica's share of a global batch."""
        grid = self._engine.grid
        micro = micro_batches(
            self._job.spec,
            number,
            micro_batch=self._job.setting.micro_batch,
            replica=grid.data_parallel_id,
            num_replicas=grid.data_parallel_size,
        )
        assert num_targets(self._job.spec, number) > 0
        loss = self._engine.train_batch(iter(micro))
        took = {} if self._timer is None else self._timer.take()
        if not self._predicts:  # scores and exchanges inside a layer are not among the instructions that are timed
            return StepResult(loss, extra=self._told)
        error = self._told["predicted_stage_seconds"] / took["stage_seconds"] - 1
        return StepResult(loss, extra=self._told | took | {"stage_error": error})

    def close(self) -> None:
        """Drop hooks and groups."""
        self._engine.recparallel.remove()
        self._engine.destroy()
        del self._engine
        forget_groups()

    def _predictions(self) -> dict[str, float]:
        module = self._engine.module
        partition, profile = module.partition, module.profile
        stage = module.stage_id
        return self._place() | {
            "predicted_stage_seconds": computing_seconds(profile, partition)[stage],
            "predicted_step_seconds": predict_step(profile, partition),
            "fastest_step_seconds": fastest_step(profile, partition.num_stages),
            "shortest_step_seconds": shortest_step(profile, partition.num_stages),
        }

    def _place(self) -> dict[str, float]:
        module = self._engine.module
        first, end = module.partition.bounds[module.stage_id : module.stage_id + 2]
        return {"stage": float(module.stage_id), "layers": float(end - first)}


def _sample(job: Job, *, replicas: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first micro-batch."""
    inputs, labels = micro_batches(job.spec, 0, micro_batch=job.setting.micro_batch, replica=0, num_replicas=replicas)[
        0
    ]
    return inputs, labels


def build(job: Job, recommender: Recommender, **options: Any) -> Ours:
    """Our pipeline as ``options`` say."""
    return Ours(job, recommender, **{"stages": 0, "method": "simulated", **options})
