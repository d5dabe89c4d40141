"""The ``"recparallel"`` section of a DeepSpeed JSON, strictly validated.

DeepSpeed ignores top-level keys that it does not know, so one file configures both. Everything here runs before a
process group exists and imports neither torch nor DeepSpeed. What only both together can tell is in
:mod:`recparallel.config_checks`.
"""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from recparallel import registry
from recparallel.errors import ConfigError, UnknownNameError
from recparallel.plan import DEFAULT_SCHEDULE, PipelineScheduleName

SECTION = "recparallel"
DEEPSPEED_METHODS = ("parameters", "uniform", "type:REGEX")
"""Partition methods that DeepSpeed implements itself; they are handed to it unchanged."""

AttentionChoice: TypeAlias = Literal["model", "fastest", "sdpa", "eager"]
Recomputation: TypeAlias = Literal["never", "when_needed"]
Lengths: TypeAlias = Literal["fixed", "dynamic", "packed"]
WireFormatName: TypeAlias = Literal["same", "bf16", "fp16"]

SYNCHRONOUS = "synchronous"
"""The mode in which all replicas are one world."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RebalanceConfig(_Section):
    """When the method ``adaptive`` moves layers while the model trains (:mod:`recparallel.partitioning.adaptive`).

    Attributes:
        every: steps between two looks at what stages take; a change is known after two or three looks.
        horizon: steps over which a move must pay for itself.
        min_gain: share of a step that it must save.
        tolerance: share by which the speed of a rank may change and still count as noise.
    """

    every: int = Field(default=5, ge=1, strict=True)
    horizon: int = Field(default=500, ge=1, strict=True)
    min_gain: float = Field(default=0.05, gt=0, lt=1, allow_inf_nan=False)
    tolerance: float = Field(default=0.15, gt=0, le=1, allow_inf_nan=False)


class PartitionConfig(_Section):
    """How layers are cut into stages.

    Attributes:
        method: a registered partitioner, or one of DeepSpeed's own.
        repeats, warmup: timed and untimed passes per layer, for methods that measure.
        cache: keep what was measured, and measure nothing at the next start with the same model, shapes and machines.
        profile: path of a profile to use instead of measuring.
        memory_gib: limit of every device. Without it, accelerators have what is free on them, CPUs no limit.
        recompute: ``when_needed``, stages that do not fit into memory compute layers a second time in the backward pass instead of
            keeping their activations, as few as must be; with ``never`` they are refused.
        rebalance: when the method ``adaptive`` moves layers.
    """

    method: str = "profile"
    repeats: int = Field(default=5, ge=1, strict=True)
    warmup: int = Field(default=1, ge=0, strict=True)
    cache: bool = Field(default=True, strict=True)
    profile: str | None = None
    memory_gib: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    recompute: Recomputation = "when_needed"
    rebalance: RebalanceConfig = RebalanceConfig()

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method.lower().startswith("type:") or method.lower() in DEEPSPEED_METHODS or method in registry.partitioners:
            return method
        raise UnknownNameError("partition method", method, [*registry.partitioners, *DEEPSPEED_METHODS])

    @model_validator(mode="after")
    def _used(self) -> "PartitionConfig":
        given = [key for key in ("profile", "memory_gib") if getattr(self, key) is not None]
        if given and not self.measured:
            raise ValueError(
                f"{' and '.join(given)} beside method {self.method!r}, which measures nothing; allowed with "
                f"{', '.join(registry.partitioners)}"
            )
        if "rebalance" in self.model_fields_set and not self.adaptive:
            raise ValueError(
                f"rebalance beside method {self.method!r}, which never moves layers; allowed with 'adaptive'"
            )
        return self

    @property
    def adaptive(self) -> bool:
        """Layers may move while the model trains."""
        return self.method == "adaptive"

    @property
    def measured(self) -> bool:
        """The method is ours and wants a profile."""
        return self.method in registry.partitioners


class MomentumCorrectionConfig(_Section):
    """Momentum on the sending side, in place of the optimizer's own.

    Attributes:
        momentum: in [0, 1).
        clip: largest norm of the sum of all replicas' gradients for a bucket; None is not to clip.
    """

    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    clip: float | None = Field(default=None, gt=0.0)


class CompressionConfig(_Section):
    """What is exchanged between replicas: a codec by name, its options beside it.

    Keys other than these are options of the codec, checked by the codec itself.

    Attributes:
        codec: by name.
        aggregation: how payloads are summed; ``auto`` is the codec's own way.
        error_feedback: send next time what was left out.
        momentum_correction: in place of error feedback.
        warm_up_steps: over which a codec with a ratio comes down to it.
        bucket_size: a bucket closes when it holds more elements; for engines without ZeRO, the others have a key of their own.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    codec: str = "none"
    aggregation: str = "auto"
    error_feedback: bool = Field(default=True, strict=True)
    momentum_correction: MomentumCorrectionConfig | None = None
    warm_up_steps: int = Field(default=0, ge=0, strict=True)
    bucket_size: int | None = Field(default=None, ge=1, strict=True)

    @field_validator("codec")
    @classmethod
    def _known(cls, codec: str) -> str:
        if codec not in registry.codecs:
            raise UnknownNameError("codec", codec, registry.codecs)
        return codec

    @field_validator("aggregation")
    @classmethod
    def _known_aggregation(cls, name: str) -> str:
        if name != "auto" and name not in registry.aggregations:
            raise UnknownNameError("aggregation", name, ["auto", *registry.aggregations])
        return name

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class GateConfig(_Section):
    """Leave a mode of data parallelism where recommendations become worse.

    Attributes:
        margin: a validation that is lower than the best before it by more than this share of it is too low.
        fall_back: the mode to go on with, and its options, as in :class:`DataParallelConfig`; by default all replicas average
            behind every step.
    """

    margin: float = Field(default=0.05, gt=0.0, lt=1.0)
    fall_back: dict[str, Any] = {"mode": "local_sgd", "local_steps": 1}

    @field_validator("fall_back")
    @classmethod
    def _is_a_mode(cls, given: dict[str, Any]) -> dict[str, Any]:
        beside = sorted({"replicas", "timeout_s", "gate", "elastic"} & given.keys())
        if beside:
            raise ValueError(f"{', '.join(beside)} stay what they are; give a mode and its options")
        if not DataParallelConfig(**given).apart:
            raise ValueError(
                "replicas stay worlds of their own; local_sgd with local_steps 1 averages behind every step"
            )
        return given


