"""Replicas that train apart, each an engine in a world of its own, and exchange what their weights have moved by.

All replicas hold the same *common* weights beside their own. Behind some steps a replica's progress, its weights less the common
ones, leaves for an exchange over the *outer group*: the ranks that hold the same layers in all replicas. When the mean of all
replicas' progress lands, the common weights follow it by the mode's outer optimizer, and a replica goes on from them, with what it
has learned since on top. When progress leaves and lands is the mode's (``data_parallel/mode.py``); an exchange that lands later
runs in a thread, beside the steps.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel import events, registry
from recparallel.collectives.bucket import Bucket
from recparallel.config import DataParallelConfig
from recparallel.data.markers import IGNORE
from recparallel.data_parallel.configured import configured_hook
from recparallel.data_parallel.mode import Mode
from recparallel.data_parallel.synchronous import dense_hook
from recparallel.engines.bindings import Bindings
from recparallel.engines.engine_state import layers_of_weights, read_weights, write_weights
from recparallel.engines.replica_world import ReplicaWorld, outer_group
from recparallel.errors import ConfigError, ReplicaError

logger = logging.getLogger(__name__)


def make_mode(section: DataParallelConfig) -> Mode:
    """The mode that the config names.

    Raises:
        ConfigError: it does not take these options.
    """
    kind = registry.modes.load(section.mode, where="recparallel.data_parallel.mode")
    try:
        made: Mode = kind(**section.options)
    except TypeError as error:
        raise ConfigError(
            f"recparallel.data_parallel: mode {section.mode!r} does not take {section.options}: {error}"
        ) from error
    return made


@dataclass(frozen=True)
class _Mean:
    """What an exchange gives: mean progress by bucket, targets of each replica, bytes that this rank sent, and seconds."""

    buckets: list[Tensor]
    targets: tuple[int, ...]
    wire_bytes: int
    seconds: float


@dataclass
class _Flight:
    """Progress on its way: behind which step it left, what this replica's weights were then, and the mean to come."""

    step: int
    left: dict[str, Tensor]
    mean: Future[_Mean]


