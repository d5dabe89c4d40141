"""All sides by name: which module runs them, with what, and in which launch.

Sides of one launch run one after the other in the same processes: importing the stack costs each rank several seconds.
AutoTP comes last in it, as it changes DeepSpeed's process-global mode. A side that may crash has a launch of its own.
"""

import importlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from benchmarks.peers.trainer import Job, Trainer
from benchmarks.workloads import Workload
from recparallel.errors import UnknownNameError

if TYPE_CHECKING:
    from recparallel.models.recommender import Recommender

REPLICATED = "replicated"
PIPELINE = "pipeline"
TENSOR = "tensor"


@dataclass(frozen=True)
class Side:
    """One way to train.

    Attributes:
        name: what results call it.
        module: under :mod:`benchmarks.peers`; has ``build(job, recommender, **options)``.
        kind: ``replicated``, ``pipeline`` or ``tensor``: which micro-batches make sense.
        launch: sides with the same text share processes.
        options: for ``build``.
        stages: of the pipeline; 0 is one for each rank.
        tensor: ranks that share every layer of a stage, where there is a pipeline too.
        updated_once: each weight is updated by one rank only, although there are replicas.
        settles: steps that it needs before its steady state, beside the warm-up of every side.
        measures: it measures links while it is built, so they keep their limit meanwhile.
        kernels: of softmax and attention: ``stock``, ``ours``, or ``engine`` where ours chooses them itself
            (:mod:`benchmarks.peers.kernels`).
        workloads: those it is for; empty means all.
        precisions: that a probe tries.
    """

    name: str
    module: str
    kind: str
    launch: str
    options: dict[str, Any] = field(default_factory=dict)
    stages: int = 1
    tensor: int = 1
    updated_once: bool = False
    settles: int = 0
    measures: bool = False
    kernels: str = "stock"
    workloads: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32", "bf16")

    def build(self, job: Job, recommender: "Recommender") -> Trainer:
        """The side on this rank."""
        from benchmarks.peers.kernels import KERNELS

        module = importlib.import_module(f"benchmarks.peers.{self.module}")
        trainer: Trainer = module.build(job, KERNELS[self.kernels](recommender, job), **self.options)
        return trainer

    def suits(self, workload: Workload) -> bool:
        """Whether it is measured on this workload."""
        return not self.workloads or workload.name in self.workloads

    def replicas(self, world_size: int) -> int:
        """That share a global batch."""
        if self.kind == TENSOR:
            return 1
        return world_size // ((self.stages or world_size) * self.tensor)

    def updates(self, world_size: int) -> int:
        """How often the job updates each weight in a step."""
        return 1 if self.updated_once else self.replicas(world_size)

    def micro_batches(self, workload: Workload, world_size: int) -> tuple[int, ...]:
        """Micro-batches that a probe tries."""
        share = workload.global_batch // self.replicas(world_size)
        if self.options.get("dualpipev"):
            share //= 2 * (self.stages or world_size)  # DualPipeV needs two micro-batches for each of its stages
        elif self.kind == PIPELINE:
            share //= self.stages or world_size  # as many as there are stages, or most of them idle
        candidates = [size for size in (32, 16, 8, 4, 2) if size <= share and (size < 32 or self.kind == TENSOR)]
        return tuple(candidates[:3]) or (max(share, 1),)


ALONE = {
    sparse: Side(name, "alone", REPLICATED, "alone", {"sparse": sparse}, kernels="ours")
    for sparse, name in ((False, "alone"), (True, "alone sparse"))
}
"""One process without an exchange, by kind of table gradient; not sides, but the basis of their compute bounds."""

BASE = "ds dp"


def _hybrid(
    name: str, *, stages: int, tensor: int = 1, precisions: tuple[str, ...] = ("fp32", "bf16"), **more: Any
) -> Side:
    options = {"method": "simulated_any_order", "stages": stages, "tensor": tensor, **more}
    kind = PIPELINE if stages != 1 else TENSOR if tensor == 4 else REPLICATED
    return Side(
        name,
        "recparallel_pipeline",
        kind,
        "main",
        options,
        stages=stages,
        tensor=tensor,
        measures=stages != 1 or more.get("compression") == {"codec": "auto"},
        kernels="engine",
        precisions=precisions,
    )


_SPARSE_SGD = {"sparse": True, "table": "sgd"}

