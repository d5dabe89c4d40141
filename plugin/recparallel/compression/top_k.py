"""Keep the elements of largest magnitude."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recparallel.compression.sparse import Sparsifier


@dataclass(frozen=True, kw_only=True)
class TopK(Sparsifier):
    """Exact top-k sparsification: the ``k`` elements of largest ``|g|``; ``torch.topk`` breaks ties, on each rank for itself.

    The error is the norm of what was left out, at most ``sqrt(1 - k / N) · ‖g‖``; with error feedback the sum over
    time converges (Stich, Cordonnier & Jaggi, "Sparsified SGD with memory", NeurIPS 2018; error bound: Definition
    2.1).

    Example:
        >>> import torch
        >>> values, positions = TopK(ratio=0.5).encode(torch.tensor([0.1, -3.0, 2.0, 0.0]))
        >>> positions.sort().values.tolist()
        [1, 2]
    """

    name = "top_k"

    def select(self, flat_N: Tensor, *, seed: int = 0) -> Tensor:
        return torch.topk(flat_N.abs(), self.num_kept(len(flat_N)), sorted=False).indices
