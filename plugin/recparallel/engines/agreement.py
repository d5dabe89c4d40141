"""Do something on every rank of a group; where one fails, all fail with its error, and none is left waiting."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

from recparallel.errors import CheckpointError, RecParallelError

T = TypeVar("T")


class Ranks:
    """The ranks of a group.

    Args:
        group: of all ranks that will call; all of the job if left out.
        error: that is raised on every rank where one has failed.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, *, error: type[RecParallelError] = CheckpointError
    ) -> None:
        self.group, self.error = group, error
        self.number, self.count = dist.get_rank(group), dist.get_world_size(group)

    def together(self, action: Callable[[], T]) -> T:
        """Call ``action`` on every rank; what it gave on this one.

        Raises:
            RecParallelError: on every rank, of the kind that was asked for, with the number and the error of the first that failed.
        """
        result, error = _attempt(action)
        self._compare(error, None)
        return cast(T, result)

    def gather(self, action: Callable[[], T]) -> list[T]:
        """The same; what it gave on all ranks, by rank."""
        result, error = _attempt(action)
        return self._compare(error, result)

    def first(self, action: Callable[[], T]) -> T:
        """Call ``action`` on rank 0 alone; what it gave there, on every rank: so that all go the same way."""
        return cast(T, self.gather(lambda: action() if self.number == 0 else None)[0])

    def _compare(self, error: BaseException | None, result: Any) -> list[Any]:
        if error is not None and not isinstance(error, Exception):
            raise error  # an interrupt ends the process, and with it the job
        reason = None if error is None else _in_words(error)
        answers: list[Any] = [None] * self.count
        dist.all_gather_object(answers, (reason, result), group=self.group)
        failed = [f"rank {rank}: {said}" for rank, (said, _) in enumerate(answers) if said is not None]
        if failed:
            raise self.error(failed[0]) from error
        return [found for _, found in answers]


def _attempt(action: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """What it gave, or its error, whichever: a rank that does not tell leaves the others waiting."""
    try:
        return action(), None
    except BaseException as error:
        return None, error


def _in_words(error: BaseException) -> str:
    return str(error) if isinstance(error, RecParallelError) else f"{type(error).__name__}: {error}"
