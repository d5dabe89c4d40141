"""A training in a process of its own, that goes on when it is told to."""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Protocol

from benchmarks.errors import RunError


@dataclass(frozen=True)
class Work:
    """What training steps have done: histories, targets, and epochs."""

    sequences: int
    targets: int
    epochs: float


@dataclass(frozen=True)
class Point:
    """Where a training is.

    Attributes:
        seconds: in its training steps, batches included.
        sequences, targets, epochs: trained in them.
        hr, ndcg: at 10, of the test items, all items ranked.
    """

    seconds: float
    sequences: int
    targets: int
    epochs: float
    hr: float
    ndcg: float


_PATIENCE = 20.0
"""Seconds in which a training that is told to end does so."""


class Training(Protocol):
    """What takes turns."""

    def steps(self) -> Iterator[Work]:
        """Make one step after the other; each time, what it did."""

    def rank(self) -> tuple[float, float]:
        """HR@10 and NDCG@10 of the test items."""

    def close(self) -> None:
        """Leave nothing behind."""


Start = Callable[[Path, Path], Training]
"""Makes a training, from the folder of the data and that of the peer."""


class Trainer:
    """The process.

    Args:
        start: runs there.
        data, peer: see :data:`Start`.
    """

    def __init__(self, start: Start, data: Path, peer: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, self._theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._theirs, start, data, peer))

    def __enter__(self) -> "Trainer":
        self._process.start()
        self._theirs.close()  # so that its end is noticed here
        return self

    def turn(self, seconds: float) -> Point:
        """Train for so long, unless it ends before, and rank.

        Raises:
            RunError: it failed.
        """
        try:
            self._ours.send(seconds)
            point: Point = self._ours.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise RunError(f"a training ended with {self._process.exitcode}; its words are above") from error
        return point

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ours.close()
        self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, start: Start, data: Path, peer: Path) -> None:
    import time

    training = start(data, peer)
    steps = training.steps()
    total, sequences, targets, epochs = 0.0, 0, 0, 0.0
    while True:
        try:
            budget = pipe.recv()
        except EOFError:
            training.close()
            return
        begin = time.perf_counter()
        while time.perf_counter() - begin < budget:
            work = next(steps, None)
            if work is None:
                break
            sequences, targets, epochs = sequences + work.sequences, targets + work.targets, epochs + work.epochs
        total += time.perf_counter() - begin
        pipe.send(Point(total, sequences, targets, epochs, *training.rank()))
