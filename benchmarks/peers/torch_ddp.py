"""Torch ``DistributedDataParallel``: dense, with the fp16 hook, with PowerSGD, with sparse table gradients, or with our codecs."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

import recparallel
from benchmarks.batches import micro_batches, num_targets
from benchmarks.peers.sparse import TableAndRest
from benchmarks.peers.trainer import LEARNING_RATE, WEIGHT_DECAY, Job, StepResult
from benchmarks.peers.whole import WholeModel
from recparallel.models.recommender import Recommender

_POWER_SGD_RANK = 2


class TorchDdp:
    """DDP with gradient accumulation under ``no_sync``; bf16 is autocast, as its users have it.

    Args:
        job: workload and setting.
        recommender: layers and loss.
        hook: ``""``, ``fp16``, ``powersgd``, or ``left out``: every rank keeps its own gradients.
        sparse: sparse gradients of the item table.
        table: ``adam`` or ``sgd``, for a table with sparse gradients.
        compression: what recparallel exchanges, as its config has it; None leaves it off.
    """

    def __init__(
        self,
        job: Job,
        recommender: Recommender,
        *,
        hook: str,
        sparse: bool,
        table: str = "adam",
        compression: str | dict[str, Any] | None = None,
    ) -> None:
        self._job = job
        self._loss = recommender.loss_fn
        model = WholeModel(recommender, precision=job.setting.precision, sparse=sparse)
        self._ddp = DistributedDataParallel(model)
        if hook == "fp16":
            self._ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
        elif hook == "powersgd":
            # The earliest that torch allows: two dense steps, which `settles` of the side leaves out of the measurement.
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=_POWER_SGD_RANK, start_powerSGD_iter=2)
            self._ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        elif hook == "left out":
            self._ddp.register_comm_hook(None, _left_out)
        if compression is not None:
            recparallel.attach(self._ddp, {"recparallel": {"compression": compression}})
        self._optimizer: torch.optim.Optimizer = (
            TableAndRest.of(model, model.table, table)
            if sparse
            else torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        )

    def step(self, number: int) -> StepResult:
        """Train this rank's share of a global batch."""
        spec, micro_batch = self._job.spec, self._job.setting.micro_batch
        replicas = dist.get_world_size()
        micro = micro_batches(spec, number, micro_batch=micro_batch, replica=dist.get_rank(), num_replicas=replicas)
        self._loss.targets_per_micro_batch = num_targets(spec, number) / (len(micro) * replicas)
        total = torch.zeros(())
        for index, (inputs_BL, labels_BL) in enumerate(micro):
            last = index + 1 == len(micro)
            with nullcontext() if last else self._ddp.no_sync():
                loss: Tensor = self._ddp(inputs_BL, labels_BL) / len(micro)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return StepResult(total)

    def close(self) -> None:
        """The reducer goes with the model."""
        del self._ddp, self._optimizer


def _left_out(_: object, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
    future: Future[Tensor] = Future()
    future.set_result(bucket.buffer())
    return future


def build(job: Job, recommender: Recommender, **options: Any) -> TorchDdp:
    """DDP as ``options`` say."""
    return TorchDdp(job, recommender, **{"hook": "", "sparse": False, **options})
