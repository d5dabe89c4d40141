"""A pipeline whose stages share the head: each scores every micro-batch against its own rows.

1. The last stage hands its hidden states, of the positions that have a target, to all others.
2. Every stage scores them against its rows and tells the last one two numbers a target.
3. The last stage brings these together: the loss, and the normalizer, which it hands back.
4. Every stage adds to the gradient of its rows and hands its part of the hidden states' gradient to the last one, whose backward
   pass begins with their sum.

Nothing of that blocks: each of the four goes through a group of its own, and what is sent in one slot of the schedule
(``partitioning/spread_schedule.py``) is taken in a later one. Losses and gradients are those of the head on the last stage, up to
the order in which sums are made.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.pipe import schedule
from torch import Tensor

from recparallel.engines.bf16_accumulation import adds_up_natively
from recparallel.engines.bindings import Bindings
from recparallel.engines.boundary_transfers import Outbox
from recparallel.engines.eager_schedule import (
    BeginTransfers,
    FinishTransfers,
    SendActivationAside,
    SendGradAside,
    TakeActivation,
    TakeGrad,
)
from recparallel.models.losses import IGNORE
from recparallel.models.losses.over_stages import ShareOfScores, merge
from recparallel.partitioning.spread_schedule import activations_kept, spread_head_order
from recparallel.tensor_parallel.split import split_of

_POSTED_AHEAD = 3


class ScoreShare(schedule.PipeInstruction):  # type: ignore[misc]
    """Score a micro-batch against this stage's rows."""


class MergeScores(schedule.PipeInstruction):  # type: ignore[misc]
    """Loss and normalizers from what all stages found."""


class GradientShare(schedule.PipeInstruction):  # type: ignore[misc]
    """Gradients of this stage's rows, and its part of the hidden states' gradient."""


PHASES = {ScoreShare: "head_scores", MergeScores: "head_merge", GradientShare: "head_gradient"}
"""What events call these instructions."""


_OF_HEAD = {"scores": ScoreShare, "merge": MergeScores, "gradient": GradientShare}


class SpreadHeadSchedule(schedule.PipeSchedule):  # type: ignore[misc]
    """:func:`~recparallel.partitioning.spread_schedule.spread_head_order` in DeepSpeed's instructions."""

    def num_pipe_buffers(self) -> int:
        """Micro-batches whose activations are kept at once."""
        return max(2, min(activations_kept(self.stage_id, self.stages), self.micro_batches))

    def steps(self) -> Iterator[list[Any]]:
        """One instruction after the other; computations of a kind go through the micro-batches in order."""
        first, last = self.stage_id == 0, self.stage_id == self.stages - 1
        yield [BeginTransfers()]
        for step, micro_batch in spread_head_order(self.stage_id, self.stages, self.micro_batches):
            buffer = self._buffer_idx(micro_batch)
            if step == "forward":
                if first or last:
                    yield [schedule.LoadMicroBatch(buffer)]
                if not first:
                    yield [TakeActivation(buffer)]
                yield [schedule.ForwardPass(buffer)]
                if not last:
                    yield [SendActivationAside(buffer)]
            elif step == "backward":
                if not last:
                    yield [TakeGrad(buffer)]
                yield [schedule.BackwardPass(buffer)]
                if not first:
                    yield [SendGradAside(buffer)]
            else:
                yield [_OF_HEAD[step]()]
        yield [schedule.ReduceTiedGrads(), schedule.ReduceGrads(), schedule.OptimizerStep(), FinishTransfers()]


class _Coming:
    """Tensors of known shapes that come from one rank in a step, in their order."""

    def __init__(self, source: int, group: Any, shapes: list[tuple[int, ...]], like: Tensor) -> None:
        self._source, self._group, self._like = source, group, like
        self._to_post = deque(shapes)
        self._posted: deque[tuple[Any, Tensor]] = deque()
        self._post()

    def take(self) -> Tensor:
        """The next one."""
        work, tensor = self._posted.popleft()
        self._post()
        if work is not None:
            work.wait()
        return tensor

    def _post(self) -> None:
        while self._to_post and len(self._posted) < _POSTED_AHEAD:
            tensor = self._like.new_empty(self._to_post.popleft())
            # A micro-batch without targets has nothing to send.
            work = dist.irecv(tensor, self._source, group=self._group) if tensor.numel() else None
            self._posted.append((work, tensor))


