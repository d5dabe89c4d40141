"""The order in which each stage of a pipeline computes where all of them share the head.

In a slot of the last stage, every stage makes one forward and one backward pass, the scores of its rows for one micro-batch and
their gradient for the one before. What one stage sends, another takes later in the same slot or in the next one, so transfers run
beside the computation.
"""

from collections.abc import Iterator
from typing import Literal

Step = Literal["forward", "scores", "merge", "gradient", "backward"]

_BACKWARD = 2
"""Slots between the last stage's forward and backward of a micro-batch. In the first, all stages score it; in the one behind it,
the last brings their normalizers together and all make their part of the gradient; in the one behind that lies the backward."""


def spread_head_order(stage: int, stages: int, micro_batches: int) -> Iterator[tuple[Step, int]]:
    """What ``stage`` does, one after the other, each with its micro-batch."""
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
            if 0 <= slot - delay < micro_batches:
                yield step, slot - delay


def activations_kept(stage: int, stages: int) -> int:
    """Micro-batches between their forward and their backward on ``stage``."""
    return 2 * (stages - 1 - stage) + _BACKWARD + 1
