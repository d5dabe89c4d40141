"""How a side makes softmax and attention. All train the same blocks, table and head, each with the kernels that its users have.

Stock sides make the softmax as torch does and attention as transformers does unless it is told otherwise. Ours have
:class:`~recparallel.models.losses.cross_entropy.CrossEntropy` and the attention that is the fastest on the ranks.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.trainer import Job
from recparallel.engines.attention_choice import fastest
from recparallel.models.attention import layers_by_attention, with_attention
from recparallel.models.losses import TargetLoss
from recparallel.models.losses.cross_entropy import CrossEntropy
from recparallel.models.recommender import Recommender
from recparallel.models.trunk import Trunk
from recparallel.profiling.attention import time_attentions


class TorchCrossEntropy(TargetLoss):
    """:func:`torch.nn.functional.cross_entropy` against the whole table, in fp32."""

    def total(self, hidden_ND: Tensor, table_SD: Tensor, targets_N: Tensor) -> Tensor:
        return functional.cross_entropy((hidden_ND @ table_SD.T).float(), targets_N, reduction="sum")


def _stock(recommender: Recommender, job: Job) -> Recommender:
    if type(recommender.loss_fn) is not CrossEntropy:
        return recommender
    return replace(recommender, loss_fn=TorchCrossEntropy())


def _ours(recommender: Recommender, job: Job) -> Recommender:
    shape = job.setting.micro_batch, job.spec.length
    dtype = torch.bfloat16 if job.setting.precision == "bf16" else torch.float32
    width = Trunk.of(recommender.config).dim
    return with_attention(
        recommender, fastest(time_attentions(layers_by_attention(recommender), shape, width, dtype=dtype))
    )


KERNELS: Mapping[str, Callable[[Recommender, Job], Recommender]] = {
    "stock": _stock,
    "ours": _ours,
    "engine": lambda recommender, job: recommender,
}
"""From the recommender that the workload builds to the one that a side trains."""
