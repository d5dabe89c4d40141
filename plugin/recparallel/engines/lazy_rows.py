"""Item tables that a DeepSpeed pipeline trains by the rows which a step has touched (``recparallel.lazy_rows``).

DeepSpeed does not know that these tables are trained: they require no gradient, so no bucket, no flat piece and no norm of its own
holds them. In a step

1. look-ups read rows that are up to date, and keep their gradients by rows (``models/row_gradients.py``);
2. replicas, then the stages of a tied table, add up these rows (``collectives/rows.py``), and hold the same;
3. the norm by which gradients are clipped counts them, and they are clipped with the others (``clipping.py``);
4. where DeepSpeed steps its optimizer, a row-wise AdamW with its settings steps the tables (``optimizers/row_adamw.py``).

Before an evaluation, and where weights leave the engine, all rows are brought up to date.
"""

import time
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.pipe.schedule import ReduceTiedGrads
from torch import Tensor

from recparallel import events
from recparallel.collectives.rows import sum_rows
from recparallel.engines.bindings import Bindings
from recparallel.engines.bucket_exchange import NO_BUCKET
from recparallel.errors import ConfigError
from recparallel.models.layers import ItemEmbedding, NextItemHead
from recparallel.models.recommender import Recommender
from recparallel.models.row_gradients import KEEPER, SummedRows
from recparallel.optimizers.idle_steps import AdamWSettings
from recparallel.optimizers.row_adamw import RowAdamW
from recparallel.plan import LayerKind


class LazyRows:
    """The tables of one stage.

    Args:
        engine: a pipeline engine over a pipeline with ``lazy_tables``.
        group: over which replicas average gradients.
    """

    def __init__(self, engine: Any, group: dist.ProcessGroup) -> None:
        self._engine = engine
        ties = {id(weight): group for weight, group in engine.module.get_tied_weights_and_groups()}
        kept = engine.module.row_optimizers  # there already where an earlier handle was taken off
        for weight in engine.module.lazy_tables:
            if weight not in kept:
                kept[weight] = RowAdamW(weight)
        self._tables = [_Table(weight, optimizer, group, ties.get(id(weight))) for weight, optimizer in kept.items()]

    def bind(self, bindings: Bindings) -> None:
        """Put on what does not hang on the layers of the stage."""
        for table in self._tables:
            bindings.bind(table.weight, KEEPER, table.keeper)
        evaluate, take_step = self._engine.eval_batch, self._engine._take_model_step

        def eval_batch(*args: Any, **kwargs: Any) -> Any:
            self.settle()
            return evaluate(*args, **kwargs)

        def take_model_step(*args: Any, **kwargs: Any) -> None:
            settings = AdamWSettings.of(
                self._engine.optimizer.param_groups[0]
            )  # a scheduler changes them behind the step
            skipped = self._engine.skipped_steps
            take_step(*args, **kwargs)
            for table in self._tables:
                if self._engine.skipped_steps == skipped:
                    table.optimizer.step(*table.gradient, settings)
                table.gradient = table.keeper.take()

        bindings.bind(self._engine, "eval_batch", eval_batch)
        bindings.bind(self._engine, "_take_model_step", take_model_step)
        bindings.on_remove(self.settle)

    def bind_exchange(self, bindings: Bindings) -> None:
        """Put on what adds up gradients when a pipeline's backward passes are over."""
        reduce = self._engine._INSTRUCTION_MAP[ReduceTiedGrads]

        def add_up_and_reduce(engine: Any) -> None:
            for table in self._tables:
                table.add_up()
            reduce(engine)

        bindings.bind(
            self._engine, "_INSTRUCTION_MAP", {**self._engine._INSTRUCTION_MAP, ReduceTiedGrads: add_up_and_reduce}
        )

    def gradients(self) -> list[tuple[Tensor, Tensor]]:
        """The tables, and what of this step's gradient is not zero (U, D): to be scaled in place."""
        return [(table.weight, table.gradient[1]) for table in self._tables]

    def optimizer_of(self, weight: Tensor) -> RowAdamW | None:
        """That of a table; None for another weight."""
        return next((table.optimizer for table in self._tables if table.weight is weight), None)

    def settle(self) -> None:
        """Bring all rows of all tables up to date."""
        for table in self._tables:
            table.optimizer.settle()


