"""Weights and optimizer state of a DeepSpeed pipeline engine, whole tensors by global names, in and out.

ZeRO-1 and the bf16 optimizer keep a flat piece on every replica; DeepSpeed's own functions put a parameter's pieces together.
What comes out fits every cut, every number of replicas and every one of these optimizers.
"""

from collections.abc import Container, Iterator
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from recparallel.checkpointing.names import STATE, WEIGHT, global_name
from recparallel.errors import CheckpointError
from recparallel.models.trunk import Trunk
from recparallel.optimizers.row_adamw import RowAdamW
from recparallel.tensor_parallel.split import part_of, split_of

SPREAD_HEAD = "spread_head"
"""What a pipeline calls its part of a head that stages share."""


def parameters_by_name(engine: Any) -> dict[str, nn.Parameter]:
    """This stage's parameters by their global names; a tied table once."""
    module = engine.module
    layers = module.recommender.layers
    trunk = Trunk.of(module.recommender.config)
    found = {}
    for name, parameter in module.named_parameters():
        place, _, inner = name.partition(".")
        if place == "tied_modules":
            key, _, inner = inner.partition(".")
            layer = next(layer for layer in layers if layer.tie == key)
        else:
            layer = layers[-1] if place == SPREAD_HEAD else layers[int(place)]
        found[global_name(layer, inner, trunk)] = parameter
    return found


def check_storable(engine: Any) -> None:
    """Refuse an engine whose optimizer cannot be stored, before it trains for hours.

    Raises:
        CheckpointError: says which optimizers can.
    """
    # DeepSpeed's wrapper for fp16 is a torch optimizer too, by name; its masters are not the parameters.
    known = isinstance(engine.optimizer, (BF16_Optimizer, DeepSpeedZeroOptimizer)) or (
        isinstance(engine.optimizer, torch.optim.Optimizer) and not engine.fp16_enabled()
    )
    if not known:
        raise CheckpointError(
            f"checkpoints of {type(engine.optimizer).__name__} are not supported; use fp32, bf16, or fp16 with ZeRO-1"
        )


def collect(engine: Any) -> dict[str, Tensor]:
    """What this rank has to write. Every rank calls: replicas put their pieces together, then share out the parameters.

    Returns:
        copies in the host's memory: fp32 weights as ``weight/NAME``, and as ``optimizer/NAME/KEY`` the state of the optimizer:
        tensors of the weight's shape, and numbers without a shape.
    """
    grid = engine.grid
    copies, spread = _held_elsewhere(engine), _spread(engine)
    if engine.recparallel.rows is not None:
        engine.recparallel.rows.settle()  # copies too: what catches up in one step and in two differs by rounding
    holders = grid.data_parallel_size * grid.model_parallel_size
    own = grid.data_parallel_id * grid.model_parallel_size + grid.get_slice_parallel_rank()
    kept: dict[str, Tensor] = {}
    for index, (name, parameter, held) in enumerate(_held(engine)):
        if name in copies:
            continue
        split = split_of(parameter)
        # All replicas and all tensor ranks take part.
        found = {f"{WEIGHT}/{name}": held.weight(parameter)}
        found |= {f"{STATE}/{name}/{key}": value for key, value in held.states(parameter).items()}
        for key, value in found.items():
            whole = split.assemble(value.detach()) if split is not None and value.dim() else value
            # What stages share is written by the first that has a part of it.
            if index % holders == own and (name not in spread or split is None or split.ranks.rank == 0):
                kept[key] = _copied(whole)
    return kept


def names_of_layer(engine: Any, number: int) -> dict[str, str]:
    """Global names of a layer's parameters on this stage, by the names in its module; of a layer that has a module of its own."""
    module = engine.module
    layer, trunk = module.recommender.layers[number], Trunk.of(module.recommender.config)
    return {name: global_name(layer, name, trunk) for name, _ in module.get_submodule(str(number)).named_parameters()}


def collect_parts(engine: Any, names: Container[str] | None = None, *, device: str | None = None) -> dict[str, Tensor]:
    """As :func:`collect`, but what this rank holds itself: a tensor rank its own part, every replica the same, and every stage with
    a copy of a tied table that. All replicas of a stage call. Nothing is copied that need not be.

    Args:
        names: of the weights; all of the stage if left out, but for item tables that are trained by rows, which never move.
        device: to which each tensor goes as soon as it is there; by default it stays.
    """
    kept: dict[str, Tensor] = {}
    for name, parameter, held in _held(engine):
        if (names is None and not isinstance(held, _Lazy)) or (names is not None and name in names):
            found = {f"{WEIGHT}/{name}": held.weight(parameter)}
            found |= {f"{STATE}/{name}/{key}": value for key, value in held.states(parameter).items()}
            kept |= {
                key: value.detach() if device is None else value.detach().to(device) for key, value in found.items()
            }
    return kept


