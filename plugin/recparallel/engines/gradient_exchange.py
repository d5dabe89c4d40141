"""Run a gradient hook in a DeepSpeed engine, in place of its own all-reduce.

Two seams cover fp32 and bf16, with and without a pipeline:

* ``engine._reduce_non_expert_gradients``: ZeRO-0, and the bf16 optimizer. All gradients of a step arrive at once.
* ``optimizer.gradient_reduction_w_predivide``: ZeRO-1 and ZeRO-2. Buckets arrive one after the other, each a flat tensor; under
  ZeRO-2 from within backward, in every micro-batch.

Under fp16 a hook is given what gradients are without the loss scale, in fp32: residuals outlive a scale.

Without ZeRO, a table of which a step has touched few rows is exchanged by these rows, exactly, before the buckets; each stage with
a copy of it does so.

Otherwise a tied table is exchanged once, by the first stage that holds it, and its average handed to the others: a lossy codec
run on both stages would make the copies drift apart.
"""

import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import split_half_float_double_sparse
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from recparallel import events
from recparallel.collectives.rows import RowSum
from recparallel.data_parallel.hook import BoundHook
from recparallel.engines.bindings import Bindings
from recparallel.engines.bucket_exchange import NO_BUCKET, exchange_bucket
from recparallel.errors import HookError
from recparallel.models.layers import ItemEmbedding


def bind_gradient_hook(
    engine: Any, hook: BoundHook, bindings: Bindings, *, by_layer: bool = False, bucket_size: int | None = None
) -> None:
    """Let ``hook`` average the gradients of ``engine`` until the bindings are removed.

    Args:
        by_layer: no bucket holds more than one layer of a pipeline, so that what a codec leaves out does not depend on the cut.
        bucket_size: elements beyond which a bucket closes, without ZeRO; None is DeepSpeed's.

    Raises:
        HookError: the engine reduces gradients in a way that a hook cannot take over.
    """
    names = {id(p): name for name, p in engine.module.named_parameters()}
    ties = _ties(engine)
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer):
        zero = _ZeroExchange(engine.optimizer, hook, names, ties, by_layer=by_layer)
        zero.bind(bindings)
        step_done = zero.step_done
    else:
        step_done = hook.step_done
        _DenseExchange(engine, hook, names, ties, by_layer=by_layer, bucket_size=bucket_size).bind(bindings)
    _tell_steps(engine, step_done, bindings)


def _tell_steps(engine: Any, step_done: Callable[..., None], bindings: Bindings) -> None:
    """Tell of every step, and whether an overflow on any rank of the model had it skipped."""
    original = engine._take_model_step

    def take_model_step(*args: Any, **kwargs: Any) -> None:
        skipped = engine.skipped_steps
        original(*args, **kwargs)
        step_done(made=engine.skipped_steps == skipped)

    bindings.bind(engine, "_take_model_step", take_model_step)


class _Tie:
    """One weight that several stages hold: the group of their ranks, and the rank whose gradient counts."""

    def __init__(self, weight: Tensor, group: dist.ProcessGroup, owner: int) -> None:
        self.weight, self.group, self.owner = weight, group, owner

    def hand_over(self, gradient: Tensor) -> None:
        """Give everyone the owner's gradient."""
        dist.broadcast(gradient, src=self.owner, group=self.group)


def _ties(engine: Any) -> dict[int, _Tie]:
    """Ties that span more than one stage, by ``id`` of the weight."""
    module = engine.module
    return {
        id(weight): _Tie(weight, comm["group"], comm["ranks"][0])
        for _, comm in sorted(getattr(module, "tied_comms", {}).items())
        for attribute in comm["weight_attr"]
        if len(comm["ranks"]) > 1
        for weight in [module._recursive_getattr(comm["module"], attribute)]
        if weight.requires_grad
    }


def _exchanged_elsewhere(param: Tensor, ties: dict[int, _Tie]) -> bool:
    """The parameter is a tied copy whose gradient another stage exchanges.

    DeepSpeed marks all parameters of a tied module as copies (``ds_pipe_replicated``), also those that are not tied.
    """
    return id(param) in ties and bool(getattr(param, "ds_pipe_replicated", False))


