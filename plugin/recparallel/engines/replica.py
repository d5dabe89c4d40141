"""Replicas that train apart, each an engine in a world of its own, and exchange what their weights have moved by.

All replicas hold the same *common* weights beside their own. Behind some steps a replica's progress, its weights less the common
ones, leaves for an exchange over the *outer group*: the ranks that hold the same layers in all replicas. When the mean of all
replicas' progress lands, the common weights follow it by the mode's outer optimizer, and a replica goes on from them, with what it
has learned since on top. When progress leaves and lands is said by subclasses; an exchange that lands later runs beside the steps.
"""

import hashlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel import events
from recparallel.config import DataParallelConfig
from recparallel.data_parallel.mode import Mode
from recparallel.data_parallel.synchronous import dense_hook
from recparallel.engines.engine_state import layers_of_weights, read_weights, write_weights
from recparallel.engines.replica_exchange import Header, Mean, OuterExchange, Part
from recparallel.engines.replica_world import ReplicaWorld
from recparallel.errors import ReplicaError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flight:
    """Progress on its way: behind which step it left, what this replica's weights were then, and the mean to come."""

    step: int
    left: dict[str, Tensor]
    mean: Future[Mean]


class Replicas(ABC):
    """One replica among others.

    Args:
        engine: its pipeline engine over a recommender.
        world: its place.
        section: of the config.
        mode: that the section names.
        clock: steps of the training so far.
        fragments: into which the layers are dealt.
    """

    _exchange: OuterExchange
    dealt_from: str = ""
    """What batches are dealt from, where they are dealt."""

    def __init__(
        self,
        engine: Any,
        world: ReplicaWorld,
        section: DataParallelConfig,
        mode: Mode,
        *,
        clock: int,
        fragments: int = 1,
    ) -> None:
        self.engine, self.world, self.mode, self.section = engine, world, mode, section
        self._clock, self._own = clock, int(engine.global_steps)
        layers, weights = layers_of_weights(engine), read_weights(engine)
        self._fragments: list[dict[int, list[str]]] = [{} for _ in range(fragments)]
        for weight in sorted(weights):
            self._fragments[layers[weight] % fragments].setdefault(layers[weight], []).append(weight)
        self.common = {weight: torch.nn.Parameter(value.clone()) for weight, value in weights.items()}
        self._outer = mode.outer_optimizer(self.common.values())
        self._flights: dict[int, Flight] = {}

    def join(self, name: str) -> None:
        """Form the outer group, of this name; collective over the replicas.

        Raises:
            ReplicaError: another replica has another model, plan or mode, or does not come.
        """
        self._exchange = OuterExchange(self.world, self.section.compression, self.mode, name=name)
        self._check_same()

    @property
    def place(self) -> tuple[int, int]:
        """Number of this replica, and of how many a global batch is made."""
        return self.world.number, self.world.count

    def begin(self) -> int:
        """Weights and counters are in their places, and the training begins or goes on; collective over the replicas.

        Returns:
            steps of the training, as all have seen them last.
        """
        return self.progress

    def last_seen(self, step: int) -> int:
        """Steps of the training that all have seen last, where this replica has seen ``step``."""
        return step

    def end(self) -> None:  # noqa: B027 (only replicas that come and go have somebody to tell)
        """The training is over: nothing is exchanged any more."""

    @property
    def progress(self) -> int:
        """Steps of the training, the same number on every replica whenever it changes what they do."""
        return self._clock + int(self.engine.global_steps) - self._own

    @abstractmethod
    def after_step(self, targets: int, seconds: float) -> None:
        """A step is over: what should leave leaves, what should land lands; collective over the replicas.

        Args:
            targets: of the step's micro-batches in this world, as far as this rank knows.
            seconds: that the step took.
        """

    @abstractmethod
    def meet(self) -> None:
        """Bring all replicas to the same weights now, whatever the mode; collective over the replicas."""

    def as_first(self, value: Any) -> Any:
        """What the first replica gives, for what all must decide alike; collective over the replicas."""
        return self._exchange.as_first(value)

    @contextmanager
    def in_common(self) -> Iterator[None]:
        """For the block, the engine has the common weights instead of its own."""
        own = {name: weight.clone() for name, weight in read_weights(self.engine).items()}
        write_weights(self.engine, {name: weight.detach() for name, weight in self.common.items()})
        try:
            yield
        finally:
            write_weights(self.engine, own)

    def state_dict(self) -> dict[str, Any]:
        """Behind a meeting: of the outer optimizer, by weight, and of what is exchanged."""
        outer = {name: dict(self._outer.state.get(weight, {})) for name, weight in self.common.items()}
        hook = self._exchange.hook
        return {"mode": self.mode.name, "outer": outer, "hook": hook.name, "exchange": hook.state_dict()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """The engine has been given its weights: all replicas have them in common. Without a state, which another mode has no use
        for, the outer optimizer begins anew."""
        self._flights.clear()
        for name, weight in read_weights(self.engine).items():
            self.common[name].data.copy_(weight)
        self._load_outer(state["outer"] if state is not None and state["mode"] == self.mode.name else {})
        if state is not None:
            self._load_left_out(state)

    def _load_outer(self, outer: dict[str, dict[str, Any]]) -> None:
        """What the outer optimizer keeps, by the names of weights."""
        self._outer.state.clear()
        for name, kept in outer.items():
            if name in self.common and kept:
                weight = self.common[name]
                moved = {key: value.to(weight.device) for key, value in kept.items() if isinstance(value, Tensor)}
                self._outer.state[weight] = {**kept, **moved}

    def _load_left_out(self, state: dict[str, Any]) -> None:
        """What a codec has left out of exchanges."""
        hook = self._exchange.hook
        if state["hook"] == hook.name and state["exchange"] and state["mode"] == self.mode.name:
            hook.load_state_dict(state["exchange"])
        elif state["hook"] != dense_hook(None).name:
            logger.warning(
                "what codec %r has left out of earlier exchanges belongs to another cut, mode or codec, and is not sent any "
                "more",
                state["hook"],
            )

    def at_rest(self) -> None:
        """All replicas have been given the same weights and counters, and nothing has been learned since."""
        self._clock = self._own = int(self.engine.global_steps)

    def deal(self, start: int, restarts: int) -> int:
        """Number of the next part of a global batch that nobody has taken yet; collective over this replica's world.

        Args:
            start: number of the first that is dealt out, counted from the start of the training.
            restarts: how often all have begun to deal from elsewhere.
        """
        return self._next_of(f"dealt/{restarts}", start)

    def _next_of(self, counter: str, start: int) -> int:
        number = start + self.world.store.add(counter, 1) - 1 if dist.get_rank() == 0 else 0
        told = torch.tensor([number], device=self.engine.device)
        dist.broadcast(told, 0)
        return int(told)

    def close(self) -> None:
        """Nothing is exchanged any more."""
        self._exchange.close()

    def _leave(self, part: int, header: Header) -> None:
        """Progress of a fragment leaves; targets and seconds of ``header`` are those that this rank knows."""
        owned = self._fragments[part]
        left = {
            name: weight.clone()
            for name, weight in read_weights(self.engine, [name for own in owned.values() for name in own]).items()
        }
        parts = [
            Part(
                torch.cat([(left[name] - self.common[name].detach()).reshape(-1) for name in own]).cpu(),  # gloo's
                tuple(self.common[name] for name in own),
                tuple(own),
                index,
            )
            for index, own in enumerate(owned.values())
        ]
        known = header.targets, header.seconds if dist.get_rank() == 0 else 0.0, header.waiting
        told = torch.tensor(known, dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(told)  # of this replica's world; only ranks that hold labels have counted
        targets, seconds, waiting = told.tolist()
        whole = Header(int(targets), header.steps, seconds, header.staleness, header.meeting, waiting > 0)
        self._flights[part] = Flight(self.engine.global_steps, left, self._exchange.begin(parts, whole))

    def _land(self, part: int) -> Mean | None:
        """Wait for the mean of a fragment, and follow it; None where there will be none."""
        step, flight = self.engine.global_steps, self._flights.pop(part)
        start = time.perf_counter()
        with self._exchange.named(f"that left behind step {flight.step}"):
            mean = flight.mean.result()
        waited = time.perf_counter() - start
        if any(header.targets for header in mean.headers):  # momentum alone does not move weights
            self._step_outer(part, mean, step)
        now = read_weights(self.engine, flight.left) if step > flight.step else flight.left
        write_weights(
            self.engine, {name: self.common[name].detach() + (now[name] - left) for name, left in flight.left.items()}
        )
        if events.observed():
            events.emit(
                events.ReplicaExchange(
                    step,
                    step - flight.step,
                    self._exchange.hook.name,
                    tuple(header.targets for header in mean.headers),
                    sum(own.numel() * own.element_size() for own in mean.parts),
                    mean.wire_bytes,
                    mean.seconds,
                    waited,
                    tuple(header.steps for header in mean.headers),
                    tuple(header.staleness for header in mean.headers),
                )
            )
        return mean

    def _step_outer(self, part: int, mean: Mean, step: int) -> None:
        for own, flat in zip(self._fragments[part].values(), mean.parts):
            if not torch.isfinite(flat).all():
                raise ReplicaError(
                    f"replica {self.world.number}: behind step {step} the mean progress of {own[0]} is not finite: replicas have "
                    f"diverged; a smaller learning rate, or fewer local steps, of mode {self.mode.name!r} may help"
                )
            for name, progress in zip(own, flat.split([self.common[name].numel() for name in own])):
                self.common[name].grad = progress.neg().view_as(self.common[name]).to(self.common[name].device)
        self._outer.step()
        self._outer.zero_grad(set_to_none=True)

    def _identity(self) -> tuple[Any, ...]:
        """What all replicas must have alike, in words."""
        return (
            self.section.model_dump_json(exclude={"timeout_s": True, "elastic": True}),
            f"cut {list(self.engine.recparallel.plan.partition.bounds)}",
            f"{self.engine.micro_batches} micro-batches of {self.engine.micro_batch_size}",
            {name: list(weight.shape) for name, weight in self.common.items()},
        )

    def _digest(self) -> str:
        """Of the common weights."""
        digest = hashlib.sha256()
        for name in sorted(self.common):
            digest.update(self.common[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _check_same(self) -> None:
        """Raises:
        ReplicaError: replicas could not exchange anything that makes sense.
        """
        own = *self._identity(), f"other initial weights (their digest is {self._digest()[:12]})"
        everyone = self._exchange.gather(own)
        for number, other in enumerate(everyone):
            for mine, theirs in zip(everyone[0], other):
                if mine != theirs:
                    raise ReplicaError(f"replica {number} is not like replica 0: it has {theirs}, replica 0 {mine}")


def common_weights(engine: Any) -> Any:
    """For a block, the weights that an engine's replicas have in common; its own where there is one world."""
    replicas = engine.recparallel.replicas
    return nullcontext() if replicas is None else replicas.in_common()
