"""The words of the house: what was measured, what was decided. Frozen, torch-free, JSON both ways.

``Profile`` holds measurements, ``Partition`` a cut of layers into stages, ``ParallelPlan`` everything that an engine
needs in order to execute. All are pydantic models: ``model_dump_json()`` writes, ``model_validate_json()`` reads and
validates, and ``model_json_schema()`` is the documented schema. Times are seconds, sizes bytes, rates bytes per
second.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class _Word(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerCost(_Word):
    """What one pipeline layer costs for one micro-batch.

    ``boundary_bytes`` is the size of its output, which crosses the link when the cut lies behind this layer;
    ``activation_bytes`` is what it keeps for the backward pass.
    """

    name: str
    forward_seconds: Seconds
    backward_seconds: Seconds
    num_parameters: int = Field(ge=0)
    parameter_bytes: Bytes
    activation_bytes: Bytes = 0
    boundary_bytes: Bytes = 0

    @property
    def seconds(self) -> float:
        """Forward plus backward."""
        return self.forward_seconds + self.backward_seconds


class LinkCost(_Word):
    """A link between two neighbouring stages."""

    bytes_per_second: float = Field(gt=0, allow_inf_nan=False)
    latency_seconds: Seconds = 0.0


class Device(_Word):
    """One device. ``relative_speed`` is 1.0 for the device on which the layers were measured."""

    name: str = "cpu"
    relative_speed: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    memory_bytes: Bytes | None = None


class Profile(_Word):
    """Measured layers, links and devices; the input of every partitioner.

    ``micro_batch`` (sequences) and ``sequence_length`` (positions) say what the layers were measured with.
    """

    layers: tuple[LayerCost, ...] = Field(min_length=1)
    micro_batch: Count
    sequence_length: Count
    dtype: str = "float32"
    links: tuple[LinkCost, ...] = ()
    devices: tuple[Device, ...] = ()


class Cluster(_Word):
    """Machines as a planner sees them: devices by rank, the slowest link inside a node and between nodes."""

    devices: tuple[Device, ...] = Field(min_length=1)
    ranks_per_node: Count
    intra_node: LinkCost | None = None
    inter_node: LinkCost | None = None


class Partition(_Word):
    """A cut of ``n`` layers into contiguous stages.

    ``bounds`` has one entry more than there are stages: stage ``s`` holds layers ``bounds[s]`` up to, but not
    including, ``bounds[s + 1]``. ``stage_seconds`` is the predicted time of one micro-batch, forward and backward, on
    each stage; empty when the method does not predict.
    """

    bounds: tuple[int, ...] = Field(min_length=2)
    method: str
    stage_seconds: tuple[Seconds, ...] = ()

    @model_validator(mode="after")
    def _bounds_are_a_cut(self) -> "Partition":
        if self.bounds[0] != 0 or any(b < a for a, b in zip(self.bounds, self.bounds[1:])):
            raise ValueError(f"bounds must start at 0 and never decrease, got {list(self.bounds)}")
        if self.stage_seconds and len(self.stage_seconds) != self.num_stages:
            raise ValueError(f"{self.num_stages} stages, but stage_seconds has {len(self.stage_seconds)} entries")
        return self

    @property
    def num_stages(self) -> int:
        return len(self.bounds) - 1

    @property
    def num_layers(self) -> int:
        return self.bounds[-1]

    def stage_of(self, layer: int) -> int:
        """The stage that holds ``layer``."""
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"layer {layer} is outside 0…{self.num_layers - 1}")
        return next(s for s in range(self.num_stages) if self.bounds[s] <= layer < self.bounds[s + 1])


class ParallelPlan(_Word):
    """Everything an engine needs to execute, and everything a checkpoint needs to say about how it was made.

    One global batch is ``micro_batch × num_micro_batches × data`` sequences.
    """

    pipeline: Count = 1
    tensor: Count = 1
    data: Count = 1
    partition: Partition
    micro_batch: Count
    num_micro_batches: Count
    compression: str = "none"
    data_parallel: str = "synchronous"
    zero_stage: int = Field(default=0, ge=0, le=3)
    dtype: str = "float32"

    @model_validator(mode="after")
    def _stages_match(self) -> "ParallelPlan":
        if self.partition.num_stages != self.pipeline:
            raise ValueError(f"pipeline is {self.pipeline}, but the partition has {self.partition.num_stages} stages")
        return self

    @property
    def world_size(self) -> int:
        return self.pipeline * self.tensor * self.data

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.num_micro_batches * self.data