_OURS = {
    side.name: side
    for side in (
        _hybrid("recparallel", stages=0),
        _hybrid("recparallel adaptive", stages=0, method="adaptive"),
        _hybrid("recparallel fp32, 1f1b", stages=0, schedule="1f1b", precisions=("fp32",)),
        _hybrid("recparallel fp32", stages=0, precisions=("fp32",)),
        _hybrid("recparallel fp32, bf16 on the wire", stages=0, wire="bf16", precisions=("fp32",)),
        _hybrid("recparallel spread", stages=0, spread_head=True),
        _hybrid("recparallel spread2 dp2", stages=2, spread_head=True),
        _hybrid("recparallel pp2 dp2", stages=2),
        _hybrid("recparallel dp4 lazy", stages=1, lazy_rows=True),
        _hybrid("recparallel dp4 lazy auto", stages=1, lazy_rows=True, compression={"codec": "auto"}),
        _hybrid("recparallel pp2 dp2 lazy", stages=2, lazy_rows=True),
        Side("ds dp sparse sgd", "deepspeed_replicated", REPLICATED, "main", _SPARSE_SGD, workloads=("catalogue",)),
        Side("ddp sparse sgd", "torch_ddp", REPLICATED, "main", _SPARSE_SGD, workloads=("catalogue",)),
        *(
            _hybrid(f"recparallel pp2 dp2 {codec}", stages=2, compression={"codec": codec})
            for codec in ("auto", "int8", "top_k_threshold")
        ),
        *(
            Side(
                f"ddp {codec} of ours",
                "torch_ddp",
                REPLICATED,
                "main",
                {"compression": {"codec": codec}},
                settles=1,
                measures=codec == "auto",
            )
            for codec in ("auto", "bf16", "int8", "int4", "power_sgd", "top_k_threshold")
        ),
        Side("ddp without exchange", "torch_ddp", REPLICATED, "main", {"hook": "left out"}),
        _hybrid("recparallel tp2 pp2", stages=2, tensor=2),
        _hybrid("recparallel tp2 pp2 positions", stages=2, tensor=2, sequence_parallel=True),
        _hybrid("recparallel tp2 dp2", stages=1, tensor=2),
        _hybrid("recparallel tp4", stages=1, tensor=4),
    )
}
"""Sides of ours; not among the stock ones, but found by name."""

SIDES: dict[str, Side] = {
    side.name: side
    for side in (
        Side("ds dp", "deepspeed_replicated", REPLICATED, "main"),
        Side("ds zero1", "deepspeed_replicated", REPLICATED, "main", {"zero": 1}, updated_once=True),
        Side("ds dp sparse", "deepspeed_replicated", REPLICATED, "main", {"sparse": True}, workloads=("catalogue",)),
        Side("ddp", "torch_ddp", REPLICATED, "main"),
        Side("ddp fp16", "torch_ddp", REPLICATED, "main", {"hook": "fp16"}),
        Side("ddp sparse", "torch_ddp", REPLICATED, "main", {"sparse": True}, workloads=("catalogue",)),
        Side("ds pp uniform", "deepspeed_pipeline", PIPELINE, "main", {"method": "uniform"}, stages=0),
        Side("ds pp parameters", "deepspeed_pipeline", PIPELINE, "main", {"method": "parameters"}, stages=0),
        Side("ds pp2 dp2", "deepspeed_pipeline", PIPELINE, "main", {"method": "parameters", "stages": 2}, stages=2),
        Side("ds dualpipev", "deepspeed_pipeline", PIPELINE, "main", {"dualpipev": True}, stages=0),
        Side(
            "ds dualpipev2 dp2",
            "deepspeed_pipeline",
            PIPELINE,
            "main",
            {"dualpipev": True, "stages": 2, "method": "uniform"},
            stages=2,
            workloads=("catalogue",),
        ),
        Side("ds autotp", "deepspeed_autotp", TENSOR, "main"),
        Side(
            "ds autotp trunk",
            "deepspeed_autotp",
            TENSOR,
            "main",
            {"vocab_parallel": False},
            workloads=("catalogue",),
        ),
        Side("ddp powersgd", "torch_ddp", REPLICATED, "powersgd", {"hook": "powersgd"}, settles=2),
    )
}

GIVEN_OURS = replace(SIDES["ds pp uniform"], name="ds pp uniform (our kernels)", kernels="ours")
"""What of our pipeline's lead is the pipeline's: stock with the same softmax and attention. Not a stock side."""


def get_side(name: str) -> Side:
    """The side of this name, ours and those of :data:`ALONE` too.

    Raises:
        UnknownNameError: there is none; the message lists those that exist and the nearest.
    """
    known = {**SIDES, **_OURS, GIVEN_OURS.name: GIVEN_OURS, **{side.name: side for side in ALONE.values()}}
    if name not in known:
        raise UnknownNameError("side", name, known, where="benchmarks.peers.sides")
    return known[name]


def sides_for(workload: Workload) -> tuple[Side, ...]:
    """All sides that are measured on a workload, in the order of their launches."""
    return tuple(side for side in SIDES.values() if side.suits(workload))
