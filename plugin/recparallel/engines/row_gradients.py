"""Hand the gradients of looked-up rows over to the table's own, once a step, before anything is exchanged."""

from typing import Any

from deepspeed.runtime.pipe.schedule import ReduceTiedGrads

from recparallel.engines.bf16_accumulation import adds_up_natively
from recparallel.engines.bindings import Bindings
from recparallel.models.layers import ItemEmbedding
from recparallel.models.row_gradients import KEEPER, RowGradients


def bind_row_gradients(engine: Any, bindings: Bindings) -> None:
    """Let look-ups in item tables keep their gradients by rows, where nothing waits for the table's gradient within a step: without
    ZeRO, in fp32, or in bf16 that autograd adds up."""
    if engine.zero_optimization() or engine.fp16_enabled():
        return
    if engine.bfloat16_enabled() and not adds_up_natively(engine.optimizer):
        return
    tables = {module.weight for module in engine.module.modules() if isinstance(module, ItemEmbedding)}
    keepers = {table: RowGradients(table) for table in tables if table.requires_grad}
    for table, keeper in keepers.items():
        bindings.bind(table, KEEPER, keeper)
    reduce = engine._INSTRUCTION_MAP[ReduceTiedGrads]

    def hand_over_and_reduce(engine: Any) -> None:
        for keeper in keepers.values():
            keeper.hand_over()
        reduce(engine)

    bindings.bind(engine, "_INSTRUCTION_MAP", {**engine._INSTRUCTION_MAP, ReduceTiedGrads: hand_over_and_reduce})
