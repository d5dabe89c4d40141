"""What an aggregation is: the sum of all ranks' gradients, through a codec, the same bits on every rank."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.compression.base import Codec


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
    def sum(self, codec: Codec, given_N: Tensor, total_N: Tensor, *, seed: int, keep_rest: bool) -> int:
        """Sum ``given_N`` (N,) of all ranks into ``total_N`` (N,); collective. Both are the caller's, so that a gradient of
        gigabytes is not copied on its way.

        Args:
            given_N: with ``keep_rest``, of at least fp32, it becomes what this rank keeps: over all ranks ``total + sum of rest ==
                sum of what was given``. Without, it is left as it is, or overwritten where it shares memory with ``total_N``.
            total_N: of at least fp32; whatever is in it is replaced, by the same bits on every rank.
            seed: the same on every rank.
            keep_rest: whether ``given_N`` becomes the rest.

        Returns:
            Bytes that this rank handed to collectives.
        """

    def seed_of(self, codec: Codec, seed: int, *, rank: int, hop: int = 0) -> int:
        """Of one rank's payload: every rank rounds by numbers of its own, unless the codec wants the same."""
        return seed if codec.same_seed else seed + 0x51ED27 * (rank + 1) + 0x1F123B * hop


def exact_type(dtype: torch.dtype) -> torch.dtype:
    """Of sums of ``dtype``: at least fp32."""
    return torch.promote_types(dtype, torch.float32)
