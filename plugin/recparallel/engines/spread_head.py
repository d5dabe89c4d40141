"""A pipeline of which some or all stages share the head: each of these scores every micro-batch against its own rows.

1. The last stage hands its hidden states, of the positions that have a target, to the others that have rows.
2. Each of them scores them against its rows and tells the last one two numbers a target.
3. The last stage brings these together: the loss, and the normalizer, which it hands back.
4. Each of them adds to the gradient of its rows and hands its part of the hidden states' gradient to the last one, whose backward
   pass begins with their sum.

Nothing of that blocks: each of the four goes through a group of its own, and what one stage sends, others take later in
their order (``partitioning/spread_schedule.py``). Losses and gradients are those of the head on the last stage, up to
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
from recparallel.engines.eager_schedule import (
    BeginTransfers,
    FinishTransfers,
    SendActivationAside,
    SendGradAside,
    TakeActivation,
    TakeGrad,
)
from recparallel.engines.head_messages import HeadMessages
from recparallel.errors import ConfigError
from recparallel.models.losses import IGNORE
from recparallel.models.losses.softmax import ShareOfScores, merge
from recparallel.models.trunk import Trunk
from recparallel.partitioning.spread_schedule import activations_kept, spread_head_order
from recparallel.tensor_parallel.split import split_of

HEAD = "recparallel_head"
"""The attribute of an engine that holds its :class:`SpreadHead`."""


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

    def __init__(self, *, has_rows: bool, **sizes: int) -> None:
        super().__init__(**sizes)
        self.has_rows = has_rows

    def num_pipe_buffers(self) -> int:
        """Micro-batches whose activations are kept at once."""
        return max(2, min(activations_kept(self.stage_id, self.stages), self.micro_batches))

    def steps(self) -> Iterator[list[Any]]:
        """One instruction after the other; computations of a kind go through the micro-batches in order."""
        first, last = self.stage_id == 0, self.stage_id == self.stages - 1
        yield [BeginTransfers()]
        order = spread_head_order(self.stage_id, self.stages, self.micro_batches, shares=self.has_rows)
        for step, micro_batch in order:
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


class SpreadHead:
    """The share of one engine in the head, which may be none. Making it is collective: it makes groups.

    Attributes:
        has_rows: this stage has a share.
        whole: all rows, on the last stage while they are gathered.
    """

    def __init__(self, engine: Any) -> None:
        self._engine, module = engine, engine.module
        (spread,) = module.partition.spread
        width, (dtype, *_) = Trunk.of(module.recommender.config).dim, engine.get_data_types()
        self._messages = HeadMessages(engine, sharing=spread.stages, width=width, dtype=dtype)
        self.has_rows = module.spread_head is not None
        self._labels: list[Tensor] = []
        self.whole: Tensor | None = None
        if not self.has_rows:
            return
        self._weight = module.spread_head.weight
        split = split_of(self._weight)
        assert split is not None
        self._split = split
        # In the optimizer that keeps a second copy of the gradients, unless autograd adds them up (bf16_accumulation.py).
        self._place: tuple[int, int] | None = None
        if engine.using_bf16_optimizer and not adds_up_natively(engine.optimizer):
            groups = engine.optimizer.bf16_groups
            places = ((g, p, weight) for g, own in enumerate(groups) for p, weight in enumerate(own))
            self._place = next((g, p) for g, p, weight in places if weight is self._weight)

    def expect(self, batches: list[Any] | None) -> None:
        """The micro-batches of the next step, of which every stage needs the labels.

        Raises:
            ConfigError: on every stage of a replica, if one has none, or others than the rest.
        """
        engine = self._engine
        self._labels = [] if batches is None else [labels for _, labels in batches]
        # The largest, and the negative of the smallest: they agree where all are the same.
        mark = _mark(self._labels)
        seen = torch.tensor([batches is None, mark, -mark], dtype=torch.int64, device=engine.device)
        dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=engine.grid.get_pipe_parallel_group())
        lacks, largest, smallest = seen.tolist()
        if lacks or largest != -smallest:
            found = "some stage has none" if lacks else "they differ"
            own = "none" if batches is None else "some"
            raise ConfigError(
                f"with recparallel.spread_head stages score against their rows and need the same micro-batches, but {found} "
                f"(stage {engine.stage_id} has {own}); give train_batch the same data on every rank of a replica"
            )

    def begin(self) -> None:
        """Expect what this step will bring; how much that is, the labels tell every stage."""
        self._wanted = [labels != IGNORE for labels in self._labels]
        self._targets = [labels[wanted].to(self._engine.device) for labels, wanted in zip(self._labels, self._wanted)]
        self._messages.begin([len(targets) for targets in self._targets])
        self._shares: deque[ShareOfScores] = deque()
        self._next = {name: count() for name in ("hand_out", "score", "merge", "gradient", "collect")}

    def hand_out(self, hidden_BLD: Tensor) -> None:
        """The last stage's hidden states of the next micro-batch, to all."""
        wanted = self._wanted[next(self._next["hand_out"])]
        self._messages.send("hidden", hidden_BLD.detach()[wanted.to(hidden_BLD.device)])

    def score(self) -> None:
        """The next micro-batch against this stage's rows."""
        targets = self._targets[next(self._next["score"])]
        (hidden,) = self._messages.take("hidden")
        split = self._split
        share = ShareOfScores(hidden, self._weight, targets, num_rows=split.length, ranks=split.ranks)
        self._shares.append(share)
        self._messages.send("summary", share.summary)

    def merge(self) -> None:
        """On the last stage: the loss of the next micro-batch, and its normalizers to all."""
        engine = self._engine
        normalizer, losses = merge(self._messages.take("summary"))
        if self._has_targets("merge"):
            self._messages.arrived("hidden")
        self._messages.send("normalizer", normalizer)
        loss = losses.sum() / self._per_micro_batch
        engine.total_loss = loss if engine.total_loss is None else engine.total_loss + loss

    def gradient(self) -> None:
        """Of the next micro-batch: of the rows, and this stage's part of that of the hidden states."""
        engine = self._engine
        (normalizer,) = self._messages.take("normalizer")
        if self._has_targets("gradient") and not engine.is_last_stage():
            self._messages.arrived("summary")
        scale = normalizer.new_tensor(1 / (self._per_micro_batch * engine.micro_batches))
        part, of_rows = self._shares.popleft().gradients(normalizer, scale)
        engine._running_engine_backward = True
        try:  # by way of autograd, which tells the optimizer's hooks
            self._weight.view_as(self._weight).backward(of_rows)
        finally:
            engine._running_engine_backward = False
        if self._place is not None:
            # This weight alone: DeepSpeed's own function would add the gradients of all others a second time.
            engine.optimizer._update_hp_grad(self._weight, *self._place, clear_lp_grads=False)
            self._weight.grad = None
        self._messages.send("gradient", part)

    def collect(self, hidden_BLD: Tensor) -> Tensor:
        """The gradient (B, L, D) of the last stage's hidden states of the next micro-batch, of all stages' parts."""
        number = next(self._next["collect"])
        parts = self._messages.take("gradient")
        if len(self._targets[number]):
            self._messages.arrived("normalizer")
        exact = torch.promote_types(hidden_BLD.dtype, torch.float32)
        gradient = torch.zeros_like(hidden_BLD, requires_grad=False)
        gradient[self._wanted[number].to(hidden_BLD.device)] = (
            torch.stack(parts).sum(0, dtype=exact).to(hidden_BLD.dtype)
        )
        return gradient

    def finish(self) -> None:
        """Wait for what was sent."""
        self._messages.finish()

    def gather_rows(self) -> None:
        """Keep all rows on the last stage. Every stage calls."""
        if not self.has_rows:
            return
        rows = self._split.assemble(self._weight.detach())
        self.whole = rows if self._engine.is_last_stage() else rows.new_empty(0)

    def _has_targets(self, step: str) -> bool:
        """Whether the next micro-batch of a step has any."""
        return len(self._targets[next(self._next[step])]) > 0

    @property
    def _per_micro_batch(self) -> float:
        targets = self._engine.module.loss_fn.targets_per_micro_batch
        if targets is None:
            raise RuntimeError("the number of targets of the step is not known")
        return float(targets) or 1.0


