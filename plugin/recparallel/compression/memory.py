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
        """What is to be sent for ``flat_N`` (N,), in memory of its own, in at least fp32; until :meth:`keep` it is the caller's.

        Args:
            names: the parameters that the bucket holds, in order.
            sizes: their numbers of elements; they add up to N.
        """

    @abstractmethod
    def keep(self, names: Key, rest_N: Tensor, *, dense: bool = False) -> None:
        """``rest_N`` (N,) of what was corrected did not get through; it may be kept. ``dense``: nothing was left out on purpose."""

    @abstractmethod
    def holds(self, names: Key) -> bool:
        """Whether a step before left something of these parameters."""

    @abstractmethod
    def settle(self, made: bool | Tensor) -> None:
        """Keep what waits, if the step was made; forget it otherwise.

        Args:
            made: a tensor of one bool where its value must not be waited for.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """By global parameter name, each flat, in memory of its own."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what was kept, by name; it is grouped into buckets when each bucket is first seen."""


class ByBucket:
    """Flat tensors by bucket, that are found again by parameter when buckets change.

    What a step replaces is memory for a later step: to ask the system for it anew would cost more than to write it.
    """

    def __init__(self) -> None:
        self._kept: dict[Key, Tensor] = {}
        self._sizes: dict[Key, list[int]] = {}
        self._waiting: dict[Key, Tensor] = {}
        self._spare: dict[Key, Tensor] = {}

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

    def unused(self, names: Key, like_N: Tensor) -> Tensor:
        """Memory like ``like_N``, with anything in it."""
        spare_N = self._spare.pop(names, None)
        fits = spare_N is not None and (spare_N.shape, spare_N.dtype, spare_N.device) == (
            like_N.shape,
            like_N.dtype,
            like_N.device,
        )
        return spare_N if spare_N is not None and fits else torch.empty_like(like_N)

    def holds(self, names: Key) -> bool:
        """Whether something is kept of these parameters, or waits."""
        own = set(names)
        return names in self._kept or any(not own.isdisjoint(key) for key in self._kept)

    def wait(self, names: Key, flat_N: Tensor) -> None:
        """For :meth:`settle`; the tensor is this object's from now on."""
        if names in self._waiting:
            self._spare[names] = self._waiting[names]
        self._waiting[names] = flat_N

    def waiting(self, names: Key) -> Tensor:
        """What waits for a bucket."""
        return self._waiting[names]

    def settle(self, made: bool | Tensor) -> None:
        """See :meth:`Memory.settle`."""
        for names, new_N in self._waiting.items():
            old_N = self._kept[names]
            if isinstance(made, Tensor):
                torch.where(made, new_N, old_N, out=old_N)
            elif made:
                self._kept[names], new_N = new_N, old_N
            self._spare[names] = new_N
        self._waiting.clear()

    def by_name(self) -> dict[str, Tensor]:
        """Copies, by parameter."""
        return {
            name: part.clone()
            for key, flat in self._kept.items()
            for name, part in zip(key, flat.split(self._sizes.get(key, [flat.numel()])))
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace all, by parameter."""
        self._kept = {(name,): tensor.clone() for name, tensor in state.items()}
        self._sizes, self._waiting, self._spare = {}, {}, {}

    def _regroup(self, names: Key, sizes: list[int], like_N: Tensor) -> Tensor:
        """Gathered from the buckets that held these parameters before. What else these held waits, by name, for the buckets to
        come."""
        flat_N = torch.zeros_like(like_N, dtype=torch.promote_types(like_N.dtype, torch.float32))
        known = self.by_name()
        for name, part in zip(names, flat_N.split(sizes)):
            if name in known:
                part.copy_(known[name])
        for key in [key for key in self._kept if set(key) & set(names)]:
            for held in (self._kept, self._sizes, self._spare, self._waiting):
                held.pop(key, None)
            self._kept.update({(name,): known[name] for name in key if name not in names})
        return flat_N
