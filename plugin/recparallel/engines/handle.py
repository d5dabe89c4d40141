"""What recparallel put on an engine: how to take it off, what is being executed, and what must be stored of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepspeed.runtime.pipe.engine import PipelineEngine

from recparallel.config import DataParallelConfig, RecParallelConfig
from recparallel.data_parallel.hook import BoundHook
from recparallel.engines.bindings import Bindings
from recparallel.engines.hook_state import HookState
from recparallel.engines.lazy_rows import LazyRows
from recparallel.engines.replica import Replicas
from recparallel.engines.replica_binding import bind_replicas, join_replicas
from recparallel.engines.replica_membership import Elastic
from recparallel.engines.replica_world import ReplicaWorld
from recparallel.engines.speed_shares import Shares
from recparallel.engines.stage_bindings import bind_stage
from recparallel.errors import ConfigError
from recparallel.plan import ParallelPlan, Partition


class Handle(HookState):
    """What recparallel put on one engine.

    Attributes:
        engine: the DeepSpeed engine.
        hook: the gradient hook, or None when DeepSpeed's own exchange runs.
        plan: what is being executed; None for an engine without a pipeline.
        checkpoint: the one that was written or loaded last; its step says whether it still holds what the engine does.
        rows: item tables that are trained beside DeepSpeed's optimizer; None without ``lazy_rows``.
        shares: rows of a micro-batch by replica, where they differ; else None.
        replicas: those that train apart, of which this engine is one; None in a single world.
        writing: tells whether a checkpoint is being written beside the training.
    """

    checkpoint: Path | None = None
    plan: ParallelPlan | None = None
    replicas: Replicas | None = None
    writing: Callable[[], bool] = staticmethod(lambda: False)
    _joined: int = 0

    def __init__(
        self,
        engine: Any,
        hook: BoundHook | None,
        section: RecParallelConfig,
        bindings: Bindings,
        *,
        rows: LazyRows | None = None,
        shares: Shares | None = None,
    ) -> None:
        self.engine, self.hook, self.rows, self.shares = engine, hook, rows, shares
        self._section, self._bindings, self._of_stage = section, bindings, Bindings()

    def bind_stage(self) -> None:
        """Put on what hangs on the layers that the stage holds, and take the plan down."""
        bind_stage(self.engine, self.hook, self._section, self.rows, self._of_stage)
        if isinstance(self.engine, PipelineEngine):
            self.plan = _plan_of(self.engine, self.hook)

    def join_replicas(self, world: ReplicaWorld | Elastic) -> None:
        """Exchange with others from the next step on; collective over the replicas, but for those that come and go."""
        self._join(world, self._section.data_parallel)
        bind_replicas(self.engine, self._bindings)

    def change_mode(self, to: dict[str, Any]) -> None:
        """Let replicas that train apart exchange in another mode from now on; collective. Momentum of the outer optimizer, and
        what a codec has left out, begin anew.

        Args:
            to: the mode and its options, as in the section ``data_parallel``.

        Raises:
            ConfigError: there are no such replicas, or the mode does not take these options.
        """
        if self.replicas is None or self._section.data_parallel.elastic is not None:
            raise ConfigError(
                "recparallel.data_parallel: replicas of one world, and those that come and go, have no other mode to change to"
            )
        self.meet()
        before = self.replicas
        self._join(before.world, before.section.changed(to))
        before.close()

    def _join(self, world: ReplicaWorld | Elastic, section: DataParallelConfig) -> None:
        self._joined += 1
        self.replicas = join_replicas(self.engine, world, section, clock=self.progress, name=f"outer {self._joined}")
        assert self.plan is not None
        self.plan = self.plan.model_copy(update={"data_parallel": self.replicas.mode.name, "replicas": world.count})

    @property
    def progress(self) -> int:
        """Steps of the training: the engine's, or, of replicas at their own pace, those of all of them by their number."""
        return int(self.engine.global_steps) if self.replicas is None else self.replicas.progress

    def begin(self) -> int:
        """Weights and counters are in their places, and training begins or goes on; replicas that come and go join the others here.
        Collective. Steps of the training, as all have seen them last."""
        return self.progress if self.replicas is None else self.replicas.begin()

    def last_seen(self, step: int) -> int:
        """Steps of the training that all have seen last, where this replica has seen ``step``: one that was left behind, and has
        caught up, goes on where the others are."""
        return step if self.replicas is None else self.replicas.last_seen(step)

    def end(self) -> None:
        """The training is over: no replica joins any more."""
        if self.replicas is not None:
            self.replicas.end()

    def as_first(self, value: Any) -> Any:
        """What the first of replicas that train apart gives; collective. Without such replicas the value itself."""
        return value if self.replicas is None else self.replicas.as_first(value)

    def meet(self) -> None:
        """Bring replicas that train apart to the same weights; collective."""
        if self.replicas is not None:
            self.replicas.meet()

    def unbind_stage(self) -> None:
        """Take it off, so that the layers can change."""
        self._of_stage.remove()

    def remove(self) -> None:
        """Leave the engine as it was before. A second call does nothing."""
        self.unbind_stage()
        self._bindings.remove()


def _plan_of(engine: Any, hook: BoundHook | None) -> ParallelPlan:
    module = engine.module
    partition = getattr(module, "partition", None) or Partition(
        bounds=tuple(map(int, module.parts)), method="deepspeed"
    )
    return ParallelPlan(
        pipeline=engine.grid.pipe_parallel_size,
        tensor=engine.grid.model_parallel_size,
        data=engine.grid.data_parallel_size,
        partition=partition,
        micro_batch=engine.micro_batch_size,
        num_micro_batches=engine.micro_batches,
        compression="none" if hook is None else hook.name,
        zero_stage=engine.zero_optimization_stage(),
        dtype=str(engine.get_data_types()[0]).removeprefix("torch."),
    )
