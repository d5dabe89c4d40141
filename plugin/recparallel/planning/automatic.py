"""``"compression": "auto"``: for each bucket the fastest exchange, dense where nothing pays, decided anew when the links change."""

import logging
import time
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel import events, registry
from recparallel.collectives.base import Aggregation
from recparallel.collectives.bucket import Bucket
from recparallel.collectives.choice import BY_CODEC, aggregation_for
from recparallel.compression import Codec
from recparallel.compression.error_feedback import ErrorFeedback
from recparallel.compression.options import check_integer
from recparallel.data_parallel.hook import BoundHook
from recparallel.data_parallel.synchronous import (
    CompressedAverage,
    CompressedHook,
    LossyAverage,
    Sent,
    average_compressed,
)
from recparallel.errors import ConfigError
from recparallel.planning.communication import Choice, ExchangeTime, Reading, choose, fit, has_drifted

logger = logging.getLogger(__name__)

DENSE = "none"
CANDIDATES = (DENSE, "bf16", "int8")
"""Ways to exchange, each losing more than the one before. Sparser ones change a training more than one who said nothing expects."""

_SMALL, _LARGE, _TRIES = 4_096, 524_288, 3
_DRIFT = 2.0


def automatic(
    group: dist.ProcessGroup | None,
    *,
    candidates: list[str] | None = None,
    min_gain: float = 0.1,
    every: int = 50,
    error_feedback: bool = True,
) -> BoundHook:
    """The hook, see :class:`AutomaticAverage`.

    Args:
        candidates: codecs, each losing more than the one before; ``none`` stands first.
        min_gain: share of an exchange that a codec must save to be taken, in [0, 1).
        every: steps between two looks at whether exchanges take as long as predicted.
        error_feedback: keep what was left out and send it later.

    Raises:
        ConfigError: an option is out of range.
    """
    ways = tuple(CANDIDATES if candidates is None else candidates)
    known = [name for name in registry.codecs if isinstance(registry.codecs.load(name), type)]
    if not ways or ways[0] != DENSE or any(way not in known for way in ways[1:]) or len(set(ways)) < len(ways):
        raise ConfigError(
            f"recparallel.compression.candidates must be {DENSE!r} and then codecs, none twice, got {list(ways)}; "
            f"codecs: {', '.join(known)}"
        )
    if isinstance(min_gain, bool) or not isinstance(min_gain, (int, float)) or not 0.0 <= min_gain < 1.0:
        raise ConfigError(
            f"auto: min_gain must be a number in [0, 1), got {min_gain!r} (recparallel.compression.min_gain)"
        )
    check_integer("auto", "every", every, least=1)
    memory = ErrorFeedback() if error_feedback else None
    return _AutomaticHook("auto", average_compressed, AutomaticAverage(group, ways, memory, min_gain, every))


class _AutomaticHook(CompressedHook):
    """Tells by which codec a bucket went."""

    state: "AutomaticAverage"

    def codec_of(self, bucket: Any) -> str:
        return f"auto: {self.state.way}"


