"""Which part of a weight a rank holds, and how it becomes whole again."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recparallel.tensor_parallel.ranks import ALONE, TensorRanks


@dataclass(frozen=True)
class Split:
    """A rank's part of a tensor along one dimension.

    Attributes:
        dim: along which it is cut.
        length: of the whole tensor there.
        pieces: first and end of what the rank holds, in order.
        counts: the rank is the one that counts, where several hold the same part.
        ranks: that hold the parts.
    """

    dim: int
    length: int
    pieces: tuple[tuple[int, int], ...]
    counts: bool = True
    ranks: TensorRanks = ALONE

    def take(self, whole: Tensor) -> Tensor:
        """The rank's part, in memory of its own."""
        return torch.cat([whole.narrow(self.dim, start, stop - start) for start, stop in self.pieces], self.dim)

    def shape_of_whole(self, part: Tensor) -> torch.Size:
        """Shape of the tensor of which ``part`` is one."""
        return torch.Size([self.length if d == self.dim else size for d, size in enumerate(part.shape)])

    def assemble(self, part: Tensor, *, once: bool = True) -> Tensor:
        """The whole tensor, on every rank; all of them call.

        Args:
            part: what the rank holds.
            once: a part that several ranks hold is taken from one of them; otherwise they are added up.
        """
        whole = part.new_zeros(self.shape_of_whole(part))
        if self.counts or not once:
            at = 0
            for start, stop in self.pieces:
                whole.narrow(self.dim, start, stop - start).copy_(part.narrow(self.dim, at, stop - start))
                at += stop - start
        return self.ranks.all_reduce(whole)


def hold(module: nn.Module, name: str, split: Split) -> None:
    """Let ``module`` hold its part of parameter ``name`` in place of all of it.

    The parameter gets ``model_parallel``, by which DeepSpeed and Megatron count each part once in the norm of the gradient.
    """
    whole = getattr(module, name)
    if whole is None:
        return
    part = nn.Parameter(split.take(whole.detach()), requires_grad=whole.requires_grad)
    part.recparallel_split = split  # type: ignore[attr-defined]
    part.model_parallel = split.counts  # type: ignore[attr-defined]
    setattr(module, name, part)


def split_of(parameter: Tensor) -> Split | None:
    """How the parameter was split; None if the rank holds all of it."""
    return getattr(parameter, "recparallel_split", None)


def shape_of_whole(parameter: Tensor) -> torch.Size:
    """Shape of a parameter before it was split, if it was."""
    split = split_of(parameter)
    return parameter.shape if split is None else split.shape_of_whole(parameter)


def part_of(whole: Tensor, parameter: Tensor) -> Tensor:
    """The part of ``whole`` that belongs into ``parameter``."""
    split = split_of(parameter)
    return whole if split is None else split.take(whole)
