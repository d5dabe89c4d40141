"""What recparallel adds around ``PipelineEngine.train_batch``: the mean over targets, seeds by micro-batch, phase
times."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.pipe import schedule

from recparallel import events
from recparallel.compression.wire import crossing_bytes
from recparallel.data.batching import PackedBatch, sequences_of
from recparallel.engines import eager_schedule, spread_head
from recparallel.engines.bindings import Bindings
from recparallel.engines.packed_rows import packed_step, packings_of
from recparallel.engines.places import data_parallel_place
from recparallel.engines.positions import agree_on_positions
from recparallel.models.losses import TargetLoss

PHASES = {
    schedule.OptimizerStep: "optimizer",
    schedule.ReduceGrads: "reduce",
    schedule.ReduceTiedGrads: "reduce_tied",
    schedule.LoadMicroBatch: "load",
    schedule.ForwardPass: "forward",
    schedule.BackwardPass: "backward",
    schedule.SendActivation: "send_activation",
    schedule.RecvActivation: "recv_activation",
    schedule.SendGrad: "send_grad",
    schedule.RecvGrad: "recv_grad",
    **eager_schedule.PHASES,
    **spread_head.PHASES,
}


def bind_training_step(engine: Any, bindings: Bindings, *, packed: bool = False) -> None:
    """Wrap ``train_batch`` of a pipeline engine.

    Before the schedule runs, the step's micro-batches are taken from the iterator, so that

    * the number of targets in the global batch is known and the loss is their mean (``models/losses/base.py``);
    * ``module.micro_offset`` is the number of this replica's first micro-batch in the whole job, which makes
      per-layer seeds independent of how a global batch is divided.

    Args:
        packed: rows of micro-batches hold several histories, and every stage has the micro-batches.
    """
    original: Callable[..., torch.Tensor] = engine.train_batch

    def train_batch(data_iter: Any = None) -> torch.Tensor:
        start = time.perf_counter()
        source = data_iter if data_iter is not None else engine.data_iterator
        loader = engine.training_dataloader
        given = None if source is None else [next(source) for _ in range(engine.micro_batches)]
        packings = packings_of(engine, given, expected=packed)
        batches = None if given is None else [batch[:2] for batch in given]
        agree_on_positions(engine, batches)
        if (head := getattr(engine, spread_head.HEAD, None)) is not None:
            head.expect(batches)
        if (transfers := getattr(engine, eager_schedule.TRANSFERS, None)) is not None:
            transfers.tell(batches)
        if engine.module.seed_layers:
            replica, count = data_parallel_place(engine)
            engine.module.micro_offset = (engine.global_steps * count + replica) * engine.micro_batches
        try:
            with counted_targets(engine, batches, engine.micro_batches), packed_step(engine.module, packings):
                loss = original(None if batches is None else iter(batches))
        finally:
            engine.data_iterator, engine.training_dataloader = source, loader
        if events.observed():
            seconds = time.perf_counter() - start
            events.emit(events.StepDone(engine.global_steps, loss.item(), seconds, _sequences(engine, given)))
        return loss

    bindings.bind(engine, "train_batch", train_batch)


def bind_measured_instructions(engine: Any, bindings: Bindings, *, wire: str = "same") -> None:
    """Tell what each instruction of a pipeline engine takes, in events; those that are bound later are not measured.

    Args:
        wire: name of what tensors are that cross boundaries, for the bytes that events tell.
    """
    measured = {kind: _measured(PHASES[kind], run, wire) for kind, run in engine._INSTRUCTION_MAP.items()}
    bindings.bind(engine, "_INSTRUCTION_MAP", measured)


def _sequences(engine: Any, batches: list[Any] | None) -> int:
    """Of all replicas in a step; where rows are packed, as many of each as of this one."""
    if batches is None or not isinstance(batches[0], PackedBatch):
        return int(engine.train_batch_size())
    shares = engine.recparallel.shares
    return round(sum(map(sequences_of, batches)) * (shares.own_in_all if shares else engine.grid.data_parallel_size))


@contextmanager
def counted_targets(engine: Any, batches: list[Any] | None, num_micro_batches: int) -> Iterator[None]:
    """Tell the loss, for the block, how many targets a micro-batch has on average over all replicas.

    Only last stages hold labels that count, or all where they share the head, and only a :class:`TargetLoss` wants to know.
    """
    loss_fn = engine.module.loss_fn
    counts = engine.is_last_stage() or hasattr(engine, spread_head.HEAD)
    if not isinstance(loss_fn, TargetLoss) or not counts or batches is None:
        yield
        return
    count = torch.tensor(float(sum(loss_fn.count(labels) for _, labels in batches)), dtype=torch.float64)
    if engine.is_data_parallel:
        count = count.to(engine.device)
        dist.all_reduce(count, group=engine.mpu.get_data_parallel_group())
    bindings = Bindings()
    per_micro_batch = count.item() / (num_micro_batches * engine.grid.data_parallel_size)
    bindings.bind(loss_fn, "targets_per_micro_batch", per_micro_batch)
    try:
        yield
    finally:
        bindings.remove()


def _measured(name: str, run: Callable[..., None], wire: str) -> Callable[..., None]:
    """The instruction ``run``, with its time, and with the bytes that it moves between stages."""

    def instruction(engine: Any, **kwargs: Any) -> None:
        if not events.observed():
            run(engine, **kwargs)
            return
        num_bytes = _boundary_bytes(engine, name, kwargs.get("buffer_id"), wire)
        start = time.perf_counter()
        with events.phase(name):
            run(engine, **kwargs)
        if num_bytes:
            peer = engine.next_stage if name == "send_activation" else engine.prev_stage
            events.emit(events.Transfer("send", peer, num_bytes, time.perf_counter() - start))

    return instruction


def _boundary_bytes(engine: Any, name: str, buffer_id: int | None, wire: str) -> int:
    """What a send instruction is about to send. Receives are counted by their sender."""
    if name not in ("send_activation", "send_grad"):
        return 0
    tensors = engine.pipe_buffers["outputs" if name == "send_activation" else "inputs"][buffer_id]
    tensors = tensors if isinstance(tensors, tuple) else (tensors,)
    sent = [t for t in tensors if name == "send_activation" or t.is_floating_point()]
    return sum(crossing_bytes(wire, t.numel(), t.dtype) for t in sent)
