"""The order in which each stage computes and talks: the schedules that the engines really run, as data.

An instruction is a short tuple, so that a simulation of thousands of them stays cheap: ``(COMPUTE, kind, chunk)`` or
``(TALK, wait, ends)``. ``ends`` are the halves of transfers that are started together, each ``(transfer, sends)``; the
halves on both stages carry the same transfer ``(kind, micro_batch, boundary)``, where boundary ``b`` lies between chunks
``b`` and ``b + 1``. With ``wait`` the stage stands still until all of them are over, else only until what it receives is.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

COMPUTE, TALK = 0, 1
FORWARD, BACKWARD = 0, 1

Transfer: TypeAlias = tuple[int, int, int]
End: TypeAlias = tuple[Transfer, bool]
Instruction: TypeAlias = tuple[int, int, Any]
Schedule: TypeAlias = list[list[Instruction]]
"""The instructions of each stage."""


def one_forward_one_backward(stages: int, micro_batches: int) -> Schedule:
    """1F1B as DeepSpeed's ``TrainSchedule`` runs it: one chunk a stage, and every send and receive stands still.

    Stage ``s`` runs ``stages - s`` forwards ahead, then one backward for each forward. Between a forward and the next
    backward it first takes the gradient and then hands its activation on; between a backward and the next forward it
    first hands its gradient back (Narayanan et al., "PipeDream", SOSP 2019; DeepSpeed ``runtime/pipe/schedule.py``).
    """
    return [list(_one_stage(stage, stages, micro_batches)) for stage in range(stages)]


def _one_stage(stage: int, stages: int, micro_batches: int) -> Iterator[Instruction]:
    ahead = stages - stage
    left, right = stage - 1, stage
    for slot in range(micro_batches + ahead):
        forward, backward = slot, slot - ahead + 1
        if stage and 0 <= backward - 1 < micro_batches:
            yield _alone((BACKWARD, backward - 1, left), sends=True)
        if forward < micro_batches:
            if stage:
                yield _alone((FORWARD, forward, left), sends=False)
            yield COMPUTE, FORWARD, stage
        if 0 <= backward < micro_batches and stage < stages - 1:
            yield _alone((BACKWARD, backward, right), sends=False)
        if forward < micro_batches and stage < stages - 1:
            yield _alone((FORWARD, forward, right), sends=True)
        if 0 <= backward < micro_batches:
            yield COMPUTE, BACKWARD, stage


def _alone(transfer: Transfer, *, sends: bool) -> Instruction:
    return TALK, True, ((transfer, sends),)


def eager_one_forward_one_backward(stages: int, micro_batches: int) -> Schedule:
    """1F1B whose transfers run beside the computation, with enough forwards ahead to hide them.

    Stage ``s`` runs ``2 (stages - s) - 1`` forwards ahead: between its forward and its backward of a micro-batch lie twice as
    many slots as in 1F1B, one for each transfer to the last stage and back (Zhuang et al., "On optimizing the communication of
    model parallelism", MLSys 2023, section 4). It keeps as many activations.
    """
    return [list(_one_eager_stage(stage, stages, micro_batches)) for stage in range(stages)]


def _one_eager_stage(stage: int, stages: int, micro_batches: int) -> Iterator[Instruction]:
    ahead = _eagerly_ahead(stage, stages)
    left, right = stage - 1, stage
    for slot in range(micro_batches + ahead - 1):
        forward, backward = slot, slot - ahead + 1
        if forward < micro_batches:
            if stage:
                yield TALK, False, (((FORWARD, forward, left), False),)
            yield COMPUTE, FORWARD, stage
            if stage < stages - 1:
                yield TALK, False, (((FORWARD, forward, right), True),)
        if backward >= 0:
            if stage < stages - 1:
                yield TALK, False, (((BACKWARD, backward, right), False),)
            yield COMPUTE, BACKWARD, stage
            if stage:
                yield TALK, False, (((BACKWARD, backward, left), True),)


def _ahead(stage: int, stages: int) -> int:
    return stages - stage


def _eagerly_ahead(stage: int, stages: int) -> int:
    return 2 * (stages - stage) - 1


@dataclass(frozen=True)
class PipelineSchedule:
    """A schedule with one chunk a stage, as solvers need to know it.

    Attributes:
        programs: the instructions of each stage, from stages and micro-batches.
        ahead: forwards that a stage runs before its first backward, from the stage and the number of stages.
        blocking: whether a stage stands still while it sends or receives.
    """

    programs: Callable[[int, int], Schedule]
    ahead: Callable[[int, int], int]
    blocking: bool


PIPELINE_SCHEDULES: Mapping[str, PipelineSchedule] = {
    "1f1b": PipelineSchedule(one_forward_one_backward, _ahead, blocking=True),
    "eager_1f1b": PipelineSchedule(eager_one_forward_one_backward, _eagerly_ahead, blocking=False),
}


def interleaved(stages: int, micro_batches: int, virtual: int) -> Schedule:
    """1F1B over ``virtual`` chunks a stage, as Megatron-Core runs it: sends run beside the computation.

    Chunk ``c`` belongs to stage ``c mod stages``. Micro-batches go in groups of ``stages`` through one chunk after the
    other (Narayanan et al., "Efficient large-scale language model training on GPU clusters using Megatron-LM", SC 2021,
    section 2.2).

    Raises:
        ValueError: the micro-batches do not fill groups of ``stages``.
    """
    if micro_batches % stages:
        raise ValueError(
            f"interleaving over {stages} stages needs a multiple of {stages} micro-batches, got {micro_batches}"
        )
    return [list(_interleaved_stage(stage, stages, micro_batches, virtual)) for stage in range(stages)]


def _interleaved_stage(stage: int, stages: int, micro_batches: int, virtual: int) -> Iterator[Instruction]:
    total = micro_batches * virtual
    ahead = min((stages - stage - 1) * 2 + (virtual - 1) * stages, total)
    last = stages * virtual - 1

    def place(number: int, *, backward: bool) -> tuple[int, int]:
        group, rest = divmod(number, stages * virtual)
        turn = rest // stages
        if backward:
            turn = virtual - 1 - turn
        return turn * stages + stage, group * stages + rest % stages

    def forward(number: int) -> Iterator[Instruction]:
        chunk, micro_batch = place(number, backward=False)
        if chunk:
            yield TALK, False, (((FORWARD, micro_batch, chunk - 1), False),)
        yield COMPUTE, FORWARD, chunk
        if chunk < last:
            yield TALK, False, (((FORWARD, micro_batch, chunk), True),)

    def backward(number: int) -> Iterator[Instruction]:
        chunk, micro_batch = place(number, backward=True)
        if chunk < last:
            yield TALK, False, (((BACKWARD, micro_batch, chunk), False),)
        yield COMPUTE, BACKWARD, chunk
        if chunk:
            yield TALK, False, (((BACKWARD, micro_batch, chunk - 1), True),)

    for number in range(ahead):
        yield from forward(number)
    for number in range(ahead, total):
        yield from forward(number)
        yield from backward(number - ahead)
    for number in range(total - ahead, total):
        yield from backward(number)
