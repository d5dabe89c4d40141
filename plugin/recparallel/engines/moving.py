"""Move layers of a running pipeline to other stages: weights, optimizer state and residuals, in memory, between two steps.

1. Every rank says what leaves it, packs it, and builds the layers that come to it.
2. What moves crosses to its new rank: from each replica and each tensor rank to its counterpart.
3. Each stage puts its layers in order, and the optimizer around them.

A rank that fails in 1 leaves everything as it was; one that fails in 3 makes all of them put back what they had. What fails while
ranks talk to each other (in 2, and where replicas put their shards together) ends the job, as in a training step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn

from recparallel.engines.agreement import Ranks
from recparallel.engines.engine_state import check_storable, collect_parts, names_of_layer, restore
from recparallel.engines.optimizer_swap import forget_others, is_changed_in_place, let_it_train
from recparallel.engines.packing import Description, describe, pack, unpack
from recparallel.engines.stage_layers import build_layer, layers_of, properties, rearrange
from recparallel.errors import ConfigError, MoveError, RecParallelError
from recparallel.plan import Partition

_MIB = 2**20

Tensors = dict[str, Tensor]


def check_movable(engine: Any) -> None:
    """Refuse an engine whose layers could not be moved, when it is made.

    Raises:
        ConfigError: says what stands in the way.
        CheckpointError: the state of its optimizer cannot be read.
    """
    check_storable(engine)
    where = "partition method 'adaptive'"
    if (groups := len(engine.optimizer.param_groups)) != 1:
        raise ConfigError(f"{where} with {groups} groups of parameters in the optimizer; it runs with one")
    hook = engine.recparallel.hook
    if hook is not None and hook.by_parameter() is None:
        raise ConfigError(f"{where} with gradient hook {hook.name!r}: what it keeps is not known by parameter")


def move_layers(engine: Any, target: Partition, *, group: dist.ProcessGroup | None = None) -> int:
    """Let the pipeline run another cut. Every rank calls, between two steps, with the same cut.

    Args:
        engine: a pipeline engine over a recommender, of which :func:`check_movable` thinks well.
        target: the cut. Stages stay on the devices on which they are.
        group: in which ranks agree; all of the job.

    Returns:
        bytes that this rank sent.

    Raises:
        MoveError: on every rank; the pipeline runs its old cut.
    """
    ranks = Ranks(group, error=MoveError)
    now: Partition = engine.module.partition
    _check_agreed(ranks.gather(lambda: _check(engine, now, target)), target)
    leaving, arriving = _routes(engine, now, target)

    before, contents = _collect(engine, ranks, [route.layer for route in leaving])
    told = ranks.gather(
        lambda: {layer: _Message(properties(before.modules[layer]), describe(own)) for layer, own in contents.items()}
    )
    coming = {route.layer: told[route.source][route.layer] for route in arriving}

    def prepare() -> tuple[dict[int, Tensor], dict[int, nn.Module], dict[int, Tensor]]:
        _check_room(engine, sum(message.packed.num_bytes for message in coming.values()))
        outgoing = {layer: pack(own, engine.device) for layer, own in contents.items()}
        modules = {layer: build_layer(engine.module, layer, message.like) for layer, message in coming.items()}
        return outgoing, modules, {layer: message.packed.empty(engine.device) for layer, message in coming.items()}

    outgoing, modules, incoming = ranks.together(prepare)
    _exchange(leaving, outgoing, arriving, incoming)

    def install() -> None:
        received = {
            name: value for layer in incoming for name, value in unpack(incoming[layer], coming[layer].packed).items()
        }
        _install(engine, before.changed(target, engine.stage_id, modules, received))

    failure = ""
    try:
        ranks.together(install)
    except MoveError as error:
        failure = str(error)  # not the error itself: its frames hold what did not fit
    if failure:
        # A rank that cannot go back has no stage any more: that is no MoveError, and ends the job.
        Ranks(group, error=RecParallelError).together(lambda: _install(engine, before))
    forget_others(engine)
    if failure:
        raise MoveError(failure)
    return sum(message.numel() for message in outgoing.values())


@dataclass(frozen=True)
class _Route:
    """One layer's way between the two ranks of this replica and this tensor rank."""

    layer: int
    source: int
    destination: int


