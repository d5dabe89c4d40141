"""Typed errors. Every message says what was given, what is allowed, and where (the key, or the file and line)."""

import difflib
import functools
from collections.abc import Iterable
from typing import Any


class RecParallelError(Exception):
    """Base of everything that recparallel raises on purpose."""


class ConfigError(RecParallelError, ValueError):
    """A setting is wrong, or two settings do not go together."""


class UnknownNameError(ConfigError):
    """A name that is not registered; the message lists what is, and the nearest match.

    Args:
        kind: what was looked for, in words (``"dataset"``).
        name: what was given.
        known: the names that exist.
        where: the key or argument that held the name.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str = "") -> None:
        self.known = sorted(known)
        near = difflib.get_close_matches(name, self.known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        place = f" ({where})" if where else ""
        super().__init__(f"unknown {kind} {name!r}{place}; known are: {', '.join(self.known)}.{hint}")
        self._given = (kind, name, where)

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between ranks; the default would call the constructor with the message."""
        kind, name, where = self._given
        return functools.partial(UnknownNameError, where=where), (kind, name, self.known)


class DataError(RecParallelError, ValueError):
    """An interaction log is missing, or says something that cannot be."""


class PartitionError(RecParallelError, ValueError):
    """No partition exists for the request, or ranks do not hold the same one."""


class DoesNotFitError(PartitionError):
    """No partition fits into the memory of the devices."""


class HookError(RecParallelError, ValueError):
    """A gradient hook cannot run on this engine, or is bound to another process group."""


class ReplicaError(RecParallelError, RuntimeError):
    """Replicas cannot exchange what they have learned: one has gone, has not come in time, or is another one."""


class HostVersionError(RecParallelError, ImportError):
    """The installed host framework lies outside the range that recparallel was tested with."""


class CheckpointError(RecParallelError, RuntimeError):
    """A checkpoint is missing, incomplete, or belongs to another model."""


class MoveError(RecParallelError, RuntimeError):
    """Layers could not be moved to another stage; every rank still runs the cut that it ran."""
