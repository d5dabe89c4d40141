"""Measurement events: what any room tells about what really happened.

A room emits, whoever is interested subscribes (a tracker, the report, the rebalance policy). Without subscribers an
event costs one truth test. Events are facts about this rank; nothing here communicates.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """One phase of a training step on this rank took ``seconds``.

    ``name`` is one of ``forward``, ``backward``, ``send_activation``, ``recv_activation``, ``send_grad``,
    ``recv_grad``, ``begin_transfers``, ``finish_transfers``, ``load``, ``reduce_tied``, ``reduce``, ``optimizer``.
    """

    name: str
    seconds: float


@dataclass(frozen=True)
class Transfer:
    """``num_bytes`` crossed a stage boundary; ``direction`` is ``"send"`` or ``"recv"``, ``peer`` the other stage.

    ``seconds`` are those that the stage stood still for it: next to none where transfers run beside the computation.
    """

    direction: str
    peer: int
    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class Exchange:
    """One gradient bucket was averaged over the replicas.

    ``dense_bytes`` is the size of the gradients, ``wire_bytes`` the payload that this rank handed to the collective.
    """

    bucket: int
    codec: str
    dense_bytes: int
    wire_bytes: int
    seconds: float


@dataclass(frozen=True)
class TiedExchange:
    """The gradients of one tied table were summed over the stages that hold a copy of it.

    ``way`` is ``"rows"`` where only those that are not zero travelled, else ``"dense"``; sizes as in :class:`Exchange`.
    """

    way: str
    dense_bytes: int
    wire_bytes: int
    seconds: float


@dataclass(frozen=True)
class StepDone:
    """An optimizer step is complete. ``loss`` is the mean over the global batch's targets."""

    step: int
    loss: float
    seconds: float
    num_sequences: int


@dataclass(frozen=True)
class Move:
    """Layers were to change their stage behind step ``step``.

    ``before`` and ``after`` are the bounds of the cuts, ``gain`` and ``predicted_seconds`` what was predicted: of a step, the share
    that is saved, and of the move, what it takes. ``seconds`` is what it took, ``num_bytes`` what this rank sent. ``takes_back``:
    it undoes the last one. ``error`` tells why the cut is still the old one; it is empty where it is the new one.
    """

    step: int
    reason: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    gain: float
    predicted_seconds: float
    seconds: float
    num_bytes: int
    takes_back: bool = False
    error: str = ""

    def __str__(self) -> str:
        before, after = ("/".join(str(b - a) for a, b in zip(cut, cut[1:])) for cut in (self.before, self.after))
        what = f"step {self.step}: {self.reason}; layers by stage {before} -> {after}"
        if self.error:
            return f"{what} failed, nothing has changed: {self.error}"
        promise = "taken back" if self.takes_back else f"steps should be {self.gain:.0%} shorter"
        return f"{what} in {self.seconds:.2f} s (predicted {self.predicted_seconds:.2f} s), {promise}"


@dataclass(frozen=True)
class MoveOutcome:
    """What came of the last move: ``share_saved`` of a step, measured; ``paid`` is whether that is more than nothing."""

    step: int
    paid: bool
    share_saved: float

    def __str__(self) -> str:
        return f"step {self.step}: since the last move steps are {abs(self.share_saved):.0%} {'shorter' if self.paid else 'longer'}"


@dataclass(frozen=True)
class ExchangeChoice:
    """Buckets of ``size`` elements will be exchanged by ``way``; ``predicted`` is each way with the seconds it should take."""

    size: int
    way: str
    predicted: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        ways = ", ".join(f"{way} {1e3 * seconds:.2f} ms" for way, seconds in self.predicted)
        return f"buckets of {self.size:,} elements go by {self.way!r} (predicted: {ways})"


@dataclass(frozen=True)
class ExchangeLook:
    """An exchange of ``size`` elements by ``way``, the one that is used the most, was timed; ``decides_anew``: it took so much more
    or less than predicted that all ways are timed again."""

    size: int
    way: str
    predicted_seconds: float
    measured_seconds: float
    decides_anew: bool

    def __str__(self) -> str:
        what = f"{self.size:,} elements by {self.way!r}: predicted {1e3 * self.predicted_seconds:.2f} ms, measured "
        return f"{what}{1e3 * self.measured_seconds:.2f} ms{'; deciding anew' if self.decides_anew else ''}"


@dataclass(frozen=True)
class ReplicaExchange:
    """The mean of what replicas have learned has landed behind step ``step``, ``late`` steps after this one's share of it left.

    ``targets`` and ``steps`` are those of every replica since its share before, ``staleness`` the rounds that its weights were
    behind in the mean over these; ``wire_bytes`` is the payload of this rank. ``seconds`` are those of the exchange, ``waited``
    those of them in which this rank stood still.
    """

    step: int
    late: int
    codec: str
    targets: tuple[int, ...]
    dense_bytes: int
    wire_bytes: int
    seconds: float
    waited: float
    steps: tuple[int, ...]
    staleness: tuple[float, ...]


@dataclass(frozen=True)
class ReplicasFormed:
    """Replicas that come and go are ``count`` from step ``step`` of the training on. This one was among ``before``; 0 where it has
    just come."""

    step: int
    count: int
    before: int

    def __str__(self) -> str:
        was = f"{self.before} before" if self.before else "this one has just come"
        return f"step {self.step}: {self.count} replicas from here on, {was}"


@dataclass(frozen=True)
class SharesChanged:
    """From behind step ``step`` on a micro-batch of each replica has ``rows`` rows, of which one takes it ``seconds``; of what the
    slowest replica computes, ``gain`` should be saved."""

    step: int
    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    gain: float

    def __str__(self) -> str:
        times = ", ".join(f"{1e3 * own:.1f}" for own in self.seconds)
        return (
            f"step {self.step}: replicas get {', '.join(map(str, self.rows))} rows of a micro-batch, one of which takes them "
            f"{times} ms; {self.gain:.0%} of the slowest replica's computation should be saved"
        )


@dataclass(frozen=True)
class FellBack:
    """Recommendations had become worse behind step ``step``: ``value``, where ``best`` had been reached. Replicas, so far in mode
    ``before``, exchange by ``now`` from here on."""

    step: int
    value: float
    best: float
    before: str
    now: str

    def __str__(self) -> str:
        return (
            f"step {self.step}: validation fell to {self.value:.4f} from {self.best:.4f}; replicas fall back from "
            f"{self.before!r} to {self.now!r}"
        )


Event = (
    ReplicaExchange
    | FellBack
    | ReplicasFormed
    | SharesChanged
    | Phase
    | Transfer
    | Exchange
    | TiedExchange
    | StepDone
    | Move
    | MoveOutcome
    | ExchangeChoice
    | ExchangeLook
)
Subscriber = Callable[[Event], None]

_subscribers: list[Subscriber] = []


def observed() -> bool:
    """Whether anybody listens; ask before an event that costs something to make."""
    return bool(_subscribers)


def emit(event: Event) -> None:
    """Hand ``event`` to every subscriber, in the order of subscription."""
    for subscriber in _subscribers:
        subscriber(event)


@contextmanager
def subscribe(subscriber: Subscriber) -> Iterator[None]:
    """Call ``subscriber`` with every event until the block ends."""
    _subscribers.append(subscriber)
    try:
        yield
    finally:
        _subscribers.remove(subscriber)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Emit a :class:`Phase` with the wall-clock time of the block."""
    if not _subscribers:
        yield
        return
    start = time.perf_counter()
    yield
    emit(Phase(name, time.perf_counter() - start))
