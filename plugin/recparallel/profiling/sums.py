"""How gradients are added up over the micro-batches of a step, which a profile must do as the training does."""

from typing import NamedTuple

from recparallel.plan import LayerKind


class GradientSums(NamedTuple):
    """What happens behind a backward pass.

    Attributes:
        fp32: those of half-precision weights are added to an fp32 copy, and cleared (``data_types.grad_accum_dtype`` of DeepSpeed);
            otherwise autograd adds them up.
        rows: look-ups in item tables keep theirs by rows, and the table gets them once a step
            (:mod:`recparallel.models.row_gradients`); otherwise every look-up makes one of the whole table.
        lazy: kinds of layers whose tables are updated by the rows that a step has touched
            (:mod:`recparallel.optimizers.row_adamw`).
    """

    fp32: bool = False
    rows: bool = False
    lazy: tuple[LayerKind, ...] = ()


PLAIN_SUMS = GradientSums()
"""As autograd makes them."""