class _DenseExchange:
    """ZeRO-0 and BF16_Optimizer: the same buckets as ``DeepSpeedEngine.allreduce_no_retain`` makes, tied copies left
    out."""

    def __init__(
        self,
        engine: Any,
        hook: BoundHook,
        names: dict[int, str],
        ties: dict[int, _Tie],
        *,
        by_layer: bool,
        bucket_size: int | None,
    ) -> None:
        self.engine, self.hook, self.names, self.ties, self.by_layer = engine, hook, names, ties, by_layer
        self.bucket_size = bucket_size
        group = data_parallel_group(engine)
        self.row_sums = {
            id(module.weight): RowSum(group)
            for module in engine.module.modules()
            if hook.leaves_rows_apart and isinstance(module, ItemEmbedding) and dist.get_world_size(group) > 1
        }

    def bind(self, bindings: Bindings) -> None:
        bindings.bind(self.engine, "_reduce_non_expert_gradients", self.reduce)

    def reduce(self, grads: list[Any], elements_per_buffer: int) -> None:
        engine = self.engine
        group = data_parallel_group(engine)
        for _, bucket in split_half_float_double_sparse(grads)[0]:
            if bucket:
                engine.sparse_allreduce_no_retain(bucket, dp_group=group, dp_world_size=dist.get_world_size(group))
        # Copies of a tied table too: exact sums of the same rows are the same on all stages, and need not be handed over.
        every = {
            p: g for p, g in _dense_gradients(engine) if id(p) not in self.row_sums or not self._went_by_rows(p, g)
        }
        gradients = {p: g for p, g in every.items() if not _exchanged_elsewhere(p, self.ties)}
        buckets = [
            bucket
            for params in _by_dtype(gradients)
            for layer in (_by_layer(params, self.names) if self.by_layer else [params])
            for bucket in _by_size(layer, self.bucket_size or elements_per_buffer)
        ]
        for index, params in enumerate(buckets):
            flat = torch.cat([gradients[p].reshape(-1) for p in params]).to(engine.communication_data_type)
            averaged = _run(self.hook, flat, params, self.names, index=index, last=index == len(buckets) - 1)
            for p, part in zip(params, averaged.split([p.numel() for p in params])):
                gradients[p].copy_(part.view_as(gradients[p]))
        left = {id(p): gradient for p, gradient in every.items()}
        for key, tie in self.ties.items():  # in an order that all stages know
            if key in left:
                tie.hand_over(left[key])

    def _went_by_rows(self, table: Tensor, gradient: Tensor) -> bool:
        """Average the rows that are not zero, if that is less than all of it, and nothing is rounded on its way."""
        if gradient.dtype != self.engine.communication_data_type:
            return False
        start = time.perf_counter()
        sent = self.row_sums[id(table)].sum_if_fewer(gradient.view(table.shape))
        if sent is None:
            return False
        gradient.mul_(1.0 / dist.get_world_size(data_parallel_group(self.engine)))
        dense = gradient.numel() * gradient.element_size()
        events.emit(events.Exchange(NO_BUCKET, "rows", dense, sent, time.perf_counter() - start))
        return True


class _ZeroExchange:
    """ZeRO-1 and 2: a bucket is a flat tensor that the optimizer filled; the average is written back into it."""

    def __init__(
        self, optimizer: Any, hook: BoundHook, names: dict[int, str], ties: dict[int, _Tie], *, by_layer: bool
    ) -> None:
        if optimizer.overlap_comm or not optimizer.contiguous_gradients:
            raise HookError(
                "a gradient hook with ZeRO-1 or 2 needs zero_optimization.overlap_comm: false and contiguous_gradients: true, got "
                f"overlap_comm={optimizer.overlap_comm}, contiguous_gradients={optimizer.contiguous_gradients}"
            )
        if len(ties) > 1:
            raise HookError(
                f"a gradient hook with ZeRO-1 supports one tied weight, this model ties {len(ties)}; use ZeRO-0"
            )
        self.optimizer, self.hook, self.names, self.ties, self.by_layer = optimizer, hook, names, ties, by_layer
        self.index = self.seen = self.expected = 0

    def bind(self, bindings: Bindings) -> None:
        """With ``reduce_scatter`` the optimizer would never call the seam: it is switched off on this optimizer while
        bound."""
        bindings.bind(self.optimizer, "reduce_scatter", False)
        if self.optimizer.partition_gradients:
            self._bind_in_backward(bindings)
        else:
            self._bind_behind_backward(bindings)
        bindings.bind(self.optimizer, "gradient_reduction_w_predivide", self.reduce)

    def _bind_behind_backward(self, bindings: Bindings) -> None:
        original = self.optimizer.reduce_gradients

        def reduce_gradients(pipeline_parallel: bool = False) -> None:
            self.index = self.seen = 0
            self.expected = sum(
                1
                for group in self.optimizer.bit16_groups
                for p in group
                if not _exchanged_elsewhere(p, self.ties) and self.optimizer.get_gradient_for_reduction(p) is not None
            )
            original(pipeline_parallel=pipeline_parallel)

        bindings.bind(self.optimizer, "reduce_gradients", reduce_gradients)

    def _bind_in_backward(self, bindings: Bindings) -> None:
        """ZeRO-2: every micro-batch is exchanged. Buckets are counted through the step: what a hook keeps is settled with it."""
        original = self.optimizer.independent_gradient_partition_epilogue
        self.expected = sum(len(group) for group in self.optimizer.bit16_groups)

        def epilogue() -> None:
            original()
            self.seen = 0

        bindings.bind(self.optimizer, "independent_gradient_partition_epilogue", epilogue)

    def step_done(self, *, made: bool) -> None:
        """The next bucket is the first of a step."""
        self.index = self.seen = 0
        self.hook.step_done(made=made)

    def reduce(self, tensor: Tensor, communication_data_type: torch.dtype) -> Tensor:
        params = self._params_of_bucket(communication_data_type)
        parts = tensor.split([p.numel() for p in params])
        part_of = {p: part for p, part in zip(params, parts) if not _exchanged_elsewhere(p, self.ties)}
        for own in _by_layer(list(part_of), self.names) if self.by_layer else [list(part_of)] if part_of else []:
            self.seen += len(own)
            flat = torch.cat([part_of[p] for p in own]).to(communication_data_type)
            last, scale = self.seen == self.expected, _loss_scale(self.optimizer)
            averaged = _run(self.hook, flat, own, self.names, index=self.index, last=last, scale=scale)
            self.index += 1
            for p, result in zip(own, averaged.split([p.numel() for p in own])):
                part_of[p].copy_(result)
        for p, part in zip(params, parts):
            if id(p) in self.ties:
                self.ties[id(p)].hand_over(part)
        return tensor

    def _params_of_bucket(self, dtype: torch.dtype) -> list[Tensor]:
        bucket = self.optimizer.ipg_buckets[dtype]
        return [self.optimizer.bit16_groups[group][index] for group, index, _ in bucket.params]


