"""Computation for its own sake, as a layer's: a product in the caches and a sum through memory."""

from collections.abc import Callable

import torch


def busywork(dtype: torch.dtype) -> Callable[[], None]:
    """A function that computes for about a millisecond, on a CPU.

    Args:
        dtype: of the product.
    """
    factor, values = torch.ones(256, 256, dtype=dtype), torch.zeros(2**20)

    def compute() -> None:
        _ = factor @ factor
        values.add_(1.0)

    return compute
