"""A DeepSpeed ``PipelineModule`` made from a recommender's layers, cut by any registered partitioner."""

import logging
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec

from recparallel import registry
from recparallel.config import PartitionConfig
from recparallel.engines.partition_table import print_partition
from recparallel.engines.seeding import base_seed, seed_layer
from recparallel.errors import PartitionError, RecParallelError
from recparallel.models.layer import Layer
from recparallel.models.recommender import Recommender
from recparallel.plan import Partition, Profile
from recparallel.profiling.layers import profile_layers

logger = logging.getLogger(__name__)

Sample = tuple[torch.Tensor, torch.Tensor]


class RecommenderPipeline(PipelineModule):
    """The layers of one recommender, spread over pipeline stages.

    Every layer draws its initial weights, and in every micro-batch its dropout, from a seed of its own (DeepSpeed's
    ``seed_layers``). The engine moves ``micro_offset`` so that this seed counts the micro-batches of the whole job:
    results do not depend on where the cuts are, nor on how many replicas share a global batch.

    Args:
        dtype: of the weights that will be trained; layers are timed in it.
        sample: one micro-batch, for partitioners that measure. Timed on rank 0.
        profile: use this profile instead of measuring.
        fixed: use this cut, whatever the method; a run that resumes needs the one it was stored with.

    Raises:
        PartitionError: on every rank, if a stage would be empty, measuring fails, or ranks disagree on the cut.
    """

    parts: list[int]
    """DeepSpeed's name for the bounds of the cut."""

    def __init__(
        self,
        recommender: Recommender,
        *,
        num_stages: int,
        partition: PartitionConfig,
        seed: int = 1234,
        dtype: torch.dtype = torch.float32,
        sample: Sample | None = None,
        profile: Profile | None = None,
        fixed: Partition | None = None,
        **pipeline_options: Any,
    ) -> None:
        self._layers = recommender.layers
        self._loss = recommender.loss_fn
        self._config = partition
        self._dtype = dtype
        self._sample = sample
        self._fixed = fixed
        self.profile = profile
        self.partition: Partition
        super().__init__(
            layers=[_spec(layer) for layer in recommender.layers],
            num_stages=num_stages,
            loss_fn=recommender.loss_fn,
            seed_layers=True,
            seed_fn=seed_layer,
            base_seed=base_seed(seed),
            partition_method=partition.method,
            **pipeline_options,
        )
        self.recommender = recommender

    def _partition_layers(self, method: str = "uniform") -> None:
        """Called by DeepSpeed while it builds. Its own methods go to it; ours, it would answer with
        NotImplementedError."""
        if self._fixed is not None:
            partition = self._fixed
        elif method in registry.partitioners:
            self.profile = self.profile or self._measure()
            partition = registry.partitioners.load(method)(self.profile, self.num_stages)
        else:
            try:
                super()._partition_layers(method)
            except RuntimeError as error:  # a "type:REGEX" that no layer matches
                kinds = sorted({layer.module_class.__name__ for layer in self._layers})
                raise PartitionError(
                    f"partition.method {method!r}: {error} Layer types are: {', '.join(kinds)}"
                ) from error
            partition = Partition(bounds=tuple(map(int, self.parts)), method=method)
        self.parts = list(partition.bounds)  # plain integers: DeepSpeed's own methods leave NumPy's
        self._agree(partition)
        self.partition = partition
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])
        if self.global_rank == 0:
            print_partition(partition, [layer.name for layer in self._layers], self.profile)

    def _synchronize_tied_weights(self) -> None:
        """DeepSpeed broadcasts the weights inside autograd's view, which then warns in every backward pass."""
        with torch.no_grad():
            super()._synchronize_tied_weights()

    def _measure(self) -> Profile:
        """Rank 0 times the layers; every rank gets the same profile, or the same error."""
        answer: list[Any] = [None]
        if self.global_rank == 0:
            try:
                answer = [self._profile_here()]
            except Exception as error:
                logger.exception("profiling failed")
                answer = [
                    error
                    if isinstance(error, RecParallelError)
                    else PartitionError(f"profiling the layers failed: {error!r}")
                ]
        dist.broadcast_object_list(answer, src=0)
        if isinstance(answer[0], Exception):
            raise answer[0]
        return Profile.model_validate_json(answer[0])

    def _profile_here(self) -> str:
        if self._sample is None:
            raise PartitionError(
                f"partition method {self._config.method!r} times the layers with a real micro-batch: "
                "pass training_data (or sample, or a profile)"
            )
        profile = profile_layers(
            self._layers,
            self._loss,
            self._sample,
            repeats=self._config.repeats,
            warmup=self._config.warmup,
            device=get_accelerator().current_device_name(),
            dtype=self._dtype,
        )
        return profile.model_dump_json()

    def _agree(self, partition: Partition) -> None:
        """Every rank must hold the same cut, and no stage may be empty: otherwise some rank would wait for ever."""
        bounds: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(bounds, partition.bounds)
        if different := [rank for rank, theirs in enumerate(bounds) if theirs != bounds[0]]:
            raise PartitionError(
                f"ranks disagree on the cut: rank 0 has {list(bounds[0])}, rank {different[0]} has {list(bounds[different[0]])}"
            )
        if partition.num_stages != self.num_stages:
            raise PartitionError(f"the partition has {partition.num_stages} stages, the pipeline {self.num_stages}")
        if partition.num_layers != len(self._layers):
            raise PartitionError(
                f"the partition covers {partition.num_layers} layers, the model has {len(self._layers)}"
            )
        if empty := [s for s, (a, b) in enumerate(zip(partition.bounds, partition.bounds[1:])) if a == b]:
            raise PartitionError(
                f"method {partition.method!r} leaves stage {empty[0]} of {partition.num_stages} without layers "
                f"(bounds {list(partition.bounds)}); "
                "use fewer stages or partition.method 'profile'"
            )


def _spec(layer: Layer) -> LayerSpec:
    if layer.tie is not None:
        return TiedLayerSpec(
            layer.tie, layer.module_class, forward_fn=layer.forward, tied_weight_attr="weight", **layer.kwargs
        )
    return LayerSpec(layer.module_class, **layer.kwargs)
