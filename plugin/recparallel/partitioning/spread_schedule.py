"""The order in which each stage of a pipeline computes where some or all of them share the head.

In a slot of the last stage, every stage makes one forward and one backward pass, the scores of its rows for one micro-batch and
their gradient for the one before. What one stage sends, another takes later in the same slot or in the next one, so transfers run
beside the computation.
"""

from collections.abc import Collection, Iterator
from typing import Literal

from recparallel.partitioning.schedules import BACKWARD, COMPUTE, FORWARD, TALK, Instruction, Schedule

Step = Literal["forward", "scores", "merge", "gradient", "backward"]

_BACKWARD = 2
"""Slots between the last stage's forward and backward of a micro-batch. In the first, all stages score it; in the one behind it,
the last brings their normalizers together and all make their part of the gradient; in the one behind that lies the backward."""


def spread_head_order(
    stage: int, stages: int, micro_batches: int, *, shares: bool = True
) -> Iterator[tuple[Step, int]]:
    """What ``stage`` does, one after the other, each with its micro-batch; ``shares``: it has rows of the head."""
    before = stages - 1 - stage  # slots that its forward is before, and its backward behind, the last stage's
    forward: tuple[Step, int] = ("forward", -before)
    merge: tuple[Step, int] = ("merge", 1)
    gradient: tuple[Step, int] = ("gradient", 1)
    backward: tuple[Step, int] = ("backward", _BACKWARD + before)
    scores: tuple[Step, int] = ("scores", 0)
    for slot in range(-before, micro_batches + _BACKWARD + before):
        order: tuple[tuple[Step, int], ...]
        if slot >= micro_batches:  # all wait for the last normalizers and gradients: they come first
            order = (merge, gradient, backward) if before == 0 else (gradient, backward)
        elif before == 0:  # the other stages' scores have the time of a backward pass to arrive
            order = (forward, backward, merge, gradient, scores)
        else:  # and so have the normalizers
            order = (forward, backward, scores, gradient)
        for step, delay in order:
            if 0 <= slot - delay < micro_batches and (shares or step in ("forward", "backward")):
                yield step, slot - delay


def activations_kept(stage: int, stages: int) -> int:
    """Micro-batches between their forward and their backward on ``stage``."""
    return 2 * (stages - 1 - stage) + _BACKWARD + 1


SCORES, MERGE, GRADIENT = 2, 3, 4
"""Kinds of computation beside forward and backward."""

HIDDEN, SUMMARY, NORMALIZER, PART = 2, 3, 4, 5
"""Kinds of messages between the last stage and another, whose number stands in the place of a boundary."""


def spread_head_programs(stages: int, micro_batches: int, sharing: Collection[int]) -> Schedule:
    """The same for a simulation, with all that is sent and taken; ``sharing`` are the stages with rows, the last one among them."""
    others = [stage for stage in sorted(sharing) if stage != stages - 1]
    return [list(_program(stage, stages, micro_batches, others, stage in sharing)) for stage in range(stages)]


def _program(stage: int, stages: int, micro_batches: int, others: list[int], shares: bool) -> Iterator[Instruction]:
    last = stage == stages - 1

    def talk(kind: int, number: int, place: int, *, sends: bool) -> Instruction:
        return TALK, False, (((kind, number, place), sends),)

    for step, number in spread_head_order(stage, stages, micro_batches, shares=shares):
        if step == "forward":
            if stage:
                yield talk(FORWARD, number, stage - 1, sends=False)
            yield COMPUTE, FORWARD, stage
            if last:
                yield from (talk(HIDDEN, number, other, sends=True) for other in others)
            else:
                yield talk(FORWARD, number, stage, sends=True)
        elif step == "backward":
            if last:
                yield from (talk(PART, number, other, sends=False) for other in others)
            else:
                yield talk(BACKWARD, number, stage, sends=False)
            yield COMPUTE, BACKWARD, stage
            if stage:
                yield talk(BACKWARD, number, stage - 1, sends=True)
        elif step == "scores":
            if not last:
                yield talk(HIDDEN, number, stage, sends=False)
            yield COMPUTE, SCORES, stage
            if not last:
                yield talk(SUMMARY, number, stage, sends=True)
        elif step == "merge":
            yield from (talk(SUMMARY, number, other, sends=False) for other in others)
            yield COMPUTE, MERGE, stage
            yield from (talk(NORMALIZER, number, other, sends=True) for other in others)
        else:
            if not last:
                yield talk(NORMALIZER, number, stage, sends=False)
            yield COMPUTE, GRADIENT, stage
            if not last:
                yield talk(PART, number, stage, sends=True)