class _Table:
    """One table on one rank.

    Args:
        weight: (S, D), this rank's rows.
        optimizer: theirs.
        replicas: over which gradients are averaged.
        copies: the stages that hold the table; None if one does.
    """

    def __init__(
        self, weight: Tensor, optimizer: RowAdamW, replicas: dist.ProcessGroup, copies: dist.ProcessGroup | None
    ) -> None:
        self.weight, self.optimizer, self._replicas, self._copies = weight, optimizer, replicas, copies
        self.keeper = SummedRows(weight, self.optimizer.current)
        self.gradient = self.keeper.take()

    def add_up(self) -> None:
        """Average this step's gradient over replicas, and sum it over copies. Rows travel in the weights' type, as dense gradients
        do; sums are exact. Collective."""
        rows_U, values_UD = self.keeper.take()
        world = dist.get_world_size(self._replicas)
        if world > 1:
            rows_U, values_UD, sent, seconds = self._summed(rows_U, values_UD, self._replicas)
            values_UD.mul_(1.0 / world)
            events.emit(events.Exchange(NO_BUCKET, "rows", self._dense_bytes, sent, seconds))
        if self._copies is not None and dist.get_world_size(self._copies) > 1:
            rows_U, values_UD, sent, seconds = self._summed(rows_U, values_UD, self._copies)
            events.emit(events.TiedExchange("rows", self._dense_bytes, sent, seconds))
        self.gradient = rows_U, values_UD

    @property
    def _dense_bytes(self) -> int:
        return self.weight.numel() * self.weight.element_size()

    def _summed(self, rows_U: Tensor, values_UD: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, int, float]:
        start = time.perf_counter()
        rows_U, values_UD, sent = sum_rows(rows_U, values_UD.to(self.weight.dtype), group)
        return rows_U, values_UD, sent, time.perf_counter() - start


def lazy_kinds(recommender: Recommender) -> tuple[LayerKind, ...]:
    """Which layers of a model have a table of which a step reads few rows.

    Raises:
        ConfigError: none has, or one that has is tied to one that has not.
    """
    if not issubclass(recommender.layers[0].module_class, ItemEmbedding):
        raise ConfigError("recparallel.lazy_rows is for item tables, this model embeds its own tokens; set it to false")
    if recommender.loss_fn.reads_rows:
        return ("embedding", "head")
    if recommender.tied:
        raise ConfigError(
            f"recparallel.lazy_rows with a tied table and the loss {type(recommender.loss_fn).__name__}, which reads all of "
            "its rows in every step; use sampled_softmax, in_batch_softmax or gbce, or untie the head"
        )
    return ("embedding",)


def trains_lazy_rows(module: Any, *, asked: bool) -> bool:
    """Whether the item tables of an engine's module are ours to train.

    Args:
        asked: by the config.

    Raises:
        ConfigError: the config says so, and DeepSpeed's optimizer trains them, or the other way round nobody would.
    """
    built = bool(getattr(module, "lazy_kinds", ()))
    if built and not asked:
        raise ConfigError(
            "recparallel.lazy_rows is false, but this engine was built with it, and its optimizer has no item tables: nobody would "
            "train them"
        )
    if asked and not built:
        raise ConfigError(
            "recparallel.lazy_rows is true, but DeepSpeed's optimizer of this engine trains the item tables; build it by "
            "recparallel.initialize with a Recommender and the same config"
        )
    return built


def let_rows_be_lazy(module: torch.nn.Module, kinds: tuple[LayerKind, ...]) -> list[Tensor]:
    """Take the item tables of a stage, those of ``kinds`` of layers, out of what DeepSpeed trains; returns them."""
    classes = tuple(kind for kind, name in ((ItemEmbedding, "embedding"), (NextItemHead, "head")) if name in kinds)
    weights = {id(m.weight): m.weight for m in module.modules() if isinstance(m, classes) and m.weight.requires_grad}
    for weight in weights.values():
        weight.requires_grad_(False)
    return list(weights.values())