def data_parallel_group(engine: Any) -> dist.ProcessGroup:
    """The ranks over which this engine averages gradients."""
    if engine.mpu is not None:
        return engine.mpu.get_data_parallel_group()
    return engine.seq_data_parallel_group


def _loss_scale(optimizer: Any) -> float:
    """By which gradients are too large under ZeRO in fp16; 1 for others."""
    return float(optimizer.loss_scale) if optimizer.dtype == torch.float16 else 1.0


def _run(
    hook: BoundHook,
    flat: Tensor,
    params: list[Tensor],
    names: dict[int, str],
    *,
    index: int,
    last: bool,
    scale: float = 1.0,
) -> Tensor:
    gradient = flat if scale == 1.0 else flat.float().div_(scale)
    own, dense_bytes = [names[id(p)] for p in params], flat.numel() * flat.element_size()
    averaged = exchange_bucket(hook, gradient, params, own, index=index, last=last, dense_bytes=dense_bytes)
    return averaged if scale == 1.0 else averaged.mul_(scale)


def _dense_gradients(engine: Any) -> list[tuple[Tensor, Tensor]]:
    """Parameters and what is reduced for them: their own gradients, or the fp32 ones that the bf16 optimizer
    accumulates."""
    if isinstance(engine.optimizer, BF16_Optimizer):
        groups = zip(engine.optimizer.bf16_groups, engine.optimizer.fp32_groups_gradients)
        return [pair for params, gradients in groups for pair in zip(params, gradients)]
    parameters = (p for p in engine.module.parameters() if p.requires_grad and p.grad is not None)
    return [(p, p.grad) for p in parameters if p.numel() and not p.grad.is_sparse]


def _by_dtype(gradients: dict[Tensor, Tensor]) -> Iterator[list[Tensor]]:
    for dtype in dict.fromkeys(g.dtype for g in gradients.values()):
        yield [p for p, g in gradients.items() if g.dtype == dtype]


def _by_layer(params: list[Tensor], names: dict[int, str]) -> list[list[Tensor]]:
    """Neighbours of one layer of a pipeline: what a parameter is called begins with the layer's number, or with its tie."""
    return [list(own) for _, own in groupby(params, key=lambda p: names[id(p)].partition(".")[0])]


def _by_size(params: list[Tensor], elements_per_buffer: int) -> Iterator[list[Tensor]]:
    """Group as ``DeepSpeedEngine.allreduce_no_retain`` does: a group closes when it exceeds ``elements_per_buffer``."""
    group: list[Tensor] = []
    numel = 0
    for p in params:
        group.append(p)
        numel += p.numel()
        if numel > elements_per_buffer:
            yield group
            group, numel = [], 0
    if group:
        yield group
