"""Put replicas that train apart on an engine."""

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from recparallel import registry
from recparallel.config import DataParallelConfig
from recparallel.data.markers import IGNORE
from recparallel.data_parallel.in_rounds import of_those_that_come_and_go
from recparallel.data_parallel.mode import Lockstep, Mode, OwnPace
from recparallel.engines.bindings import Bindings
from recparallel.engines.replica import Replicas
from recparallel.engines.replica_elastic import ElasticReplicas
from recparallel.engines.replica_lockstep import LockstepReplicas
from recparallel.engines.replica_membership import Elastic
from recparallel.engines.replica_own_pace import OwnPaceReplicas
from recparallel.engines.replica_world import ReplicaWorld
from recparallel.errors import ConfigError


def make_mode(section: DataParallelConfig, *, replicas: int) -> Mode:
    """The mode that the config names.

    Args:
        replicas: their number.

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
    made.check_replicas(replicas, come_and_go=section.elastic is not None)
    return made if section.elastic is None else of_those_that_come_and_go(made)


def join_replicas(
    engine: Any, world: ReplicaWorld | Elastic, section: DataParallelConfig, *, clock: int, name: str
) -> Replicas:
    """Begin as one of them; collective over the replicas, but for those that come and go.

    Args:
        clock: steps of the training so far, which may be others than this replica's own.
        name: of the outer group.

    Raises:
        ConfigError: the mode's options are wrong.
        ReplicaError: another replica is not like this one, or does not come.
    """
    mode = make_mode(section, replicas=world.count)
    if isinstance(world, Elastic):
        assert isinstance(mode, OwnPace), mode
        return ElasticReplicas(engine, world, section, mode, clock=clock)
    made: Replicas
    if isinstance(mode, OwnPace):
        made = OwnPaceReplicas(engine, world, section, mode, clock=clock)
    else:
        assert isinstance(mode, Lockstep), mode
        made = LockstepReplicas(engine, world, section, mode, clock=clock)
    made.join(name)
    return made


def bind_replicas(engine: Any, bindings: Bindings) -> None:
    """Let replicas exchange behind the steps of ``engine``."""
    original: Callable[..., Tensor] = engine.train_batch

    def train_batch(data_iter: Any = None) -> Tensor:
        engine.recparallel.replicas.begin()
        start = time.perf_counter()
        source = data_iter if data_iter is not None else engine.data_iterator
        given = None if source is None else [next(source) for _ in range(engine.micro_batches)]
        before = engine.data_iterator, engine.training_dataloader
        try:
            loss = original(None if given is None else iter(given))
        finally:
            engine.data_iterator, engine.training_dataloader = before
        # Every rank of a last stage has labels of its own; tensor ranks, which would have the same, are refused.
        counted = given is not None and engine.is_last_stage()
        targets = sum(int((batch[1] != IGNORE).sum()) for batch in given or []) if counted else 0
        engine.recparallel.replicas.after_step(targets, time.perf_counter() - start)
        return loss

    bindings.bind(engine, "train_batch", train_batch)
    bindings.on_remove(lambda: engine.recparallel.replicas.close())