@dataclass
class Replicas:
    """One replica among others.

    Args:
        engine: its pipeline engine over a recommender.
        world: its place.
        section: of the config.

    Raises:
        ReplicaError: another replica has another model, plan or mode, or does not come.
    """

    engine: Any
    world: ReplicaWorld
    section: DataParallelConfig
    _flights: dict[int, _Flight] = field(default_factory=dict)
    _targets: int = 0
    _left_with: dict[int, int] = field(default_factory=dict)
    _left_at: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mode = make_mode(self.section)
        self._thread = ThreadPoolExecutor(1, "replicas")
        layers, weights = layers_of_weights(self.engine), read_weights(self.engine)
        self._fragments: list[dict[int, list[str]]] = [{} for _ in range(self.mode.fragments)]
        for name in sorted(weights):
            self._fragments[layers[name] % self.mode.fragments].setdefault(layers[name], []).append(name)
        self.common = {name: torch.nn.Parameter(weight.clone()) for name, weight in weights.items()}
        self._outer = self.mode.outer_optimizer(self.common.values())
        with self._named("before the first step"):
            self._group = outer_group(self.world, "outer")
            self._check_same()
        hook = configured_hook(self.section.compression, self._group)
        self._hook = dense_hook(self._group) if hook is None else hook

    def after_step(self, targets: int) -> None:
        """A step is over: what should leave leaves, what should land lands; collective over the replicas.

        Args:
            targets: of the step's micro-batches in this world, as far as this rank knows.
        """
        step = self.engine.global_steps
        self._targets += targets
        self._land(step, [part for part, flight in self._flights.items() if step - flight.step >= self.mode.delay])
        for part in self.mode.leaving(step):
            self._leave(part, step)
        if not self.mode.delay:
            self._land(step, list(self._flights))

    def meet(self) -> None:
        """Bring all replicas to the same weights now, whatever the mode; collective over the replicas."""
        step = self.engine.global_steps
        self._land(step, list(self._flights))
        for part in range(self.mode.fragments):
            if self._left_at.get(part) != step:  # an outer optimizer with momentum would move on by itself
                self._leave(part, step)
        self._land(step, list(self._flights))

    def as_first(self, value: Any) -> Any:
        """What the first replica gives, for what all must decide alike; collective over the replicas."""
        told = [value]
        with self._named("of a decision"):
            # In the thread, behind what is on its way: two threads would mix their messages up.
            self._thread.submit(dist.broadcast_object_list, told, group=self._group, group_src=0).result()
        return told[0]

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
        return {"mode": self.mode.name, "outer": outer, "hook": self._hook.name, "exchange": self._hook.state_dict()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """The engine has been given its weights: all replicas have them in common. Without a state, which another mode has no use
        for, the outer optimizer begins anew."""
        self._flights.clear()
        self._left_with.clear()
        self._targets = 0
        for name, weight in read_weights(self.engine).items():
            self.common[name].data.copy_(weight)
        self._outer.state.clear()
        if state is not None and state["mode"] == self.mode.name:
            for name, kept in state["outer"].items():
                if name in self.common and kept:
                    weight = self.common[name]
                    moved = {key: value.to(weight.device) for key, value in kept.items() if isinstance(value, Tensor)}
                    self._outer.state[weight] = {**kept, **moved}
            if state["hook"] == self._hook.name and state["exchange"]:
                self._hook.load_state_dict(state["exchange"])
            elif state["hook"] != dense_hook(None).name:
                logger.warning(
                    "what codec %r has left out of earlier exchanges belongs to another cut or codec, and is not sent any more",
                    state["hook"],
                )

    def at_rest(self) -> None:
        """Nothing has been learned since the last exchange."""
        self._left_at = dict.fromkeys(range(self.mode.fragments), self.engine.global_steps)

    def close(self) -> None:
        """Nothing is exchanged any more."""
        self._thread.shutdown()

    def _leave(self, part: int, step: int) -> None:
        names = [name for layer in self._fragments[part].values() for name in layer]
        left = {name: weight.clone() for name, weight in read_weights(self.engine, names).items()}
        buckets = [
            torch.cat([(left[name] - self.common[name].detach()).reshape(-1) for name in own]).cpu()  # gloo's
            for own in self._fragments[part].values()
        ]
        count = torch.tensor(self._targets - self._left_with.get(part, 0), device=self.engine.device)
        dist.all_reduce(count)  # of this replica's world; only ranks that hold labels have counted
        self._left_with[part], self._left_at[part] = self._targets, step
        self._flights[part] = _Flight(step, left, self._thread.submit(self._exchange, part, buckets, int(count)))

    def _exchange(self, part: int, buckets: list[Tensor], targets: int) -> _Mean:
        start = time.perf_counter()
        everyone = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world.count)]
        dist.all_gather(everyone, torch.tensor([targets]), group=self._group)
        counts = tuple(int(count) for count in everyone)
        weight = targets * len(counts) / sum(counts) if sum(counts) else 1.0
        means, sent = [], 0
        for index, (own, flat) in enumerate(zip(self._fragments[part].values(), buckets)):
            weights = tuple(self.common[name] for name in own)
            bucket = Bucket(flat.mul_(weight), weights, tuple(own), index, index == len(buckets) - 1)
            mean: Any = self._hook(bucket).wait()
            means.append(mean[0] if isinstance(mean, (list, tuple)) else mean)
            sent += self._hook.wire_bytes(bucket)
        self._hook.step_done(made=True)
        return _Mean(means, counts, sent, time.perf_counter() - start)

    def _land(self, step: int, parts: list[int]) -> None:
        for part in parts:
            flight = self._flights.pop(part)
            start = time.perf_counter()
            with self._named(f"that left behind step {flight.step}"):
                mean = flight.mean.result()
            waited = time.perf_counter() - start
            self._step_outer(part, mean, step)
            now = read_weights(self.engine, flight.left) if step > flight.step else flight.left
            write_weights(
                self.engine,
                {name: self.common[name].detach() + (now[name] - left) for name, left in flight.left.items()},
            )
            if events.observed():
                dense = sum(bucket.numel() * bucket.element_size() for bucket in mean.buckets)
                events.emit(
                    events.ReplicaExchange(
                        step,
                        step - flight.step,
                        self._hook.name,
                        mean.targets,
                        dense,
                        mean.wire_bytes,
                        mean.seconds,
                        waited,
                    )
                )

    def _step_outer(self, part: int, mean: _Mean, step: int) -> None:
        for own, flat in zip(self._fragments[part].values(), mean.buckets):
            if not torch.isfinite(flat).all():
                raise ReplicaError(
                    f"replica {self.world.number}: behind step {step} the mean progress of {own[0]} is not finite: replicas have "
                    f"diverged; a smaller learning rate, or fewer local steps, of mode {self.mode.name!r} may help"
                )
            for name, progress in zip(own, flat.split([self.common[name].numel() for name in own])):
                self.common[name].grad = progress.neg().view_as(self.common[name]).to(self.common[name].device)
        self._outer.step()
        self._outer.zero_grad(set_to_none=True)

    def _check_same(self) -> None:
        """Raises:
        ReplicaError: replicas could not exchange anything that makes sense.
        """
        plan = self.engine.recparallel.plan
        own = (
            self.section.model_dump_json(),
            f"cut {list(plan.partition.bounds)}",
            {name: list(weight.shape) for name, weight in self.common.items()},
        )
        everyone: list[Any] = [None] * self.world.count
        dist.all_gather_object(everyone, own, group=self._group)
        for number, other in enumerate(everyone):
            for mine, theirs in zip(everyone[0], other):
                if mine != theirs:
                    raise ReplicaError(f"replica {number} is not like replica 0: it has {theirs}, replica 0 {mine}")

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            if isinstance(error, ReplicaError):
                raise
            raise ReplicaError(
                f"replica {self.world.number} of {self.world.count}: the exchange {what} failed: another replica has gone, or has "
                f"not come within {self.world.timeout.total_seconds():.0f} s (recparallel.data_parallel.timeout_s): {error}"
            ) from error


def common_weights(engine: Any) -> Any:
    """For a block, the weights that an engine's replicas have in common; its own where there is one world."""
    replicas = engine.recparallel.replicas
    return nullcontext() if replicas is None else replicas.in_common()


def bind_replicas(engine: Any, replicas: Replicas, bindings: Bindings) -> None:
    """Let replicas exchange behind the steps of ``engine``."""
    original: Callable[..., Tensor] = engine.train_batch

    def train_batch(data_iter: Any = None) -> Tensor:
        source = data_iter if data_iter is not None else engine.data_iterator
        given = None if source is None else [next(source) for _ in range(engine.micro_batches)]
        before = engine.data_iterator, engine.training_dataloader
        try:
            loss = original(None if given is None else iter(given))
        finally:
            engine.data_iterator, engine.training_dataloader = before
        # Every rank of a last stage has labels of its own; tensor ranks, which would have the same, are refused.
        counted = given is not None and engine.is_last_stage()
        replicas.after_step(sum(int((batch[1] != IGNORE).sum()) for batch in given or []) if counted else 0)
        return loss

    bindings.bind(engine, "train_batch", train_batch)
    bindings.on_remove(replicas.close)
