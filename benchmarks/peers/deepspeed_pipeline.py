"""Stock DeepSpeed pipelines: ``PipelineModule`` with DeepSpeed's own cuts, schedule and exchange, or DualPipeV.

Nothing of recparallel's engine is attached: no clipping, seeding or loss corrections.
"""

from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import DualPipeVModule, LayerSpec, PipelineModule, TiedLayerSpec

from benchmarks.batches import micro_batches, num_targets
from benchmarks.peers.deepspeed_config import config_of, forget_groups, join
from benchmarks.peers.stage_timer import StageTimer
from benchmarks.peers.trainer import SEED, Job, StepResult
from recparallel.errors import ConfigError
from recparallel.models.layer import Layer
from recparallel.models.recommender import Recommender


class Pipeline:
    """``engine.train_batch(iterator)``.

    Args:
        job: workload and setting.
        recommender: layers and loss.
        stages: of the pipeline; 0 is one for each rank. Ranks over stages is the number of replicas.
        method: DeepSpeed's ``partition_method``.
        dualpipev: two stages a rank, out and back again.
    """

    def __init__(self, job: Job, recommender: Recommender, *, stages: int, method: str, dualpipev: bool) -> None:
        join()
        self._job = job
        self._loss = recommender.loss_fn
        kind = DualPipeVModule if dualpipev else PipelineModule
        num_stages = stages or dist.get_world_size()
        if dualpipev and len(recommender.layers) < 2 * num_stages:
            # Stock does train it, but the tied table is then no longer on one rank, and crosses the link as a whole.
            raise ConfigError(
                f"{len(recommender.layers)} layers do not fill the {2 * num_stages} stages of DualPipeV on {num_stages} ranks"
            )
        module = kind(
            layers=[_spec(layer) for layer in recommender.layers],
            num_stages=num_stages,
            loss_fn=recommender.loss_fn,
            seed_layers=True,
            seed_fn=torch.manual_seed,
            base_seed=SEED,
            partition_method=method,
        )
        self._engine, *_ = deepspeed.initialize(
            model=module,
            model_parameters=list(module.parameters()),
            config=config_of(job, num_replicas=dist.get_world_size() // num_stages),
        )
        self._timer = StageTimer(self._engine)

    def step(self, number: int) -> StepResult:
        """Train this replica's share of a global batch."""
        spec, grid = self._job.spec, self._engine.grid
        replicas = grid.data_parallel_size
        micro = micro_batches(
            spec,
            number,
            micro_batch=self._job.setting.micro_batch,
            replica=grid.data_parallel_id,
            num_replicas=replicas,
        )
        self._loss.targets_per_micro_batch = num_targets(spec, number) / (len(micro) * replicas)
        loss = self._engine.train_batch(iter(micro))
        return StepResult(loss, extra=self._timer.take())

    def save(self, folder: Path) -> None:
        """A checkpoint, as DeepSpeed writes it."""
        self._engine.save_checkpoint(str(folder))

    def load(self, folder: Path) -> None:
        """Go on from it; in bf16 without the optimizer's state, which DeepSpeed 0.19 cannot load without ZeRO (``KeyError: 0``)."""
        self._engine.load_checkpoint(str(folder), load_optimizer_states=self._job.setting.precision == "fp32")

    def close(self) -> None:
        """Drop hooks and groups."""
        self._engine.destroy()
        del self._engine
        forget_groups()


def _spec(layer: Layer) -> LayerSpec:
    if layer.tie is None:
        return LayerSpec(layer.module_class, **layer.kwargs)
    return TiedLayerSpec(
        layer.tie, layer.module_class, forward_fn=layer.forward, tied_weight_attr="weight", **layer.kwargs
    )


def build(job: Job, recommender: Recommender, **options: Any) -> Pipeline:
    """A pipeline as ``options`` say."""
    return Pipeline(job, recommender, **{"stages": 0, "method": "parameters", "dualpipev": False, **options})