def _mark(labels: list[Tensor]) -> int:
    """A number that is another one for other labels, all but certainly."""
    mark = 1
    for part in labels:
        flat = part.flatten().to(torch.int64)
        weights = torch.arange(1, len(flat) + 1, device=flat.device)
        mark = (mark * 1_000_003 + int((flat * weights).sum()) + len(flat)) % (2**61 - 1)
    return mark


def bind_spread_head(engine: Any, bindings: Bindings) -> None:
    """Let a pipeline engine whose stages share the head train, behind :func:`bind_eager_schedule`."""
    head = SpreadHead(engine)
    bindings.bind(engine, HEAD, head)

    def train_schedule() -> SpreadHeadSchedule:
        return SpreadHeadSchedule(
            has_rows=head.has_rows,
            micro_batches=engine.micro_batches,
            stages=engine.num_stages,
            stage_id=engine.stage_id,
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
    """Keep all rows of a head that stages share on the last of them, for the block; otherwise do nothing. Every stage calls."""
    head = getattr(engine, HEAD, None)
    if head is None or head.whole is not None:
        yield
        return
    head.gather_rows()
    try:
        yield
    finally:
        head.whole = None


@contextmanager
def whole_head(engine: Any) -> Iterator[None]:
    """Let the last stage score against all rows, for the block, where stages share the head. Every stage calls."""
    head = getattr(engine, HEAD, None)
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