class AutomaticAverage(LossyAverage):
    """Buckets go the way that is the fastest for their size.

    1. At the first bucket every way is timed on the replicas themselves, with a small and a large gradient, the slowest rank
       counting: codec, links and whatever else runs there are in the same figure. A line through the two predicts other sizes.
    2. A codec is taken where it saves at least ``min_gain`` of the exchange by the way that loses less. On a fast network that is
       none.
    3. Every ``every`` steps the way that most buckets take is timed again. Where it differs from the prediction by more than a
       factor of two, so are all ways.

    All ranks decide from the same numbers. Decisions are events, and told to the log, with predicted and measured seconds.

    Args:
        group, memory: see :class:`~recparallel.data_parallel.synchronous.LossyAverage`.
        ways: codecs, the first of them ``none``.
        min_gain, every: see :func:`automatic`.
    """

    memory: ErrorFeedback | None

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        ways: tuple[str, ...],
        memory: ErrorFeedback | None,
        min_gain: float,
        every: int,
    ) -> None:
        super().__init__(group, memory=memory)
        self.way = DENSE
        self._codecs: dict[str, Codec] = {way: registry.codecs.load(way)() for way in ways[1:]}
        self._aggregations: dict[str, Aggregation] = {}
        self._min_gain, self._every = min_gain, every
        self._times: dict[str, ExchangeTime] = {}
        self._choices: dict[int, Choice] = {}
        self._looked_at = 0

    def leaves_to_host(self, bucket: Bucket, *, step: int) -> bool:
        flat_N = bucket.buffer()
        if bucket.index() == 0 and self._choices and step - self._looked_at >= self._every:
            self._look(step, flat_N.device, flat_N.dtype)
        if not self._times:
            self._measure(flat_N.device, flat_N.dtype)
        choice = self._choices.get(len(flat_N)) or self._decide(len(flat_N))
        self.way = choice.way
        return self.way == DENSE and (self.memory is None or not self.memory.holds(bucket.names))

    def sum(self, given_N: Tensor, total_N: Tensor, bucket: Bucket, *, step: int) -> Sent:
        if self.way == DENSE or len(given_N) < self._codecs[self.way].least:
            return self.sum_densely(given_N, total_N, bucket.buffer().dtype)
        codec, seed, keep_rest = self._codecs[self.way], self.seed(bucket, step=step), self.memory is not None
        if self.way not in self._aggregations:
            self._aggregations[self.way] = aggregation_for(codec, BY_CODEC, self.process_group)
        return Sent(self._aggregations[self.way].sum(codec, given_N, total_N, seed=seed, keep_rest=keep_rest))

    def _measure(self, device: torch.device, dtype: torch.dtype) -> None:
        """Time every way; collective."""
        self._times = {
            way: fit(*(Reading(size, self._slowest(way, size, device, dtype)) for size in (_SMALL, _LARGE)))
            for way in (DENSE, *self._codecs)
        }
        self._choices.clear()

    def _slowest(self, way: str, size: int, device: torch.device, dtype: torch.dtype) -> float:
        """Seconds of an exchange on the rank that takes the longest, in the best of some tries; collective."""
        gradient = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(device, dtype)
        bucket = Bucket(gradient.clone(), (gradient,), ("measured",), 0, True)
        trial = None
        if way != DENSE:
            memory = None if self.memory is None else ErrorFeedback()
            trial = CompressedAverage(self._codecs[way], self.process_group, memory=memory)
        tries = []
        for _ in range(_TRIES):
            bucket.set_buffer(gradient)
            dist.barrier(group=self.process_group)
            start = time.perf_counter()
            if trial is None:
                self.sum_as_host(bucket.buffer())
            else:
                trial.exchange(bucket)
            float(bucket.buffer()[0])  # waits for a device that computes by itself
            tries.append(time.perf_counter() - start)
        slowest = torch.tensor(min(tries), dtype=torch.float64, device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=self.process_group)
        return float(slowest)

    def _decide(self, size: int) -> Choice:
        choice = self._choices[size] = choose(size, self._times, min_gain=self._min_gain)
        predicted = tuple((way, times.seconds(size)) for way, times in self._times.items())
        self._tell(events.ExchangeChoice(size, choice.way, predicted))
        return choice

    def _look(self, step: int, device: torch.device, dtype: torch.dtype) -> None:
        """Whether exchanges take as long as predicted; collective."""
        self._looked_at = step
        elements = Counter[str]()
        for choice in self._choices.values():
            elements[choice.way] += choice.size
        way = max(elements, key=lambda way: elements[way])
        predicted, measured = self._times[way].seconds(_LARGE), self._slowest(way, _LARGE, device, dtype)
        drifted = has_drifted(predicted, measured, tolerance=_DRIFT)
        self._tell(events.ExchangeLook(_LARGE, way, predicted, measured, drifted))
        if drifted:
            self._times = {}

    def _tell(self, event: events.ExchangeChoice | events.ExchangeLook) -> None:
        events.emit(event)
        if dist.get_rank(self.process_group) == 0:
            logger.info("%s", event)
