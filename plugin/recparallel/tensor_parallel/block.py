"""A decoder block that ranks share: which of its layers are cut by columns and which by rows, and the cutting."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from recparallel.errors import ConfigError
from recparallel.tensor_parallel.exchange import copy_to_ranks
from recparallel.tensor_parallel.linear import RowLinear, hold_columns, num_inputs, num_outputs
from recparallel.tensor_parallel.randomness import OwnRandomness
from recparallel.tensor_parallel.ranks import TensorRanks
from recparallel.tensor_parallel.sequence import add_up_gradients, gather_positions
from recparallel.tensor_parallel.split import split_of

Segment = Literal["even", "keys"]
"""Outputs of a layer that are divided together: evenly, or by key/value heads, of which there may be fewer than ranks."""

_KEYS = ("k_proj", "v_proj")


@dataclass(frozen=True)
class BlockPlan:
    """How the ranks divide a block.

    Attributes:
        columns: layers that are cut by outputs, with the segments of their outputs in order.
        rows: layers that are cut by inputs, and whose outputs are summed.
        partial: modules of which every rank has all weights, and a part of their gradients.
        attention: the module that knows the number of heads.
    """

    columns: Mapping[str, tuple[Segment, ...]]
    rows: tuple[str, ...]
    partial: tuple[str, ...] = ()
    attention: str = "self_attn"

    @staticmethod
    def of(tp_plan: Mapping[str, str] | None, *, owner: str) -> "BlockPlan":
        """A plan of transformers (``base_model_tp_plan``), such as ``{"layers.*.self_attn.q_proj": "colwise", …}``.

        Args:
            owner: whose plan it is, for messages.

        Raises:
            ConfigError: there is none, or it has another style of cutting than those here.
        """
        if not tp_plan:
            raise ConfigError(
                f"{owner} has no base_model_tp_plan; override Trunk.block_plan in models/families/<family>.py"
            )
        styles: dict[str, list[str]] = {"colwise": [], "rowwise": [], "replicated_with_grad_allreduce": []}
        for name, style in tp_plan.items():
            _, star, path = name.partition(".*.")
            if star and style not in styles:
                raise ConfigError(
                    f"{owner} cuts {name} by {style!r}, known are {', '.join(styles)}; override Trunk.block_plan in "
                    "models/families/<family>.py"
                )
            if star:
                styles[style].append(path)
        columns, rows, partial = styles.values()
        segments: dict[str, tuple[Segment, ...]] = {
            path: ("keys",) if path.rpartition(".")[2] in _KEYS else ("even",) for path in columns
        }
        return BlockPlan(segments, tuple(rows), tuple(partial), columns[0].rpartition(".")[0])


@dataclass(frozen=True)
class Heads:
    """Attention heads of a block, and its dropout."""

    queries: int
    keys: int
    dropout: float

    @staticmethod
    def of(config: Any) -> "Heads":
        """As a config of transformers has them."""
        queries = int(config.num_attention_heads)
        keys = int(getattr(config, "num_key_value_heads", None) or queries)
        dropout = getattr(config, "attention_dropout", getattr(config, "attn_pdrop", 0.0))
        return Heads(queries, keys, float(dropout))


def check_divisible(block: nn.Module, plan: BlockPlan, config: Any, size: int) -> None:
    """Refuse a number of ranks among which the block cannot be divided.

    Args:
        block: of any device; only shapes are read.

    Raises:
        ConfigError: what cannot be divided, and by what it can.
    """
    heads = Heads.of(config)
    if heads.queries % size:
        fits = [n for n in range(1, heads.queries + 1) if heads.queries % n == 0]
        raise ConfigError(
            f"{heads.queries} attention heads cannot be divided among {size} tensor ranks; allowed are {fits}"
        )
    if heads.keys % size and size % heads.keys:
        raise ConfigError(
            f"{heads.keys} key/value heads cannot be divided among {size} tensor ranks: neither is a multiple of the other"
        )
    ranks = TensorRanks(0, size)
    for path, segments in plan.columns.items():
        _pieces(block, plan, path, segments, heads, ranks)
    for path in plan.rows:
        _divisible(num_inputs(block.get_submodule(path)), path, size)


def share_block(block: nn.Module, plan: BlockPlan, config: Any, ranks: TensorRanks) -> None:
    """Reduce ``block`` to this rank's share, in place: its names stay, its weights shrink.

    Args:
        block: whole; called alike on all ranks, each with the same weights.
        config: of the model.
    """
    heads = Heads.of(config)
    own = OwnRandomness(ranks.rank)
    drops = (
        heads.dropout and not ranks.sequence
    )  # where ranks share positions, all that a block draws is each rank's own
    _localize(block.get_submodule(plan.attention), heads, ranks)
    entered: set[str] = set()
    for path, segments in plan.columns.items():
        pieces, counts = _pieces(block, plan, path, segments, heads, ranks)
        linear = block.get_submodule(path)
        hold_columns(linear, pieces, counts=counts, ranks=ranks)
        if "keys" in segments and heads.keys < ranks.size:
            for parameter in linear.parameters():
                _add_up_shared(parameter)
        entered.add(path.rpartition(".")[0] or path)
    for path in entered:
        random = own if path == plan.attention and drops else None
        _enter(block.get_submodule(path), ranks, random)
    for path in plan.rows:
        parent, _, name = path.rpartition(".")
        row = RowLinear(block.get_submodule(path), ranks)
        if parent == plan.attention and drops:
            row.register_forward_pre_hook(lambda module, inputs: own.end())
        setattr(block.get_submodule(parent), name, row)
    partial = [block.get_submodule(path) for path in plan.partial]
    for module in partial:
        add_up_gradients(module.parameters(), ranks)
    if ranks.sequence:
        done = {id(parameter) for module in partial for parameter in module.parameters()}
        left = (p for p in block.parameters() if split_of(p) is None and id(p) not in done)
        add_up_gradients(left, ranks)


def _pieces(
    block: nn.Module, plan: BlockPlan, path: str, segments: tuple[Segment, ...], heads: Heads, ranks: TensorRanks
) -> tuple[tuple[tuple[int, int], ...], bool]:
    """The outputs of a layer that this rank makes, and whether it is the one of those that make them which counts."""
    outputs = num_outputs(block.get_submodule(path))
    keys = outputs
    if len(segments) > 1 and "keys" in segments:
        keys = heads.keys * int(block.get_submodule(plan.attention).head_dim)  # type: ignore[arg-type]
    even = (outputs - keys * segments.count("keys")) // max(segments.count("even"), 1)
    found, start, counts = [], 0, True
    for segment in segments:
        length = keys if segment == "keys" else even
        if segment == "keys" and heads.keys < ranks.size:
            if len(segments) > 1:
                raise ConfigError(
                    f"{heads.keys} key/value heads for {ranks.size} tensor ranks: {path} holds queries, keys and values in one "
                    f"matrix, of which ranks cannot share a part; use at most {heads.keys} tensor ranks"
                )
            sharers = ranks.size // heads.keys
            width, head = length // heads.keys, ranks.rank // sharers
            found.append((start + head * width, start + (head + 1) * width))
            counts = ranks.rank % sharers == 0
        else:
            _divisible(length, path, ranks.size)
            first, end = ranks.share(length)
            found.append((start + first, start + end))
        start += length
    return tuple(found), counts


def _divisible(length: int, path: str, size: int) -> None:
    if length % size:
        raise ConfigError(f"{path} has a width of {length}, which cannot be divided among {size} tensor ranks")


def _localize(attention: nn.Module, heads: Heads, ranks: TensorRanks) -> None:
    """Tell an attention module of transformers how many heads it has left, wherever it keeps that number."""
    queries, keys = heads.queries // ranks.size, max(heads.keys // ranks.size, 1)
    config = copy.copy(attention.config)
    config.num_attention_heads = queries  # type: ignore[union-attr]
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = keys
    attention.config = config  # type: ignore[assignment]
    for name, value in (
        ("num_heads", queries),
        ("num_key_value_heads", keys),
        ("num_key_value_groups", queries // keys),
        ("split_size", int(getattr(attention, "split_size", 0)) // ranks.size),
    ):
        if hasattr(attention, name):
            setattr(attention, name, value)


def _enter(module: nn.Module, ranks: TensorRanks, random: OwnRandomness | None) -> None:
    """What goes into ``module`` goes from all ranks into each."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        if random is not None and module.training:
            random.begin(hidden.device)
        hidden = gather_positions(hidden, ranks) if ranks.sequence else copy_to_ranks(hidden, ranks)
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": hidden}
        return (hidden, *args[1:]), kwargs

    module.register_forward_pre_hook(hook, with_kwargs=True)


def _add_up_shared(parameter: Tensor) -> None:
    """Key/value heads that several ranks hold: each has the gradient of its own queries alone."""
    split = split_of(parameter)
    assert split is not None
    parameter.register_hook(lambda grad: split.take(split.assemble(grad, once=False)))
