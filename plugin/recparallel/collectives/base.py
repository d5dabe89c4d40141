"""What an aggregation is: the sum of all ranks' gradients, through a codec, the same bits on every rank."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.compression.base import Codec


@dataclass(frozen=True)
class Summed:
    """What came of an exchange.

    Attributes:
        total_N: the sum (N,), in at least fp32; the same bits on every rank.
        rest_N: what this rank keeps: over all ranks ``total + sum of rest == sum of what was given``. None unless asked for.
        sent_bytes: that this rank handed to collectives.
        dense: nothing was left out on purpose.
    """

    total_N: Tensor
    rest_N: Tensor | None
    sent_bytes: int
    dense: bool = False


class Aggregation(ABC):
    """How the ranks of a group sum what a codec makes of their gradients.

    Args:
        group: the replicas.
    """

    name: ClassVar[str]

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.world, self.rank = dist.get_world_size(group), dist.get_rank(group)

    @classmethod
    def refuses(cls, codec: Codec) -> str:
        """Why payloads of ``codec`` cannot be summed like this; empty if they can. Override where not all can."""
        return ""

    @abstractmethod
    def sum(self, codec: Codec, flat_N: Tensor, *, seed: int, keep_rest: bool) -> Summed:
        """Sum ``flat_N`` (N,) of all ranks; collective. ``flat_N`` stays as it is.

        Args:
            seed: the same on every rank.
            keep_rest: whether ``rest_N`` is wanted.
        """

    def seed_of(self, codec: Codec, seed: int, *, rank: int, hop: int = 0) -> int:
        """Of one rank's payload: every rank rounds by numbers of its own, unless the codec wants the same."""
        return seed if codec.same_seed else seed + 0x51ED27 * (rank + 1) + 0x1F123B * hop


def zeros_for_sum(size: int, like: Tensor) -> Tensor:
    """(size,) of at least fp32, on the device of ``like``."""
    return torch.zeros(size, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