def read_weights(engine: Any, names: Container[str] | None = None) -> dict[str, Tensor]:
    """Weights of this stage in fp32, whole, by their global names; on every replica of it, which all call. What is given may be the
    weight itself.

    Args:
        names: of those that are wanted; all of the stage if left out.
    """
    return {
        name: held.weight(parameter).detach()
        for name, parameter, held in _held(engine)
        if names is None or name in names
    }


def write_weights(engine: Any, weights: dict[str, Tensor]) -> None:
    """Put fp32 weights of :func:`read_weights` into ``engine``; others, and all that the optimizer keeps, stay as they are."""
    with torch.no_grad():
        for name, parameter, held in _held(engine):
            if name in weights:
                held.set(parameter, weights[name], {})


def layers_of_weights(engine: Any) -> dict[str, int]:
    """For each of :func:`read_weights` the number of its layer; of a tied table that of the first layer with it, on every stage."""
    module = engine.module
    places = {}
    for name, parameter in module.named_parameters():
        place, _, inner = name.partition(".")
        ties = [layer.tie for layer in module.recommender.layers]
        places[id(parameter)] = ties.index(inner.partition(".")[0]) if place == "tied_modules" else int(place)
    return {name: places[id(parameter)] for name, parameter in parameters_by_name(engine).items()}