def _routes(engine: Any, now: Partition, target: Partition) -> tuple[list[_Route], list[_Route]]:
    """What leaves this rank, and what comes to it, in the order of the layers."""
    routes = []
    for layer in range(now.num_layers):
        here, there = (int(engine.grid.stage_to_global(stage_id=cut.stage_of(layer))) for cut in (now, target))
        if here != there:
            routes.append(_Route(layer, here, there))
    own = dist.get_rank()
    return [route for route in routes if route.source == own], [route for route in routes if route.destination == own]


def _collect(engine: Any, ranks: Ranks, leaving: list[int]) -> tuple["_Holding", dict[int, Tensors]]:
    """What this rank has, and what of it leaves with each layer."""

    def collect() -> tuple[_Holding, dict[int, Tensors]]:
        holding = _Holding.of(engine)
        return holding, holding.contents(engine, leaving)

    # A rank that fails among replicas which put their pieces together must not go on to another message.
    return collect() if engine.grid.data_parallel_size > 1 else ranks.together(collect)


def _check_agreed(told: list[dict[str, Any]], target: Partition) -> None:
    """All ranks must move to the same cut, and no stage may be left without anything to train."""
    for rank, theirs in enumerate(told):
        if theirs["bounds"] != told[0]["bounds"]:
            raise MoveError(
                f"rank 0 was told to move to {list(told[0]['bounds'])}, rank {rank} to {list(theirs['bounds'])}"
            )
    trained = {layer for theirs in told for layer in theirs["trained"]}
    for stage in range(target.num_stages):
        if trained.isdisjoint(layers_of(target, stage)):
            raise MoveError(f"the cut {list(target.bounds)} leaves stage {stage} without parameters that are trained")


def _check(engine: Any, now: Partition, target: Partition) -> dict[str, Any]:
    """Refuse what cannot be; what this rank was told, and which of its layers are trained."""
    check_movable(engine)
    if (target.num_stages, target.num_layers, target.virtual) != (now.num_stages, now.num_layers, now.virtual):
        raise MoveError(
            f"the cut {list(target.bounds)} is not one of {now.num_layers} layers into {now.num_stages} stages"
        )
    if target.device_order != now.device_order or target.spread or now.spread:
        raise MoveError("a move changes the bounds of stages alone, not their devices, and no layer that stages share")
    if empty := [stage for stage in range(target.num_stages) if not layers_of(target, stage)]:
        raise MoveError(f"the cut {list(target.bounds)} leaves stage {empty[0]} without layers")
    for number, layer in enumerate(engine.module.recommender.layers):
        if layer.tie is not None and now.stage_of(number) != target.stage_of(number):
            raise MoveError(f"layer {layer.name} shares its weights with others and would change its stage")
    own = zip(layers_of(now, engine.stage_id), engine.module.forward_funcs)
    return {"bounds": target.bounds, "trained": [number for number, call in own if _is_trained(call)]}


def _is_trained(call: Any) -> bool:
    """Of a layer's module, or of a tied one behind a ``partial``."""
    module = call.args[0] if isinstance(call, partial) else call
    return any(parameter.requires_grad for parameter in module.parameters())


def _check_room(engine: Any, arriving: int) -> None:
    """What comes is held twice until the optimizer has it. Memory that torch keeps on a device counts as free."""
    accelerator = get_accelerator()
    free = accelerator.available_memory()
    if engine.device.type != "cpu":
        free += accelerator.memory_reserved() - accelerator.memory_allocated()
    if 2 * arriving > free:
        raise MoveError(
            f"the layers that would come need {2 * arriving / _MIB:,.0f} MiB for the move, and {free / _MIB:,.0f} MiB are free"
        )


@dataclass(frozen=True)
class _Message:
    """What a layer's new rank must know ahead: dtypes of its module, and what travels in which order."""

    like: Mapping[str, tuple[torch.dtype, bool]]
    packed: Description