class ElasticConfig(_Section):
    """Replicas that come and go: each is a launch of its own.

    Attributes:
        endpoint: ``HOST:PORT`` of the ``recparallel meeting-point`` where they meet.
        run: name of the training there.
        least: replicas without which the training waits.
        last_call_s: that those who are there wait for more, once they are enough.
        heartbeat_s: between two signs of life; a replica that has given none three times in a row is left out.
    """

    endpoint: str = Field(pattern=r"^[^\s:]+:[0-9]{1,5}$")
    run: str = Field(default="training", min_length=1)
    least: int = Field(default=1, ge=1, strict=True)
    last_call_s: float = Field(default=5.0, ge=2.0, allow_inf_nan=False)
    heartbeat_s: int = Field(default=5, ge=1, strict=True)

    @field_validator("endpoint")
    @classmethod
    def _has_a_port(cls, endpoint: str) -> str:
        if not 0 < int(endpoint.rpartition(":")[2]) < 65536:
            raise ValueError(f"endpoint is HOST:PORT with a port from 1 to 65535, got {endpoint!r}")
        return endpoint

    @property
    def host(self) -> str:
        return self.endpoint.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])


class DataParallelConfig(_Section):
    """When replicas exchange what they have learned.

    Keys other than these are options of the mode, checked by the mode itself.

    Attributes:
        mode: by name; ``synchronous`` averages gradients in every step, in one world of all ranks. In the others every replica is a
            world of its own, and replicas exchange what their weights have moved by.
        replicas: worlds, of as many ranks each; by default as many as pipelines fit into the launch.
        compression: of what replicas exchange: a codec, as in ``recparallel.compression``, which is that of the gradients inside a
            replica.
        timeout_s: after which a replica that does not come to an exchange is an error.
        gate: leave the mode where recommendations become worse.
        elastic: replicas come and go; ``replicas`` says how many there are at most.
        shares: of ``synchronous`` replicas in a global batch: rows of a micro-batch by replica, or ``by_speed``, which measures
            them and shares anew every few steps; equal ones if left out.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    mode: str = SYNCHRONOUS
    replicas: int | None = Field(default=None, ge=1, strict=True)
    compression: CompressionConfig | None = None
    timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    gate: GateConfig | None = None
    elastic: ElasticConfig | None = None
    shares: Literal["by_speed"] | list[Annotated[int, Field(ge=1, strict=True)]] | None = None

    @field_validator("mode")
    @classmethod
    def _known(cls, mode: str) -> str:
        if mode != SYNCHRONOUS and mode not in registry.modes:
            raise UnknownNameError("data-parallel mode", mode, [SYNCHRONOUS, *registry.modes])
        return mode

    @field_validator("compression", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"codec": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _used(self) -> "DataParallelConfig":
        given = sorted({*self.model_fields_set, *self.options} - {"mode", "shares"})
        if self.mode == SYNCHRONOUS and given:
            raise ValueError(f"{', '.join(given)} beside mode {SYNCHRONOUS!r}, whose replicas share one world")
        if self.mode != SYNCHRONOUS and self.shares is not None:
            raise ValueError(f"shares beside mode {self.mode!r}: they are of {SYNCHRONOUS!r} replicas; remove them")
        if self.elastic is not None and self.replicas is None:
            raise ValueError(
                "elastic without replicas: say among how many a global batch is divided, and how many can join"
            )
        if self.elastic is not None and self.replicas is not None and self.elastic.least > self.replicas:
            raise ValueError(f"elastic.least is {self.elastic.least}, of at most {self.replicas} replicas")
        if self.elastic is not None and self.gate is not None:
            raise ValueError("gate beside elastic: replicas that come and go keep their mode; remove one")
        return self

    def changed(self, to: dict[str, Any]) -> "DataParallelConfig":
        """The same replicas in another mode.

        Args:
            to: the mode, its options, and ``compression`` if that changes.
        """
        own = {"replicas": self.replicas, "timeout_s": self.timeout_s, "compression": self.compression}
        return DataParallelConfig(**{**own, **to})

    @property
    def apart(self) -> bool:
        """Replicas are worlds of their own."""
        return self.mode != SYNCHRONOUS

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class RecParallelConfig(_Section):
    """Everything under ``"recparallel"``.

    Attributes:
        stages: pipeline stages.
        tensor: ranks that share every layer of a stage. What remains of the launch's processes are replicas.
        sequence_parallel: tensor ranks share positions too: norms, dropouts and what crosses to the next stage are each rank's own.
        spread_head: stages share the head's rows, and with them its work: for a head that takes longer than a stage should.
        seed: of initial weights, dropout and negatives; results do not depend on how the work is cut (dropout inside attention
            that tensor ranks share does, and with ``sequence_parallel`` all dropout).
        schedule: of the pipeline: ``eager_1f1b`` hides transfers behind the computation and keeps more activations, ``1f1b``
            is DeepSpeed's own.
        wire_format: what activations and their gradients are while they cross from one stage to the next: the ``same``, or rounded
            to ``bf16`` or ``fp16``, where the model is in fp32; halves the bytes, and changes losses a little.
        lengths: of micro-batches: ``fixed`` is ``max_length``; with ``dynamic`` each is as long as its longest history; with
            ``packed`` a row of ``max_length`` positions holds as many whole histories as fit, each with positions and attention of
            its own.
        attention: how blocks compute it: ``model`` as the model's config says, ``fastest`` as is the fastest on these ranks,
            measured at the start, or one of transformers' ways by name.
        lazy_rows: item tables are updated by the rows that a step has touched, others catch up when they are needed
            (:mod:`recparallel.optimizers.row_adamw`), and replicas exchange those rows alone. For AdamW, in fp32 or bf16, with a
            loss that reads single rows; the tables' state is on every replica, with ZeRO too.
        partition: how layers are cut into stages.
        compression: what replicas exchange; leave it out and DeepSpeed's own exchange runs untouched.
        data_parallel: when replicas exchange.
    """

    stages: int = Field(default=1, ge=1, strict=True)
    tensor: int = Field(default=1, ge=1, strict=True)
    sequence_parallel: bool = Field(default=False, strict=True)
    spread_head: bool = Field(default=False, strict=True)
    seed: int = Field(default=1234, ge=0, strict=True)
    schedule: PipelineScheduleName = DEFAULT_SCHEDULE
    wire_format: WireFormatName = "same"
    lengths: Lengths = "fixed"
    attention: AttentionChoice = "model"
    lazy_rows: bool = Field(default=False, strict=True)
    partition: PartitionConfig = PartitionConfig()
    compression: CompressionConfig | None = None
    data_parallel: DataParallelConfig = DataParallelConfig()

    @field_validator("compression", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A codec's name alone is that codec with its defaults."""
        return {"codec": value} if isinstance(value, str) else value

    def pipelines(self, world_size: int) -> int:
        """That so many processes make, each of ``stages × tensor`` ranks."""
        return world_size // (self.stages * self.tensor)

    def replicas(self, world_size: int) -> int:
        """Pipelines among which a global batch is divided: of this launch, or of all launches that come and go."""
        launches = self.worlds(world_size) if self.data_parallel.elastic is not None else 1
        return launches * self.pipelines(world_size)

    def worlds(self, world_size: int) -> int:
        """Of replicas that train apart; 1 where none do."""
        if not self.data_parallel.apart:
            return 1
        return self.data_parallel.replicas or self.pipelines(world_size)


