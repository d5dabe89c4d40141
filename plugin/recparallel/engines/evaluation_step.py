"""What recparallel adds around ``PipelineEngine.eval_batch``: any batch size, and the mean over targets.

DeepSpeed keeps the buffers of the shape that it saw first, and adds the losses of a call to those of the call before.
So a short last batch fails, and a second evaluation is wrong.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional

from recparallel.data.batching import PackedBatch
from recparallel.engines.bindings import Bindings
from recparallel.engines.positions import agree_on_positions
from recparallel.engines.spread_head import whole_head
from recparallel.engines.training_step import counted_targets
from recparallel.errors import ConfigError
from recparallel.models.losses import IGNORE


def bind_evaluation_step(engine: Any, bindings: Bindings) -> None:
    """Wrap ``eval_batch`` of a pipeline engine.

    Micro-batches of one call are filled up to the largest with rows without targets; buffers are made anew before and
    after the call, so its shape may differ from that of training and of other calls.
    """
    original = engine.eval_batch

    def eval_batch(data_iter: Any, *args: Any, num_micro_batches: int | None = None, **kwargs: Any) -> Any:
        count = engine.micro_batches if num_micro_batches is None else num_micro_batches
        batches = None
        if engine.is_first_stage() or engine.is_last_stage():
            batches = [next(data_iter) for _ in range(count)]
            if any(isinstance(batch, PackedBatch) for batch in batches):
                raise ConfigError("packed micro-batches are for training; eval_batch takes rows of one history each")
            batches = _filled_up(batches)
        agree_on_positions(engine, batches)
        engine.total_loss = None
        engine.reset_activation_shape()
        with counted_targets(engine, batches, count), whole_head(engine):
            result = original(
                None if batches is None else iter(batches), *args, num_micro_batches=num_micro_batches, **kwargs
            )
        engine.reset_activation_shape()
        return result

    bindings.bind(engine, "eval_batch", eval_batch)


def _filled_up(batches: list[Any]) -> list[Any]:
    """Micro-batches (inputs, labels) of plain tensors, all with as many rows as the largest; others as they are."""
    if not all(isinstance(part, Tensor) for batch in batches for part in batch):
        return batches
    rows = max(len(inputs) for inputs, _ in batches)
    return [(_pad_rows(inputs, rows, value=0), _pad_rows(labels, rows, value=IGNORE)) for inputs, labels in batches]


def _pad_rows(tensor: Tensor, rows: int, *, value: int) -> Tensor:
    missing = rows - len(tensor)
    return functional.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, missing), value=value) if missing else tensor