def restore(engine: Any, tensors: dict[str, Tensor], *, parts: bool = False) -> None:
    """Put what :func:`collect` gave, on this or other ranks, into ``engine``.

    Args:
        tensors: at least the weights of this stage, and what state there is of them.
        parts: they come from :func:`collect_parts`; weights that are not among them stay as they are.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == STATE:
            owner, _, key = rest.rpartition("/")
            states.setdefault(owner, {})[key] = value
    take = _as_it_is if parts else part_of
    everything = [held for held in _held(engine) if not parts or f"{WEIGHT}/{held[0]}" in tensors]
    for name, parameter, held in everything:
        own = states.get(name, {})
        states[name] = {key: take(value, parameter) if value.dim() else value for key, value in own.items()}
        held.prepare(parameter, states[name])
    with torch.no_grad():
        for name, parameter, held in everything:
            weight = take(tensors[f"{WEIGHT}/{name}"], parameter)
            held.set(parameter, weight.to(parameter.device), states[name])


class _Plain:
    """The state of a torch optimizer: a parameter is its own master, and the key of its state.

    Args:
        optimizer: none for parameters that are not trained.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None) -> None:
        groups: list[dict[str, Any]] = [] if optimizer is None else optimizer.param_groups
        self._state = {} if optimizer is None else optimizer.state
        self._group_of = {id(parameter): group for group in groups for parameter in group["params"]}

    def weight(self, parameter: nn.Parameter) -> Tensor:
        return parameter.float()

    def states(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        own = {key: _as_tensor(value) for key, value in self._state.get(parameter, {}).items() if value is not None}
        if "step" in own:
            # DeepSpeed's FusedAdam counts the steps of a group's last parameter alone.
            members = self._group_of[id(parameter)]["params"]
            steps = [
                _as_tensor(self._state[member]["step"]) for member in members if "step" in self._state.get(member, {})
            ]
            own["step"] = max(steps, key=lambda step: float(step))
        return own

    def prepare(self, parameter: nn.Parameter, states: dict[str, Tensor]) -> None:
        """Nothing: state is made as it is set."""

    def set(self, parameter: nn.Parameter, weight: Tensor, states: dict[str, Tensor]) -> None:
        parameter.copy_(weight)
        if not states:
            return
        own, group = self._state[parameter], self._group_of[id(parameter)]
        for key, value in states.items():
            if value.dim():
                own[key] = value.to(device=parameter.device, dtype=parameter.dtype).view_as(parameter).clone()
            else:
                own[key] = _like(own.get(key), _placed(value, group, parameter))


class _Flat:
    """An optimizer of DeepSpeed that steps flat pieces, one for each group of parameters.

    Args:
        optimizer: DeepSpeed's.
        groups: the parameters of each group, in the model's precision.
    """

    def __init__(self, optimizer: Any, groups: list[list[nn.Parameter]]) -> None:
        self._optimizer = optimizer
        self._inner = optimizer.optimizer
        self._linked = False
        self._group_of = {id(parameter): group for group, members in enumerate(groups) for parameter in members}

    def weight(self, parameter: nn.Parameter) -> Tensor:
        return safe_get_full_fp32_param(parameter)

    def states(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        flat, own = self._piece(parameter)
        if own:
            self._link()
        return {
            key: safe_get_full_optimizer_state(parameter, key) if _is_flat(value, flat) else _as_tensor(value)
            for key, value in own.items()
            if value is not None
        }

    def prepare(self, parameter: nn.Parameter, states: dict[str, Tensor]) -> None:
        """Make the flat state that is not there before the first step: DeepSpeed finds the pieces of all groups at once."""
        flat, own = self._piece(parameter)
        group = self._inner.param_groups[self._group_of[id(parameter)]]
        for key, value in states.items():
            if not value.dim():
                own[key] = _like(own.get(key), _placed(value, group, flat))
            elif key not in own:
                own[key] = torch.zeros_like(flat)

    def set(self, parameter: nn.Parameter, weight: Tensor, states: dict[str, Tensor]) -> None:
        if states:
            self._link()
        safe_set_full_fp32_param(parameter, weight)
        for key, value in states.items():
            if value.dim():
                safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
        parameter.copy_(weight)

    def _piece(self, parameter: nn.Parameter) -> tuple[Tensor, dict[str, Any]]:
        flat = self._inner.param_groups[self._group_of[id(parameter)]]["params"][0]
        return flat, self._inner.state[flat]

    def _link(self) -> None:
        """DeepSpeed finds every parameter's piece of the state from here on. By itself ZeRO links all groups of parameters when the
        first of them has stepped, and the others have no state yet."""
        if not self._linked:
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()
            self._linked = True


class _Lazy:
    """A table that is trained by rows, beside DeepSpeed's optimizer.

    Args:
        optimizer: the table's own.
        inner: that of the other parameters, whose settings it shares.
    """

    def __init__(self, optimizer: RowAdamW, inner: torch.optim.Optimizer) -> None:
        self._optimizer, self._inner = optimizer, inner

    def weight(self, parameter: nn.Parameter) -> Tensor:
        return self._optimizer.state().weight

    def states(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """In the names and the form of the other parameters' AdamW, under which a run without lazy rows can go on."""
        state = self._optimizer.state()
        if not state.step:
            return {}
        steps = (own["step"] for own in self._inner.state.values() if "step" in own)
        like = next(steps, None)
        step = torch.tensor(state.step) if isinstance(like, int) else torch.tensor(float(state.step))
        return {"exp_avg": state.exp_avg, "exp_avg_sq": state.exp_avg_sq, "step": step}

    def prepare(self, parameter: nn.Parameter, states: dict[str, Tensor]) -> None:
        """Nothing: state is made as it is set."""

    def set(self, parameter: nn.Parameter, weight: Tensor, states: dict[str, Tensor]) -> None:
        self._optimizer.set_state(
            weight,
            exp_avg=states.get("exp_avg", torch.zeros_like(weight)),
            exp_avg_sq=states.get("exp_avg_sq", torch.zeros_like(weight)),
            step=int(states["step"]) if states else 0,
            second_beta=self._inner.param_groups[0]["betas"][1],
        )


def _held(engine: Any) -> Iterator[tuple[str, nn.Parameter, "_Plain | _Flat | _Lazy"]]:
    """Parameters in the order of their names, the same on all replicas of a stage, with what holds their state."""
    optimizer = engine.optimizer
    rows = engine.recparallel.rows
    frozen = _Plain(None)
    held: _Plain | _Flat
    if isinstance(optimizer, BF16_Optimizer):
        held = _Flat(optimizer, optimizer.bf16_groups)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        held = _Flat(optimizer, optimizer.bit16_groups)
    else:
        held = _Plain(optimizer)
    for name, parameter in sorted(parameters_by_name(engine).items()):
        lazy = None if rows is None else rows.optimizer_of(parameter)
        if lazy is not None:
            yield name, parameter, _Lazy(lazy, engine.basic_optimizer)
        else:
            yield name, parameter, held if parameter.requires_grad else frozen


def _held_elsewhere(engine: Any) -> set[str]:
    """Names of tied tables of which this stage has a copy, and an earlier stage the original."""
    module = engine.module
    trunk = Trunk.of(module.recommender.config)
    copies = set()
    for key, tied in module.tied_comms.items():
        if tied["ranks"][0] != engine.global_rank:
            layer = next(layer for layer in module.recommender.layers if layer.tie == key)
            copies |= {global_name(layer, name, trunk) for name, _ in tied["module"].named_parameters()}
    return copies


def _spread(engine: Any) -> set[str]:
    """Names of the weights of a head that stages share."""
    own = {id(weight) for name, weight in engine.module.named_parameters() if name.partition(".")[0] == SPREAD_HEAD}
    return {name for name, weight in parameters_by_name(engine).items() if id(weight) in own}


def _as_it_is(part: Tensor, parameter: Tensor) -> Tensor:
    return part


def _copied(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True)


def _is_flat(value: Any, flat: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == flat.shape


def _as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value)


def _placed(value: Tensor, group: dict[str, Any], weights: Tensor) -> Tensor:
    """A number where torch's optimizer keeps it: beside the weights if it is fused or capturable."""
    return value.to(weights.device) if group.get("fused") or group.get("capturable") else value


def _like(own: Any, value: Tensor) -> Any:
    """A number in the form in which the optimizer keeps it; without one, a whole number as such and others as tensors."""
    if isinstance(own, Tensor):
        return torch.full_like(own, value.item())
    if own is not None:
        return type(own)(value.item())
    return value.clone() if value.is_floating_point() else value.item()