def read_deepspeed_config(config: str | Path | dict[str, Any]) -> dict[str, Any]:
    """The DeepSpeed JSON as a dict.

    Raises:
        ConfigError: the file is missing, or is not a JSON object.
    """
    if isinstance(config, dict):
        return config
    path = Path(config)
    if not path.is_file():
        raise ConfigError(f"DeepSpeed config {path} does not exist; expected a JSON file (examples: recipes/configs/)")
    try:
        loaded = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds a {type(loaded).__name__}, expected a JSON object")
    return loaded


def parse_config(deepspeed_config: dict[str, Any]) -> RecParallelConfig:
    """Validate the ``"recparallel"`` section; a missing section means all defaults.

    Raises:
        ConfigError: one line per wrong key: where, what was given, what is allowed.
    """
    section = deepspeed_config.get(SECTION, {})
    if not isinstance(section, dict):
        raise ConfigError(f'"{SECTION}" must be a JSON object, got {section!r}')
    try:
        return RecParallelConfig.model_validate(section)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from error


def _explain(problem: Any) -> str:
    path = [SECTION, *map(str, problem["loc"])]
    where = ".".join(path)
    if problem["type"] == "extra_forbidden":
        allowed = _fields_at(path[1:-1])
        near = difflib.get_close_matches(path[-1], allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"{where}: unknown key (given {problem['input']!r}); allowed here: {', '.join(sorted(allowed))}.{hint}"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')} (given {problem['input']!r})"


def _fields_at(path: list[str]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "partition": PartitionConfig,
        "rebalance": RebalanceConfig,
        "compression": CompressionConfig,
        "momentum_correction": MomentumCorrectionConfig,
        "data_parallel": DataParallelConfig,
    }
    return list(sections.get(path[-1] if path else "", RecParallelConfig).model_fields)


AUTO = "auto"


def fill_auto(deepspeed_config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Replace every ``"auto"`` by the value that ``values`` has for its key, as Hugging Face's Trainer does. In our own section it
    has a meaning of its own.

    Raises:
        ConfigError: an ``"auto"`` for which there is no value.
    """

    def fill(node: Any, path: str) -> Any:
        if path == SECTION:
            return node
        if isinstance(node, dict):
            return {key: fill(value, f"{path}.{key}" if path else key) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(value, f"{path}[{index}]") for index, value in enumerate(node)]
        if node != AUTO:
            return node
        key = path.rsplit(".", 1)[-1]
        if key not in values:
            raise ConfigError(f'{path} is "auto", but only these can be: {", ".join(sorted(values))}')
        return values[key]

    filled: dict[str, Any] = fill(deepspeed_config, "")
    return filled
