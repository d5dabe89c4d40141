"""Stock DeepSpeed AutoTP: the Hugging Face model itself over all ranks, with the vocabulary-parallel head.

Full cross-entropy takes ``LlamaForCausalLM`` with a vocabulary of items and DeepSpeed's own distributed loss. Sampled
softmax needs rows of the table and no scores of the whole catalogue, which the vocabulary-parallel head does not offer:
there the trunk is cut (``LlamaModel``) and every rank holds the whole table.
"""

from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from benchmarks.batches import micro_batches, num_targets
from benchmarks.peers.deepspeed_config import config_of, forget_groups, join
from benchmarks.peers.trainer import SEED, Job, StepResult
from recparallel.errors import ConfigError
from recparallel.models.losses import TargetLoss
from recparallel.models.recommender import Recommender


class AutoTp:
    """Tensor parallelism over all ranks.

    Args:
        job: workload and setting.
        recommender: its config and loss; the layers are Hugging Face's own.
        vocab_parallel: cut the head too.
    """

    def __init__(self, job: Job, recommender: Recommender, *, vocab_parallel: bool) -> None:
        if vocab_parallel and job.spec.loss != "cross_entropy":
            raise ConfigError(
                f"AutoTP's vocabulary-parallel head scores the whole catalogue; it has no {job.spec.loss} over a shard"
            )
        join()
        self._job = job
        self._loss = recommender.loss_fn
        self._vocab_parallel = vocab_parallel
        config = type(recommender.config).from_dict(
            {**recommender.config.to_dict(), "vocab_size": job.spec.num_items + 1}
        )
        torch.manual_seed(SEED)
        model = (AutoModelForCausalLM if vocab_parallel else AutoModel).from_config(config)
        size = dist.get_world_size()
        settings = config_of(job, num_replicas=1)
        settings["tensor_parallel"] = {"autotp_size": size, "vocab_parallel_lm_head": vocab_parallel}
        self._engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=settings)

    def step(self, number: int) -> StepResult:
        """Train the global batch; every rank sees all of it."""
        spec = self._job.spec
        micro = micro_batches(spec, number, micro_batch=self._job.setting.micro_batch)
        targets = num_targets(spec, number) / len(micro)
        self._loss.targets_per_micro_batch = targets
        total = torch.zeros(())
        for index, (inputs_BL, labels_BL) in enumerate(micro):
            # The ranks must draw the same negatives.
            torch.manual_seed(SEED * (number + 1) + index)
            loss = self._loss_of(inputs_BL, labels_BL, targets)
            self._engine.backward(loss)
            self._engine.step()
            total += loss.detach().float() / len(micro)
        return StepResult(total)

    def _loss_of(self, inputs_BL: Tensor, labels_BL: Tensor, targets: float) -> Tensor:
        if self._vocab_parallel:
            outputs = self._engine(
                input_ids=inputs_BL,
                labels=labels_BL,
                shift_labels=labels_BL,
                num_items_in_batch=targets,
                use_cache=False,
            )
            loss: Tensor = outputs.loss
            return loss
        hidden_BLD = self._engine(input_ids=inputs_BL, use_cache=False).last_hidden_state
        return _sampled(self._loss, hidden_BLD, self._engine.module.get_input_embeddings(), labels_BL)

    def close(self) -> None:
        """Drop hooks, groups and the mode."""
        self._engine.destroy()
        del self._engine
        forget_groups()


def _sampled(loss: TargetLoss, hidden_BLD: Tensor, table: nn.Module, labels_BL: Tensor) -> Tensor:
    weight = table.weight
    assert isinstance(weight, Tensor)
    return loss((hidden_BLD, weight), labels_BL)


def build(job: Job, recommender: Recommender, **options: Any) -> AutoTp:
    """AutoTP as ``options`` say."""
    return AutoTp(job, recommender, **{"vocab_parallel": True, **options})
