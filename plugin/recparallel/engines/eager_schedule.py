"""DeepSpeed's pipeline engine under the eager 1F1B schedule: boundary transfers run beside the computation.

DeepSpeed's own sends and receives block the stage (``runtime/pipe/p2p.py``). Its schedule is data, though, and its map of
instructions can be extended on the instance: training runs our schedule with instructions of our own, evaluation runs
DeepSpeed's. Losses are the same to the last bit, since every stage adds up the same gradients in the same order.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import torch
from deepspeed.runtime.pipe import schedule

from recparallel.engines.bindings import Bindings
from recparallel.engines.boundary_shapes import BoundaryShapes, Rows
from recparallel.engines.boundary_transfers import MOST_GRADIENTS, Inbox, Outbox, boundary_groups
from recparallel.errors import ConfigError
from recparallel.partitioning.schedules import COMPUTE, FORWARD, PIPELINE_SCHEDULES

_EAGER = PIPELINE_SCHEDULES["eager_1f1b"]

TRANSFERS = "recparallel_transfers"
"""What an engine calls its transfers where these must be told the shapes of micro-batches."""


class BeginTransfers(schedule.PipeInstruction):  # type: ignore[misc]
    """Expect what this step will bring."""


class SendActivationAside(schedule.SendActivation):  # type: ignore[misc]
    """Hand the output on, and go on."""


class TakeActivation(schedule.RecvActivation):  # type: ignore[misc]
    """Take the next input, which has been on its way."""


class SendGradAside(schedule.SendGrad):  # type: ignore[misc]
    """Hand the gradient of the input back, and go on."""


class TakeGrad(schedule.RecvGrad):  # type: ignore[misc]
    """Take the next gradient of an output, which has been on its way."""


class FinishTransfers(schedule.PipeInstruction):  # type: ignore[misc]
    """Wait until everything that was sent has gone out."""


class EagerSchedule(schedule.PipeSchedule):  # type: ignore[misc]
    """:func:`~recparallel.partitioning.schedules.eager_one_forward_one_backward` in DeepSpeed's instructions."""

    def num_pipe_buffers(self) -> int:
        """Micro-batches whose activations are kept at once."""
        return max(2, min(_EAGER.ahead(self.stage_id, self.stages), self.micro_batches))

    def steps(self) -> Iterator[list[Any]]:
        """One instruction after the other; computations of a kind go through the micro-batches in order."""
        loads = self.stage_id in (0, self.stages - 1)
        numbers = (count(), count())
        yield [BeginTransfers()]
        for code, first, second in _EAGER.programs(self.stages, self.micro_batches)[self.stage_id]:
            if code == COMPUTE:
                buffer = self._buffer_idx(next(numbers[first]))
                if first == FORWARD and loads:
                    yield [schedule.LoadMicroBatch(buffer)]
                yield [schedule.ForwardPass(buffer) if first == FORWARD else schedule.BackwardPass(buffer)]
                continue
            (((kind, micro_batch, _), sends),) = second
            make = _TRANSFERS[kind == FORWARD, sends]
            yield [make(self._buffer_idx(micro_batch))]
        yield [schedule.ReduceTiedGrads(), schedule.ReduceGrads(), schedule.OptimizerStep(), FinishTransfers()]


PHASES = {
    BeginTransfers: "begin_transfers",
    SendActivationAside: "send_activation",
    TakeActivation: "recv_activation",
    SendGradAside: "send_grad",
    TakeGrad: "recv_grad",
    FinishTransfers: "finish_transfers",
}
"""What events call these instructions."""

_TRANSFERS = {
    (True, True): SendActivationAside,
    (True, False): TakeActivation,
    (False, True): SendGradAside,
    (False, False): TakeGrad,
}


def bind_eager_schedule(engine: Any, bindings: Bindings, *, wire: str = "same", dynamic: bool = False) -> None:
    """Let a pipeline engine train under the eager schedule. Collective: on NCCL it makes groups.

    Args:
        engine: its layers hand a single floating-point tensor on.
        wire: name of what activations and gradients are on their way (:mod:`recparallel.compression.wire`).
        dynamic: micro-batches differ in rows and positions, and every stage has them.
    """
    engine.reset_activation_shape()  # what an earlier schedule has learned of shapes is not known here
    transfers = _Transfers(engine, wire)
    if dynamic:
        bindings.bind(engine, TRANSFERS, transfers)

    def train_schedule() -> EagerSchedule:
        return EagerSchedule(micro_batches=engine.micro_batches, stages=engine.num_stages, stage_id=engine.stage_id)

    bindings.bind(engine, "_train_schedule", train_schedule)
    added = {
        BeginTransfers: lambda engine: transfers.begin(),
        SendActivationAside: lambda engine, buffer_id: transfers.send_activation(buffer_id),
        TakeActivation: lambda engine, buffer_id: transfers.take_activation(buffer_id),
        SendGradAside: lambda engine, buffer_id: transfers.send_grad(buffer_id),
        TakeGrad: lambda engine, buffer_id: transfers.take_grad(),
        FinishTransfers: lambda engine: transfers.finish(),
    }
    bindings.bind(engine, "_INSTRUCTION_MAP", {**engine._INSTRUCTION_MAP, **added})


