"""What a split is: of each user, the items to train on, and one target to validate and one to test with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from recparallel.data.histories import Histories
from recparallel.data.protocols import FULL, Protocol
from recparallel.data.windows import Windows
from recparallel.errors import ConfigError, DataError

Part = Literal["valid", "test"]
NONE = -1
"""The position of a target that a user has not."""


@dataclass(frozen=True)
class Split:
    """Places in ``histories``; nothing is copied.

    Attributes:
        name: the protocol, in words, as metrics carry it.
        histories: what is split.
        train_ends_U: of each user, how many of the first items are for training, at least 0.
        targets: of each part, each user's target: its position in the sequence, or :data:`NONE`. What comes before it is
            the history to predict from.
    """

    name: str
    histories: Histories
    train_ends_U: NDArray[np.int64]
    targets: Mapping[str, NDArray[np.int64]]

    @property
    def train(self) -> Iterator[NDArray[Any]]:
        """For each user the items to train on."""
        return (items[:end] for items, end in zip(self.histories.sequences, self.train_ends_U.tolist()))

    def train_windows(self, max_length: int) -> Windows:
        """Cut the training histories into windows of at most ``max_length`` transitions, see :meth:`Windows.cut`."""
        return Windows.cut(self.histories.sequences, self.train_ends_U, max_length)

    def evaluation(self, which: Part, max_length: int, protocol: Protocol = FULL) -> "Evaluation":
        """One row a user who has a target: predict it from what came before.

        Args:
            which: the part.
            max_length: items of a history, the last ones.
            protocol: among which items targets are ranked.

        Raises:
            ConfigError: ``which`` is neither, or ``max_length`` is less than 1.
            DataError: nobody has such a target.
        """
        if which not in self.targets:
            raise ConfigError(f"an evaluation is on 'valid' or 'test', got {which!r}")
        if max_length < 1:
            raise ConfigError(f"max_length must be at least 1, got {max_length}")
        target_U = self.targets[which]
        user_N = np.flatnonzero(target_U != NONE)
        if not len(user_N):
            raise DataError(f"the split {self.name!r} leaves no user with a target to {which} with")
        return Evaluation(self.histories, user_N, target_U[user_N], max_length, protocol)


class Evaluation(Sequence[Mapping[str, Any]]):
    """Rows to predict, made when they are looked at.

    A row has ``user`` (its number), ``history`` (the last ``max_length`` items before the target), ``target`` (an item) and
    ``listed`` (items: what :meth:`Protocol.listed` says).

    Args:
        histories: of all users.
        user_N: whose rows these are.
        target_N: position of each row's target.
        max_length: of a history.
        protocol: among which items targets are ranked.
    """

    def __init__(
        self,
        histories: Histories,
        user_N: NDArray[np.int64],
        target_N: NDArray[np.int64],
        max_length: int,
        protocol: Protocol = FULL,
    ) -> None:
        self.histories = histories
        self.user_N, self.target_N = user_N, target_N
        self.max_length = max_length
        self.protocol = protocol

    def __len__(self) -> int:
        return len(self.user_N)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "Evaluation": ...
    def __getitem__(self, index: int | slice) -> "Mapping[str, Any] | Evaluation":
        if isinstance(index, slice):
            return Evaluation(self.histories, self.user_N[index], self.target_N[index], self.max_length, self.protocol)
        user, target = int(self.user_N[index]), int(self.target_N[index])
        items = self.histories.sequences[user]
        seen = items[:target]
        return {
            "user": user,
            "history": seen[-self.max_length :],
            "target": int(items[target]),
            "listed": self.protocol.listed(user, int(items[target]), seen, self.histories.num_items),
        }