@dataclass(frozen=True)
class _Holding:
    """What a stage holds.

    Attributes:
        partition: the cut of which it is a part.
        modules: of layers that have one of their own, by number.
        state: weights and optimizer state that must be put in when the stage is installed. Of an optimizer that is changed in
            place that is nothing: they stay where they are.
        residuals: of the gradient hook, by the pipeline's names of the weights.
    """

    partition: Partition
    modules: dict[int, nn.Module]
    state: Tensors
    residuals: Tensors

    @classmethod
    def of(cls, engine: Any) -> "_Holding":
        """What this rank holds now. All replicas call: they put their pieces together."""
        pipeline = engine.module
        children = dict(pipeline.named_children())
        numbers = layers_of(pipeline.partition, engine.stage_id)
        state = {} if is_changed_in_place(engine) else collect_parts(engine, device="cpu")
        return cls(
            partition=pipeline.partition,
            modules={number: children[str(number)] for number in numbers if str(number) in children},
            state=state,
            residuals=_residuals(engine),
        )

    def contents(self, engine: Any, layers: list[int]) -> dict[int, Tensors]:
        """What must travel with each of these layers."""
        names = {layer: names_of_layer(engine, layer) for layer in layers}
        state = self.state or collect_parts(engine, {name for own in names.values() for name in own.values()})
        return {
            layer: {key: value for key, value in state.items() if _weight_of(key) in own.values()}
            | {key: self.residuals[key] for inner in own if (key := f"{_RESIDUAL}{layer}.{inner}") in self.residuals}
            | {f"{_BUFFER}{layer}.{inner}": value for inner, value in self.modules[layer].named_buffers()}
            for layer, own in names.items()
        }

    def changed(self, target: Partition, stage: int, modules: Mapping[int, nn.Module], received: Tensors) -> "_Holding":
        """The same with another range of layers: fewer, and those that have come."""
        there = layers_of(target, stage)
        for layer, module in modules.items():
            for inner, buffer in module.named_buffers():
                buffer.copy_(received[f"{_BUFFER}{layer}.{inner}"])
        new_residuals = {key: value for key, value in received.items() if key.startswith(_RESIDUAL)}
        others = {key: value for key, value in received.items() if not key.startswith((_RESIDUAL, _BUFFER))}
        return _Holding(
            partition=target,
            modules={n: m for n, m in sorted((self.modules | dict(modules)).items()) if n in there},
            state=self.state | others,
            residuals=self.residuals | new_residuals,
        )


_RESIDUAL, _BUFFER = "residual/", "buffer/"


def _residuals(engine: Any) -> Tensors:
    hook = engine.recparallel.hook
    return {} if hook is None else {f"{_RESIDUAL}{name}": value for name, value in (hook.by_parameter() or {}).items()}


def _weight_of(key: str) -> str:
    """The global name in ``weight/NAME`` or ``optimizer/NAME/KEY``."""
    return key.split("/")[1]


def _exchange(
    leaving: list[_Route], outgoing: Mapping[int, Tensor], arriving: list[_Route], incoming: Mapping[int, Tensor]
) -> None:
    """Send and receive all at once; between two ranks in the order of the layers."""
    operations = [dist.P2POp(dist.isend, outgoing[route.layer], route.destination) for route in leaving]
    operations += [dist.P2POp(dist.irecv, incoming[route.layer], route.source) for route in arriving]
    if operations:
        for work in dist.batch_isend_irecv(operations):
            work.wait()


def _install(engine: Any, holding: _Holding) -> None:
    """Let this rank hold that, whatever it held before."""
    handle, pipeline = engine.recparallel, engine.module
    handle.unbind_stage()
    rearrange(pipeline, holding.partition, holding.modules)
    let_it_train(engine)
    own = {name for name, _ in pipeline.named_parameters()}
    if handle.hook is not None and handle.hook.by_parameter() is not None:
        residuals = {name.removeprefix(_RESIDUAL): value for name, value in holding.residuals.items()}
        handle.hook.set_by_parameter({name: value for name, value in residuals.items() if name in own})
    restore(engine, holding.state, parts=True)
    engine.reset_activation_shape()
    handle.bind_stage()
