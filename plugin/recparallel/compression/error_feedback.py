"""Send next time what was left out this time."""

import torch
from torch import Tensor

from recparallel.compression.memory import ByBucket, Key, Memory


class ErrorFeedback(Memory):
    """Error feedback around any codec and aggregation.

    1. ``p = g + e``: the gradient plus what earlier steps left out.
    2. Exchange ``p``; keep as ``e`` what did not get through.

    So, over all ranks, ``received + sum of e == sum of p`` in every step (Karimireddy et al., "Error feedback fixes SignSGD and
    other gradient compression schemes", ICML 2019, Algorithm 1). Residuals are kept in fp32, also for gradients of lower precision.

    Example:
        >>> feedback = ErrorFeedback()
        >>> p = feedback.corrected(torch.tensor([1.0, 2.0]), ("w",), [2])
        >>> feedback.keep(("w",), torch.tensor([1.0, 0.0]))
        >>> feedback.settle(made=True)
        >>> feedback.state_dict()["w"].tolist()
        [1.0, 0.0]
    """

    def __init__(self) -> None:
        self._residuals = ByBucket()

    def corrected(self, flat_N: Tensor, names: Key, sizes: list[int]) -> Tensor:
        residual_N = self._residuals.of(names, sizes, flat_N)
        return torch.add(residual_N, flat_N, out=self._residuals.unused(names, residual_N))

    def keep(self, names: Key, rest_N: Tensor, *, dense: bool = False) -> None:
        self._residuals.wait(names, rest_N)

    def holds(self, names: Key) -> bool:
        """Whether a step before left something of these parameters."""
        return self._residuals.holds(names)

    def settle(self, made: bool | Tensor) -> None:
        self._residuals.settle(made)

    def state_dict(self) -> dict[str, Tensor]:
        return self._residuals.by_name()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._residuals.load(state)