class _Transfers:
    """What one engine has on its way: activations forth, gradients back."""

    _activations: Inbox
    _gradients: Inbox
    _incoming: BoundaryShapes

    def __init__(self, engine: Any, wire: str) -> None:
        self._engine, self._wire = engine, wire
        self._group = boundary_groups()
        left, right = engine.stage_id - 1, engine.stage_id
        self._activations_sent = Outbox(_rank_of(engine, right + 1), group=self._group("forth", right), wire=wire)
        self._gradients_sent = Outbox(
            _rank_of(engine, left), group=self._group("back", left), most=MOST_GRADIENTS, wire=wire
        )
        self._rows: list[Rows | None] | None = None

    def tell(self, batches: Sequence[Any] | None) -> None:
        """The micro-batches (inputs, labels) of the next step, whose inputs are (B, L), on every stage.

        Raises:
            ConfigError: this stage has none.
        """
        if batches is None:
            raise ConfigError(
                f"rank {self._engine.global_rank} was given no micro-batches: with recparallel.lengths 'dynamic' every stage needs "
                "them, to know the shapes of what it will get"
            )
        self._rows = [(inputs.shape[0], inputs.shape[1]) for inputs, _ in batches]

    def begin(self) -> None:
        """The shape of activations is known from the step before, if there was one."""
        engine = self._engine
        left, right = engine.stage_id - 1, engine.stage_id
        self._micro_batches = self._rows or [None] * engine.micro_batches
        self._activations = Inbox(_rank_of(engine, left), group=self._group("forth", left), wire=self._wire)
        self._gradients = Inbox(_rank_of(engine, right + 1), group=self._group("back", right), wire=self._wire)
        if engine.stage_id and engine.pipe_recv_buf is not None:
            self._expect(self._activations, self._incoming, engine.pipe_recv_buf)

    def send_activation(self, buffer: int) -> None:
        """Send, and expect a gradient of the same shape. The first time, shape and type go before it, as DeepSpeed sends
        them."""
        engine = self._engine
        output = engine.pipe_buffers["outputs"][buffer]
        if engine.first_output_send:
            engine.first_output_send = False
            engine._send_tensor_meta(output, engine.next_stage)
        # The first output of a step is that of its first micro-batch; later calls do nothing.
        self._expect(self._gradients, BoundaryShapes(output.shape, self._micro_batches[0]), output)
        self._activations_sent.put(output)

    def take_activation(self, buffer: int) -> None:
        """Wait for the next input."""
        engine = self._engine
        if engine.pipe_recv_buf is None:
            engine.pipe_recv_buf = engine._recv_tensor_meta(engine.prev_stage)
            self._incoming = BoundaryShapes(engine.pipe_recv_buf.shape, self._micro_batches[0])
            self._expect(self._activations, self._incoming, engine.pipe_recv_buf)
        received = self._activations.take()
        received.requires_grad = received.is_floating_point()
        engine.pipe_buffers["inputs"][buffer] = received

    def send_grad(self, buffer: int) -> None:
        """Send the gradient of an input, which is not needed any more."""
        engine = self._engine
        gradient = engine.pipe_buffers["inputs"][buffer].grad
        engine.pipe_buffers["inputs"][buffer] = None
        self._gradients_sent.put(gradient)

    def take_grad(self) -> None:
        """Wait for the gradient of the next output, which therefore has arrived."""
        self._engine.grad_layer = self._gradients.take()
        self._activations_sent.release()

    def finish(self) -> None:
        """Wait for what was sent: a peer that failed is found here, not in the next step."""
        self._gradients_sent.wait()
        self._activations_sent.wait()
        self._engine.grad_layer = None

    def _expect(self, inbox: Inbox, shapes: BoundaryShapes, like: torch.Tensor) -> None:
        inbox.expect(shapes.in_step(self._micro_batches), dtype=like.dtype, device=like.device)


def _rank_of(engine: Any, stage: int) -> int:
    """The rank of a stage of this replica; -1 for a stage that does not exist, to which nothing is sent."""
    return int(engine.grid.stage_to_global(stage_id=stage)) if 0 <= stage < engine.num_stages else -1
