"""The words of the house: what was measured, what was decided. Frozen, torch-free, JSON both ways.

``Profile`` holds measurements, ``Partition`` a cut of layers into stages, ``ParallelPlan`` everything that an engine
needs in order to execute. All are pydantic models: ``model_dump_json()`` writes, ``model_validate_json()`` reads and
validates, and ``model_json_schema()`` is the documented schema. Times are seconds, sizes bytes, rates bytes per
second.
"""

from bisect import bisect_left
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recparallel.errors import PartitionError

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class _Word(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


PipelineScheduleName = Literal["1f1b", "eager_1f1b"]
"""``1f1b`` is DeepSpeed's own, its transfers block; in ``eager_1f1b`` they run beside the computation."""

DEFAULT_SCHEDULE: PipelineScheduleName = "eager_1f1b"

LayerKind = Literal["embedding", "block", "norm", "head", "other"]


class LayerCost(_Word):
    """What one pipeline layer costs for one micro-batch.

    Attributes:
        name: unique and readable, ``"blocks.3"``.
        kind: what it is in a decoder-only model; Megatron's layout needs to know.
        tie: layers with the same text share one table; each stage that holds one has a copy of it, and their gradients
            are summed once a step.
        forward_seconds, backward_seconds: of one micro-batch, on a device of relative speed 1.
        update_seconds: of the optimizer's step for its parameters, once for all micro-batches.
        num_parameters, parameter_bytes: of its weights.
        gradient_bytes: of its accumulated gradients; None is as much as the weights.
        optimizer_bytes: what the optimizer keeps for it (moments, master weights).
        activation_bytes: kept from the forward pass for the backward pass.
        boundary_bytes: of its output, which crosses the link when the cut lies behind this layer.
        wire_bytes: of that output while it crosses, where that is in another format; None is ``boundary_bytes``.
        touched_share: of the rows of its weight, those whose gradient one micro-batch makes other than zero; copies of a tied
            table exchange no more than the rows that a step has touched.
    """

    name: str
    kind: LayerKind = "block"
    tie: str | None = None
    forward_seconds: Seconds
    backward_seconds: Seconds
    update_seconds: Seconds = 0.0
    num_parameters: int = Field(default=0, ge=0)
    parameter_bytes: Bytes = 0
    gradient_bytes: Bytes | None = None
    optimizer_bytes: Bytes = 0
    activation_bytes: Bytes = 0
    boundary_bytes: Bytes = 0
    wire_bytes: Bytes | None = None
    touched_share: float = Field(default=1.0, ge=0, le=1)

    @property
    def seconds(self) -> float:
        """Forward plus backward."""
        return self.forward_seconds + self.backward_seconds

    @property
    def crossing_bytes(self) -> int:
        """Of its output, on the link."""
        return self.boundary_bytes if self.wire_bytes is None else self.wire_bytes

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and optimizer state: what stays in memory whatever the schedule."""
        return self.parameter_bytes + self.summed_bytes + self.optimizer_bytes

    @property
    def summed_bytes(self) -> int:
        """Of its accumulated gradients."""
        return self.parameter_bytes if self.gradient_bytes is None else self.gradient_bytes

    def touched_bytes(self, num_micro_batches: int) -> float:
        """Of the gradients of the rows that a step touches, if each micro-batch touches its share at random."""
        return self.summed_bytes * (1 - (1 - self.touched_share) ** num_micro_batches)


class LinkCost(_Word):
    """A link between two devices.

    Attributes:
        bytes_per_second, latency_seconds: of a tensor that crosses it.
        busy_seconds_per_byte: that sending or receiving a byte holds up what a device computes beside it.
        between: two devices; None is every pair that has no link of its own.
    """

    bytes_per_second: float = Field(gt=0, allow_inf_nan=False)
    latency_seconds: Seconds = 0.0
    busy_seconds_per_byte: Seconds = 0.0
    between: tuple[int, int] | None = None

    def seconds(self, num_bytes: int) -> float:
        """What it takes to send so much."""
        return self.latency_seconds + num_bytes / self.bytes_per_second


class Device(_Word):
    """One device. ``relative_speed`` is 1.0 for the device on which the layers were measured."""

    name: str = "cpu"
    relative_speed: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    memory_bytes: Bytes | None = None


class Shape(_Word):
    """The layers of a profile, measured with micro-batches of another size or length."""

    micro_batch: Count
    sequence_length: Count
    layers: tuple[LayerCost, ...] = Field(min_length=1)


class Profile(_Word):
    """Measured layers, links and devices; the input of every partitioner.

    Attributes:
        layers: in order.
        micro_batch, sequence_length: sequences and positions that ``layers`` were measured with.
        dtype: of the weights.
        links: between devices; without any, transfers cost nothing.
        devices: by rank. A pipeline of S stages uses them in S equal groups, in order, and each stage goes at the pace
            of the slowest of its group. Without any, all are alike.
        num_micro_batches: of a step, in each replica; decides how many activations a stage keeps. Without it, as many
            as there are stages.
        schedule: that the pipeline will run; decides what a transfer costs, and how many activations a stage keeps. Without
            it, :data:`DEFAULT_SCHEDULE`.
        shapes: the same layers with other micro-batches; :meth:`at` goes between them.
    """

    layers: tuple[LayerCost, ...] = Field(min_length=1)
    micro_batch: Count
    sequence_length: Count
    dtype: str = "float32"
    links: tuple[LinkCost, ...] = ()
    devices: tuple[Device, ...] = ()
    num_micro_batches: Count | None = None
    schedule: PipelineScheduleName | None = None
    shapes: tuple[Shape, ...] = ()

    @model_validator(mode="after")
    def _refers_to_what_exists(self) -> "Profile":
        names = [layer.name for layer in self.layers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names of layers must be unique, and {', '.join(map(repr, twice))} occurs more than once")
        for shape in self.shapes:
            if [layer.name for layer in shape.layers] != names:
                raise ValueError(
                    f"shape of micro-batch {shape.micro_batch}, length {shape.sequence_length}: its layers are not those "
                    "of the profile"
                )
        for link in self.links:
            if link.between is not None and self.devices and not all(0 <= d < len(self.devices) for d in link.between):
                raise ValueError(f"link between {link.between}: there are {len(self.devices)} devices, counted from 0")
        return self

    def link(self, a: int, b: int) -> LinkCost | None:
        """The link between devices ``a`` and ``b``: their own, else the one of all pairs, else None (free)."""
        own = next((link for link in self.links if link.between in ((a, b), (b, a))), None)
        return own or next((link for link in self.links if link.between is None), None)

    def at(self, micro_batch: int, sequence_length: int | None = None) -> "Profile":
        """This profile for another micro-batch or length, between the measured ones.

        Costs between two measured micro-batches of the same length, or two lengths of the same micro-batch, lie on the
        straight line between them (bytes are rounded).

        Raises:
            PartitionError: it lies outside what was measured; the message lists that.
        """
        length = self.sequence_length if sequence_length is None else sequence_length
        own = Shape(micro_batch=self.micro_batch, sequence_length=self.sequence_length, layers=self.layers)
        layers = _layers_at((own, *self.shapes), micro_batch, length)
        return self.model_copy(update={"layers": layers, "micro_batch": micro_batch, "sequence_length": length})


def _layers_at(shapes: tuple[Shape, ...], micro_batch: int, length: int) -> tuple[LayerCost, ...]:
    exact = {(shape.micro_batch, shape.sequence_length): shape.layers for shape in shapes}
    if (micro_batch, length) in exact:
        return exact[micro_batch, length]
    rows = {
        measured: _between({b: layers for (b, at), layers in exact.items() if at == measured}, micro_batch)
        for measured in {at for _, at in exact}
    }
    found = _between({at: layers for at, layers in rows.items() if layers is not None}, length)
    if found is None:
        measured = ", ".join(f"{b} × {at}" for b, at in sorted(exact))
        raise PartitionError(
            f"the profile says nothing of micro-batch {micro_batch} × length {length}; measured are {measured} "
            "(between two of them it may be asked, outside not)"
        )
    return found


def _between(measured: dict[int, tuple[LayerCost, ...]], wanted: int) -> tuple[LayerCost, ...] | None:
    known = sorted(measured)
    place = bisect_left(known, wanted)
    if place < len(known) and known[place] == wanted:
        return measured[wanted]
    if place in (0, len(known)):
        return None
    low, high = known[place - 1], known[place]
    share = (wanted - low) / (high - low)
    return tuple(_mixed(a, b, share) for a, b in zip(measured[low], measured[high]))


def _mixed(a: LayerCost, b: LayerCost, share: float) -> LayerCost:
    def line(name: str) -> float:
        return float((1 - share) * getattr(a, name) + share * getattr(b, name))

    seconds = {name: line(name) for name in ("forward_seconds", "backward_seconds")}
    crossing = ("wire_bytes",) if None not in (a.wire_bytes, b.wire_bytes) else ()
    sizes = {name: round(line(name)) for name in ("activation_bytes", "boundary_bytes", *crossing)}
    return a.model_copy(update={**seconds, **sizes, "touched_share": line("touched_share")})


class Cluster(_Word):
    """Machines as a planner sees them: devices by rank, the slowest link inside a node and between nodes."""

    devices: tuple[Device, ...] = Field(min_length=1)
    ranks_per_node: Count
    intra_node: LinkCost | None = None
    inter_node: LinkCost | None = None


class SpreadLayer(_Word):
    """A layer whose work is shared by several stages, wherever its place among the bounds is.

    Attributes:
        layer: its number.
        stages: that share it.
        shares: of its rows, one a stage; empty is equal ones.
    """

    layer: int = Field(ge=0)
    stages: tuple[int, ...] = Field(min_length=2)
    shares: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _shares_are_a_whole(self) -> "SpreadLayer":
        if self.shares and (
            len(self.shares) != len(self.stages) or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6
        ):
            raise ValueError(
                f"shares must be {len(self.stages)} numbers from 0 that add up to 1, got {list(self.shares)}"
            )
        return self


class Partition(_Word):
    """A cut of ``n`` layers into contiguous chunks, one a stage, or ``virtual`` of them.

    Attributes:
        bounds: chunk ``c`` holds layers ``bounds[c]`` up to, but not including, ``bounds[c + 1]``. Chunk ``c`` belongs
            to stage ``c mod num_stages``.
        method: what made it.
        virtual: chunks of each stage (Megatron's interleaved schedule).
        stage_seconds: predicted time between two micro-batches that a stage could keep up by itself: forward, backward
            and the transfers that it waits for, or the transfer of its input where that takes longer and runs beside;
            empty when the method does not predict.
        step_seconds: predicted time of a training step; None when the method does not predict it.
        device_order: stage ``s`` runs on device group ``device_order[s]`` of the profile; empty is their own order.
        spread: layers whose work is shared by several stages.
        recompute: layers that are computed a second time in the backward pass, and keep their input alone.
        optimal: whether the method proved that nothing is better (by more than half a per cent, where it evens stages out);
            False where a search stopped at its limit, or looked at some cuts alone.
    """

    bounds: tuple[int, ...] = Field(min_length=2)
    method: str
    virtual: Count = 1
    stage_seconds: tuple[Seconds, ...] = ()
    step_seconds: Seconds | None = None
    device_order: tuple[int, ...] = ()
    spread: tuple[SpreadLayer, ...] = ()
    recompute: tuple[int, ...] = ()
    optimal: bool = True

    @model_validator(mode="after")
    def _bounds_are_a_cut(self) -> "Partition":
        if self.bounds[0] != 0 or any(b < a for a, b in zip(self.bounds, self.bounds[1:])):
            raise ValueError(f"bounds must start at 0 and never decrease, got {list(self.bounds)}")
        if (len(self.bounds) - 1) % self.virtual:
            raise ValueError(f"{len(self.bounds) - 1} chunks cannot be {self.virtual} for each stage")
        stages = self.num_stages
        if self.stage_seconds and len(self.stage_seconds) != stages:
            raise ValueError(f"{stages} stages, but stage_seconds has {len(self.stage_seconds)} entries")
        if self.device_order and sorted(self.device_order) != list(range(stages)):
            raise ValueError(f"device_order must name each of {stages} devices once, got {list(self.device_order)}")
        if not all(0 <= layer < self.num_layers for layer in self.recompute):
            raise ValueError(
                f"recompute names layers {list(self.recompute)}; there are {self.num_layers}, counted from 0"
            )
        for spread in self.spread:
            if spread.layer >= self.num_layers or not all(0 <= s < stages for s in spread.stages):
                raise ValueError(f"spread layer {spread.layer} on stages {list(spread.stages)}: no such layer or stage")
        return self

    @property
    def num_stages(self) -> int:
        return (len(self.bounds) - 1) // self.virtual

    @property
    def num_layers(self) -> int:
        return self.bounds[-1]

    def stage_of(self, layer: int) -> int:
        """The stage that holds ``layer``."""
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"layer {layer} is outside 0…{self.num_layers - 1}")
        chunk = next(c for c, (a, b) in enumerate(zip(self.bounds, self.bounds[1:])) if a <= layer < b)
        return chunk % self.num_stages


class ParallelPlan(_Word):
    """Everything an engine needs to execute, and everything a checkpoint needs to say about how it was made.

    One global batch is ``micro_batch × num_micro_batches × data × replicas`` sequences, where ``replicas`` counts worlds that train
    apart, each with a ``data`` degree of its own.
    """

    pipeline: Count = 1
    tensor: Count = 1
    data: Count = 1
    partition: Partition
    micro_batch: Count
    num_micro_batches: Count
    compression: str = "none"
    data_parallel: str = "synchronous"
    replicas: Count = 1
    zero_stage: int = Field(default=0, ge=0, le=3)
    dtype: str = "float32"

    @model_validator(mode="after")
    def _stages_match(self) -> "ParallelPlan":
        if self.partition.num_stages != self.pipeline:
            raise ValueError(f"pipeline is {self.pipeline}, but the partition has {self.partition.num_stages} stages")
        return self

    @property
    def world_size(self) -> int:
        return self.pipeline * self.tensor * self.data * self.replicas

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.num_micro_batches * self.data * self.replicas