class SpreadHead:
    """The shares of one engine's head. Making it is collective: it makes groups."""

    def __init__(self, engine: Any) -> None:
        module = engine.module
        self._engine, self._weight = engine, module.spread_head.weight
        split = split_of(self._weight)
        assert split is not None
        self._split, self._ranks, self._num_rows = split, split.ranks, split.length
        self._is_last = engine.is_last_stage()
        grid = engine.grid
        self._last = int(grid.stage_to_global(stage_id=engine.num_stages - 1))
        self._others = [int(grid.stage_to_global(stage_id=stage)) for stage in range(engine.num_stages - 1)]
        self._groups = {name: dist.new_group() for name in ("hidden", "summary", "normalizer", "gradient")}
        self._out = {
            name: [
                Outbox(rank, group=self._groups[name])
                for rank in (self._others if name in _FROM_LAST else [self._last])
            ]
            for name in self._groups
        }
        self.whole: Tensor | None = None
        # In the optimizer that keeps a second copy of the gradients, unless autograd adds them up (bf16_accumulation.py).
        self._place: tuple[int, int] | None = None
        if engine.using_bf16_optimizer and not adds_up_natively(engine.optimizer):
            groups = engine.optimizer.bf16_groups
            places = ((g, p, weight) for g, own in enumerate(groups) for p, weight in enumerate(own))
            self._place = next((g, p) for g, p, weight in places if weight is self._weight)

    def begin(self) -> None:
        """Expect what this step will bring; how much that is, the labels tell every stage."""
        module = self._engine.module
        self._wanted = [labels != IGNORE for labels in module.step_labels]
        self._targets = [
            labels[wanted].to(self._engine.device) for labels, wanted in zip(module.step_labels, self._wanted)
        ]
        width = self._weight.shape[1]
        exact = torch.promote_types(self._weight.dtype, torch.float32)
        kinds: dict[str, tuple[list[tuple[int, ...]], torch.dtype]] = {
            "hidden": ([(len(targets), width) for targets in self._targets], self._weight.dtype),
            "summary": ([(2, len(targets)) for targets in self._targets], exact),
            "normalizer": ([(len(targets),) for targets in self._targets], exact),
            "gradient": ([(len(targets), width) for targets in self._targets], self._weight.dtype),
        }
        self._coming = {
            name: [
                _Coming(rank, self._groups[name], shapes, self._weight.detach().new_empty(0, dtype=dtype))
                for rank in (self._others if self._is_last else [self._last])
            ]
            for name, (shapes, dtype) in kinds.items()
            if (name in _FROM_LAST) != self._is_last
        }
        self._shares: deque[ShareOfScores] = deque()
        self._own: dict[str, deque[Tensor]] = {name: deque() for name in self._groups}
        self._numbers = {name: count() for name in ("hidden", "scores", "merge", "gradient", "back")}

    def hand_out(self, hidden_BLD: Tensor) -> None:
        """The last stage's hidden states of the next micro-batch, to all."""
        wanted = self._wanted[next(self._numbers["hidden"])]
        self._send("hidden", hidden_BLD.detach()[wanted.to(hidden_BLD.device)])

    def score(self) -> None:
        """The next micro-batch against this stage's rows."""
        targets = self._targets[next(self._numbers["scores"])]
        share = ShareOfScores(
            self._take("hidden")[0], self._weight, targets, num_rows=self._num_rows, ranks=self._ranks
        )
        self._shares.append(share)
        self._send("summary", share.summary)

    def merge(self) -> None:
        """On the last stage: the loss of the next micro-batch, and its normalizers to all."""
        engine = self._engine
        next(self._numbers["merge"])
        normalizer, losses = merge(self._take("summary"))
        self._send("normalizer", normalizer)
        loss = losses.sum() / self._per_micro_batch
        engine.total_loss = loss if engine.total_loss is None else engine.total_loss + loss

    def gradient(self) -> None:
        """Of the next micro-batch: of the rows, and this stage's part of that of the hidden states."""
        engine = self._engine
        (normalizer,) = self._take("normalizer")
        next(self._numbers["gradient"])
        scale = 1 / (self._per_micro_batch * engine.micro_batches)
        share = self._shares.popleft()
        engine._running_engine_backward = True
        try:
            part = share.backward(normalizer, scale)
        finally:
            engine._running_engine_backward = False
        if self._place is not None:
            # This weight alone: DeepSpeed's own function would add the gradients of all others a second time.
            engine.optimizer._update_hp_grad(self._weight, *self._place, clear_lp_grads=False)
            self._weight.grad = None
        self._send("gradient", part)

    def collect(self, hidden_BLD: Tensor) -> Tensor:
        """The gradient (B, L, D) of the last stage's hidden states of the next micro-batch, of all stages' parts."""
        wanted = self._wanted[next(self._numbers["back"])].to(hidden_BLD.device)
        parts = self._take("gradient")
        exact = torch.promote_types(hidden_BLD.dtype, torch.float32)
        gradient = torch.zeros_like(hidden_BLD, requires_grad=False)
        gradient[wanted] = torch.stack(parts).sum(0, dtype=exact).to(hidden_BLD.dtype)
        return gradient

    def gather_rows(self) -> Tensor:
        """All rows. Every stage calls."""
        return self._split.assemble(self._weight.detach())

    def finish(self) -> None:
        """Wait for what was sent."""
        for boxes in self._out.values():
            for box in boxes:
                box.wait()

    @property
    def _per_micro_batch(self) -> float:
        loss_fn = self._engine.module.loss_fn
        if loss_fn.targets_per_micro_batch is None:
            raise RuntimeError("the number of targets of the step is not known")
        return float(loss_fn.targets_per_micro_batch) or 1.0

    def _send(self, name: str, tensor: Tensor) -> None:
        """To all that wait for it; the last stage's own part stays here."""
        tensor = tensor.contiguous()
        if name in _FROM_LAST or self._is_last:
            self._own[name].append(tensor)
        if (name in _FROM_LAST) == self._is_last and tensor.numel():
            for box in self._out[name]:
                box.put(tensor)

    def _take(self, name: str) -> list[Tensor]:
        """Of the next micro-batch: from the last stage, or on it from all stages in their order."""
        own = [self._own[name].popleft()] if self._own[name] else []
        if (name in _FROM_LAST) == self._is_last:
            return own
        return [coming.take() for coming in self._coming[name]] + own


