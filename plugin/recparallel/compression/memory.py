"""What a rank keeps between steps for gradients that did not get through whole."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

Key = tuple[str, ...]
"""Global names of the parameters in a bucket, in order."""


class Memory(ABC):
    """Kept by bucket and stored by parameter name: when buckets are cut anew, each parameter finds its own again.

    What a step would keep waits until :meth:`settle` says that the step was made: one that is skipped leaves all as it was.
    """

    @abstractmethod
    def corrected(self, flat_N: Tensor, names: Key, sizes: list[int]) -> Tensor:
        """What is to be sent for ``flat_N`` (N,), in memory of its own, in at least fp32.

        Args:
            names: the parameters that the bucket holds, in order.
            sizes: their numbers of elements; they add up to N.
        """

    @abstractmethod
    def keep(self, names: Key, rest_N: Tensor, *, dense: bool = False) -> None:
        """``rest_N`` (N,) of what was corrected did not get through; it may be kept. ``dense``: nothing was left out on purpose."""

    @abstractmethod
    def settle(self, made: bool | Tensor) -> None:
        """Keep what waits, if the step was made; forget it otherwise.

        Args:
            made: a tensor of one bool where its value must not be waited for.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """By global parameter name, each flat."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what was kept, by name; it is grouped into buckets when each bucket is first seen."""


class ByBucket:
    """Flat tensors by bucket, that are found again by parameter when buckets change."""

    def __init__(self) -> None:
        self._kept: dict[Key, Tensor] = {}
        self._sizes: dict[Key, list[int]] = {}
        self._waiting: dict[Key, Tensor] = {}

    def of(self, names: Key, sizes: list[int], like_N: Tensor) -> Tensor:
        """Of a bucket (N,), in at least fp32: what waits, else what was kept, else zeros."""
        if names in self._waiting:  # a second micro-batch of the step
            return self._waiting[names]
        if names not in self._kept:
            self._kept[names] = self._regroup(names, sizes, like_N)
            self._sizes[names] = sizes
        exact = torch.promote_types(like_N.dtype, torch.float32)
        self._kept[names] = self._kept[names].to(device=like_N.device, dtype=exact)  # as loaded, it may be elsewhere
        return self._kept[names]

    def wait(self, names: Key, flat_N: Tensor) -> None:
        """For :meth:`settle`."""
        self._waiting[names] = flat_N

    def waiting(self, names: Key) -> Tensor:
        """What waits for a bucket."""
        return self._waiting[names]

    def settle(self, made: bool | Tensor) -> None:
        """See :meth:`Memory.settle`."""
        for names, new_N in self._waiting.items():
            if isinstance(made, Tensor):
                self._kept[names] = torch.where(made, new_N, self._kept[names])
            elif made:
                self._kept[names] = new_N
        self._waiting.clear()

    def by_name(self) -> dict[str, Tensor]:
        """Views, by parameter."""
        return {
            name: part
            for key, flat in self._kept.items()
            for name, part in zip(key, flat.split(self._sizes.get(key, [flat.numel()])))
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace all, by parameter."""
        self._kept = {(name,): tensor.clone() for name, tensor in state.items()}
        self._sizes, self._waiting = {}, {}

    def _regroup(self, names: Key, sizes: list[int], like_N: Tensor) -> Tensor:
        """Gathered from the buckets that held these parameters before. What else these held waits, by name, for the buckets to
        come."""
        flat_N = torch.zeros_like(like_N, dtype=torch.promote_types(like_N.dtype, torch.float32))
        known = self.by_name()
        for name, part in zip(names, flat_N.split(sizes)):
            if name in known:
                part.copy_(known[name])
        for key in [key for key in self._kept if set(key) & set(names)]:
            del self._kept[key]
            self._sizes.pop(key, None)
            self._kept.update({(name,): known[name].clone() for name in key if name not in names})
        return flat_N
