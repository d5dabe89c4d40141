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
    def settle(self, made: bool | Tensor) -> None:
        """Keep what waits, if the step was made; forget it otherwise.

        Args:
            made: a tensor of one bool where its value must not be waited for.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """By global parameter name, each flat; views, until the next exchange."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what was kept, by name; it is grouped into buckets when each bucket is first seen."""


class ByBucket:
    """Flat tensors by bucket, that are found again by parameter when buckets change.

    On a CPU, what a step replaces is memory for the next step: to ask the system for it anew would cost more than to write it. So
    there are two tensors for each bucket.
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
        exact = torch.promote_types(like_N.dtype, torch.float32)
        if names in self._kept:
            # As loaded, it may be elsewhere.
            self._kept[names] = self._kept[names].to(device=like_N.device, dtype=exact)
            return self._kept[names]
        kept, waiting = self._take(self._kept, names), self._take(self._waiting, names)
        self._take(self._spare, names)
        self._kept[names] = _joined(names, sizes, kept, torch.zeros_like(like_N, dtype=exact))
        found_N = _joined(names, sizes, waiting, self._kept[names].clone()) if waiting else self._kept[names]
        # What else these buckets held is there by name, for the buckets to come.
        for held, parts in ((self._kept, kept), (self._waiting, waiting)):
            held.update({(name,): part.clone() for name, part in parts.items() if name not in names})
        self._sizes[names] = sizes
        return found_N

    def unused(self, names: Key, like_N: Tensor) -> Tensor:
        """Memory like ``like_N``, with anything in it."""
        spare_N = self._spare.pop(names, None)
        if spare_N is None or (spare_N.shape, spare_N.dtype) != (like_N.shape, like_N.dtype):
            return torch.empty_like(like_N)
        return spare_N

    def holds(self, names: Key) -> bool:
        """Whether something is kept of these parameters, or waits."""
        own = set(names)
        return names in self._kept or any(not own.isdisjoint(key) for key in self._kept)

    def wait(self, names: Key, flat_N: Tensor) -> None:
        """For :meth:`settle`; the tensor is this object's from now on."""
        if names in self._waiting:
            self._set_aside(names, self._waiting[names])
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
            self._set_aside(names, new_N)
        self._waiting.clear()

    def by_name(self) -> dict[str, Tensor]:
        """Views, by parameter, until the next exchange."""
        return {
            name: part
            for key, flat in self._kept.items()
            for name, part in zip(key, flat.split(self._sizes.get(key, [flat.numel()])))
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace all, by parameter."""
        self._kept = {(name,): tensor.clone() for name, tensor in state.items()}
        self._sizes, self._waiting, self._spare = {}, {}, {}

    def _set_aside(self, names: Key, flat_N: Tensor) -> None:
        if flat_N.device.type == "cpu":  # elsewhere the allocator of torch does so
            self._spare[names] = flat_N

    def _take(self, held: dict[Key, Tensor], names: Key) -> dict[str, Tensor]:
        """Views, by parameter, of all buckets that hold one of ``names``; they are taken out."""
        own = set(names)
        overlapping = [key for key in held if not own.isdisjoint(key)]
        return {
            name: part
            for key in overlapping
            for flat in (held.pop(key),)
            for name, part in zip(key, flat.split(self._sizes.get(key, [flat.numel()])))
        }


def _joined(names: Key, sizes: list[int], parts: Mapping[str, Tensor], into_N: Tensor) -> Tensor:
    """``into_N``, with the parts that there are."""
    for name, into in zip(names, into_N.split(sizes)):
        if name in parts:
            into.copy_(parts[name])
    return into_N
