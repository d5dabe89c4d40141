"""Delayed Nesterov: an outer optimizer whose momentum moves once in several updates (Liu et al., "Asynchronous local-SGD
training for language modeling", 2024).

Progress that is late comes from weights that momentum has left behind meanwhile; with a momentum that moves at every update,
what is late is amplified. Here updates between two moves of the momentum follow the progress alone.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class DelayedNesterov(torch.optim.Optimizer):
    """Nesterov's momentum over the mean of every ``period`` gradients; each of them alone moves the weights too, by its share.

    With gradients g and period N: every update moves weights by ``-lr · g / N``; every N-th one first takes the mean of the
    last N into the momentum, ``m ← momentum · m + mean``, and moves weights by ``-lr · momentum · m`` as well. With period 1 it
    is torch's SGD with Nesterov momentum.

    Args:
        weights: that it moves.
        lr: learning rate.
        momentum: in [0, 1).
        period: updates to one move of the momentum.
    """

    def __init__(self, weights: Iterable[Tensor], *, lr: float, momentum: float, period: int) -> None:
        super().__init__(list(weights), {"lr": lr, "momentum": momentum, "period": period})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; the gradients are in ``grad``."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        assert weight.grad is not None
        rate, decay, period = group["lr"], group["momentum"], group["period"]
        state = self.state[weight]
        if not state:
            state["momentum"], state["sum"], state["updates"] = torch.zeros_like(weight), torch.zeros_like(weight), 0
        state["updates"] += 1
        state["sum"].add_(weight.grad)
        weight.add_(weight.grad, alpha=-rate / period)
        if state["updates"] % period == 0:
            state["momentum"].mul_(decay).add_(state["sum"], alpha=1 / period)
            weight.add_(state["momentum"], alpha=-rate * decay)
            state["sum"].zero_()
