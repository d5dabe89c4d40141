"""What a training step cost on every rank, brought together on rank 0."""

from collections import defaultdict

import torch.distributed as dist

from recparallel.events import Event, Exchange, Phase, ReplicaExchange, StepDone, TiedExchange, Transfer


class StepSummary:
    """Adds up this rank's events between two calls of :meth:`gather`; subscribe it on every rank.

    Times are the host's: on a GPU a phase ends when its kernels are launched.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._steps = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Phase):
            self._sums[f"{event.name}_s"] += event.seconds
        elif isinstance(event, Exchange):
            self._sums["exchange_wire_bytes"] += event.wire_bytes
            self._sums["exchange_dense_bytes"] += event.dense_bytes
        elif isinstance(event, TiedExchange):
            self._sums["tied_wire_bytes"] += event.wire_bytes
            self._sums["tied_dense_bytes"] += event.dense_bytes
        elif isinstance(event, ReplicaExchange):
            self._sums["replicas_wire_bytes"] += event.wire_bytes
            self._sums["replicas_waited_s"] += event.waited
        elif isinstance(event, Transfer):
            self._sums["boundary_sent_bytes"] += event.num_bytes
        elif isinstance(event, StepDone):
            self._steps += 1

    def gather(self) -> list[dict[str, float]]:
        """Means per step since the last call, by rank; a list on rank 0, empty elsewhere. All ranks must call it."""
        own = {name: value / max(self._steps, 1) for name, value in self._sums.items()}
        self._sums.clear()
        self._steps = 0
        everyone: list[dict[str, float]] | None = [{}] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(own, everyone)
        return everyone or []