_FROM_LAST = ("hidden", "normalizer")
"""What the last stage sends; the rest it receives."""


def bind_spread_head(engine: Any, bindings: Bindings) -> None:
    """Let a pipeline engine whose stages share the head train, behind :func:`bind_eager_schedule`."""
    head = SpreadHead(engine)
    bindings.bind(engine, "spread_head", head)

    def train_schedule() -> SpreadHeadSchedule:
        return SpreadHeadSchedule(
            micro_batches=engine.micro_batches, stages=engine.num_stages, stage_id=engine.stage_id
        )

    bindings.bind(engine, "_train_schedule", train_schedule)
    run = engine._INSTRUCTION_MAP
    instructions: dict[Any, Callable[..., None]] = {
        **run,
        BeginTransfers: _both(lambda: head.begin(), run[BeginTransfers]),
        FinishTransfers: _both(lambda: head.finish(), run[FinishTransfers]),
        ScoreShare: lambda engine: head.score(),
        MergeScores: lambda engine: head.merge(),
        GradientShare: lambda engine: head.gradient(),
    }
    if engine.is_last_stage():
        forward, backward = run[schedule.ForwardPass], run[schedule.BackwardPass]

        def forward_pass(engine: Any, buffer_id: int) -> None:
            if not engine.module.training:
                forward(engine, buffer_id=buffer_id)
                return
            with _as_a_middle_stage(engine):
                forward(engine, buffer_id=buffer_id)
            head.hand_out(engine.pipe_buffers["outputs"][buffer_id])

        def backward_pass(engine: Any, buffer_id: int) -> None:
            engine.grad_layer = head.collect(engine.pipe_buffers["outputs"][buffer_id])
            with _as_a_middle_stage(engine):
                backward(engine, buffer_id=buffer_id)

        instructions |= {schedule.ForwardPass: forward_pass, schedule.BackwardPass: backward_pass}
    bindings.bind(engine, "_INSTRUCTION_MAP", instructions)


@contextmanager
def gathered_rows(engine: Any) -> Iterator[None]:
    """Keep all rows of a head that stages share on each of them, for the block; otherwise do nothing. Every stage calls."""
    head = getattr(engine, "spread_head", None)
    if head is None or head.whole is not None:
        yield
        return
    head.whole = head.gather_rows()
    try:
        yield
    finally:
        head.whole = None


@contextmanager
def whole_head(engine: Any) -> Iterator[None]:
    """Let the last stage score against all rows, for the block, where stages share the head. Every stage calls."""
    head = getattr(engine, "spread_head", None)
    if head is None:
        yield
        return
    loss_fn = engine.module.loss_fn
    bindings = Bindings()
    with gathered_rows(engine):
        bindings.bind(engine.module, "loss_fn", lambda hidden, labels: loss_fn((hidden, head.whole), labels))
        try:
            yield
        finally:
            bindings.remove()


def _both(first: Callable[[], None], then: Callable[..., None]) -> Callable[..., None]:
    def instruction(engine: Any) -> None:
        first()
        then(engine)

    return instruction


@contextmanager
def _as_a_middle_stage(engine: Any) -> Iterator[None]:
    """DeepSpeed's last stage makes a loss of its output in the forward pass, and begins the backward pass with it."""
    bindings = Bindings()
    bindings.bind(engine, "is_last_stage", lambda: False)
    try:
        yield
    finally:
        bindings.remove()
