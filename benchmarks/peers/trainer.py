"""What a rank is asked to train, and what every peer offers."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.workloads import Workload, get_workload

if TYPE_CHECKING:
    import torch

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
SEED = 1234


@dataclass(frozen=True)
class Setting:
    """How a side is run: what a probe chooses.

    Attributes:
        micro_batch: sequences of a micro-batch.
        precision: ``fp32`` or ``bf16``.
    """

    micro_batch: int
    precision: str

    def __str__(self) -> str:
        return f"micro-batch {self.micro_batch}, {self.precision}"

    @classmethod
    def from_words(cls, words: str) -> "Setting":
        """The reverse of ``str``."""
        number, precision = words.removeprefix("micro-batch ").split(", ")
        return cls(int(number), precision)


@dataclass(frozen=True)
class Job:
    """One side on one workload, as a rank gets it.

    Attributes:
        label: what results call it; the control has the same side under another label.
        side: name in :data:`benchmarks.peers.sides.SIDES`.
        workload: name in :data:`benchmarks.workloads.WORKLOADS`.
        setting: micro-batch and precision.
        warmup, steps: steps before the measurement, and in it.
        global_batch: sequences of a step, if other than the workload's.
    """

    label: str
    side: str
    workload: str
    setting: Setting
    warmup: int = 1
    steps: int = 1
    global_batch: int | None = None

    @property
    def spec(self) -> Workload:
        """The workload itself."""
        workload = get_workload(self.workload)
        if self.global_batch is None:
            return workload
        return Workload(**{**vars(workload), "global_batch": self.global_batch})

    def to_json(self) -> dict[str, Any]:
        """For the command line of a rank."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Job":
        """The reverse of :meth:`to_json`."""
        return cls(**{**content, "setting": Setting(**content["setting"])})


@dataclass
class StepResult:
    """What a training step gives back.

    Attributes:
        loss: of the global batch where this rank knows it, of its own share otherwise; ``None`` where it knows none.
        optimizer_cpu_seconds: of the update alone, where a peer measures it.
        extra: what a side tells of itself on this rank, the same names in every step.
    """

    loss: "torch.Tensor | None"
    optimizer_cpu_seconds: float | None = None
    extra: dict[str, float] = field(default_factory=dict)


class Trainer(Protocol):
    """One side, built on this rank."""

    def step(self, number: int) -> StepResult:
        """Train one global batch."""

    def close(self) -> None:
        """Give memory, hooks and process-global state back."""
