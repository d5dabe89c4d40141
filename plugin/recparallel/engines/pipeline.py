"""A DeepSpeed ``PipelineModule`` made from a recommender's layers, cut by any registered partitioner."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import ProcessTopology
from torch.utils.checkpoint import checkpoint

from recparallel import registry
from recparallel.config import AttentionChoice, PartitionConfig, WireFormatName
from recparallel.engines.agreement import Ranks
from recparallel.engines.attention_choice import with_chosen_attention
from recparallel.engines.device_order import topology_in_order
from recparallel.engines.lazy_rows import let_rows_be_lazy
from recparallel.engines.measured_profile import obtain_profile
from recparallel.engines.packed_rows import Sample
from recparallel.engines.partition_table import print_partition
from recparallel.engines.seeding import base_seed, seed_layer
from recparallel.errors import CheckpointError, PartitionError, RecParallelError
from recparallel.models.layer import Layer
from recparallel.models.packing import Packing, run_packed
from recparallel.models.recommender import Recommender
from recparallel.models.shared import shared_among
from recparallel.optimizers.row_adamw import RowAdamW
from recparallel.partitioning.recompute import fit_by_recomputing
from recparallel.partitioning.spread_head import spread_last_layer
from recparallel.plan import DEFAULT_SCHEDULE, Partition, PipelineScheduleName, Profile, SpreadLayer
from recparallel.profiling.sums import PLAIN_SUMS, GradientSums
from recparallel.tensor_parallel import TensorRanks


class RecommenderPipeline(PipelineModule):
    """The layers of one recommender, spread over pipeline stages.

    Every layer draws its initial weights, and in every micro-batch its dropout, from a seed of its own (DeepSpeed's
    ``seed_layers``). The engine moves ``micro_offset`` so that this seed counts the micro-batches of the whole job:
    results do not depend on where the cuts are, on which rank a stage runs, nor on how many replicas share a global batch.

    Args:
        tensor: ranks that share every layer of a stage.
        sequence_parallel: they share positions too.
        spread_head: stages share the rows of the last layer.
        attention: how blocks compute it.
        dtype: of the weights that will be trained; layers are timed in it.
        sample: one micro-batch, for partitioners that measure; timed by all ranks.
        num_micro_batches: of a step, in each replica.
        schedule: that the engine will run.
        wire: name of what tensors are that cross boundaries.
        optimizer_shares: replicas among which the optimizer's state is divided (ZeRO-1).
        sums: how the training will add up gradients.
        profile: use this profile instead of measuring.
        fixed: use this cut, whatever the method.
        tells: print the cut, on the first rank.

    Raises:
        PartitionError: on every rank, if a stage would be empty, measuring fails, or ranks disagree on the cut.
    """

    parts: list[int]
    """DeepSpeed's name for the bounds of the cut."""

    packings: Iterator[Packing] | None = None
    """How the rows of the next forward passes are divided, while a step with packed rows runs."""

    cut_by_profile = False
    """The cut is the best for the profile; one that was given may be that of another day."""

    def __init__(
        self,
        recommender: Recommender,
        *,
        num_stages: int,
        partition: PartitionConfig,
        tensor: int = 1,
        sequence_parallel: bool = False,
        spread_head: bool = False,
        attention: AttentionChoice = "model",
        seed: int = 1234,
        dtype: torch.dtype = torch.float32,
        sample: Sample | None = None,
        num_micro_batches: int | None = None,
        schedule: PipelineScheduleName = DEFAULT_SCHEDULE,
        wire: WireFormatName = "same",
        optimizer_shares: int = 1,
        sums: GradientSums = PLAIN_SUMS,
        profile: Profile | None = None,
        fixed: Partition | None = None,
        tells: bool = True,
        **pipeline_options: Any,
    ) -> None:
        device = get_accelerator().current_device_name()
        recommender = with_chosen_attention(recommender, attention, sample=sample, device=device, dtype=dtype)
        share = dist.get_rank() % tensor
        ranks = TensorRanks(share, tensor, sequence=sequence_parallel)
        timed = shared_among(recommender, TensorRanks(share, tensor, sequence=sequence_parallel, timing=True))
        recommender = shared_among(recommender, ranks)
        self._layers = recommender.layers
        self._ranks = ranks
        self._spread_head, self._tells = spread_head, tells
        self.profile = profile
        self.schedule = schedule
        if fixed is None and partition.measured and num_stages == 1:
            fixed = Partition(bounds=(0, len(recommender.layers)), method=partition.method)  # nothing to cut or measure
        if partition.measured and (fixed is None or (partition.adaptive and num_stages > 1)):
            self.profile = obtain_profile(
                timed,
                partition,
                given=profile,
                sample=sample,
                device=device,
                dtype=dtype,
                num_micro_batches=num_micro_batches,
                schedule=schedule,
                wire=wire,
                optimizer_shares=optimizer_shares,
                sums=sums,
            )
            self.cut_by_profile = fixed is None
            fixed = fixed or self._solve(partition, num_stages)
        self._chosen = fixed
        self.partition: Partition
        super().__init__(
            layers=[_spec(layer) for layer in recommender.layers[: -1 if spread_head else None]],
            topology=self._topology(num_stages, tensor),
            loss_fn=recommender.loss_fn,
            seed_layers=True,
            seed_fn=seed_layer,
            base_seed=base_seed(seed),
            partition_method=partition.method,
            **pipeline_options,
        )
        self.recommender = recommender
        self.ranks = ranks
        self.spread_head = self._own_rows_of_head(base_seed(seed)) if spread_head else None
        self.lazy_kinds, self.lazy_tables = sums.lazy, let_rows_be_lazy(self, sums.lazy)
        self.row_optimizers: dict[torch.Tensor, RowAdamW] = {}
        if sums.lazy:
            Ranks(error=PartitionError).together(self._check_trained)

    def forward(self, forward_input: Any) -> Any:
        """As DeepSpeed's; the layers that the partition says recompute, and those that must know where histories begin are told."""
        packing = None if self.packings is None else next(self.packings)
        own = {layer - self._local_start for layer in self.partition.recompute}
        recomputes = torch.is_grad_enabled() and not own.isdisjoint(range(len(self.forward_funcs)))
        if not recomputes and packing is None:
            return super().forward(forward_input)
        self.micro_offset += 1
        x, micro_batch = forward_input, self.micro_offset + 1
        for place, layer in enumerate(self.forward_funcs):
            run = partial(self._run_seeded, layer, self._local_start + place, micro_batch, packing)
            again = recomputes and place in own
            x = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False) if again else run(x)
        return x

    def _check_trained(self) -> None:
        """DeepSpeed makes no optimizer of nothing."""
        if self.lazy_tables and not any(p.requires_grad for p in self.parameters()):
            raise PartitionError(
                f"a stage of the cut {list(self.partition.bounds)} holds nothing but an item table, and with recparallel.lazy_rows "
                "DeepSpeed would have nothing to train there; use fewer stages, or another cut"
            )

    def _run_seeded(
        self, layer: Callable[..., Any], number: int, micro_batch: int, packing: Packing | None, x: Any
    ) -> Any:
        """A layer with the random numbers that DeepSpeed gives it in this micro-batch, however often it runs."""
        self.curr_layer = number
        if self.seed_layers:
            self.seed_fn(self.base_seed * micro_batch + number)
        return run_packed(layer, x, packing)

    def save_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """DeepSpeed's own checkpoints.

        Raises:
            CheckpointError: stages share the head, or item tables are trained by rows; DeepSpeed would leave these out.
        """
        self._refuse_incomplete()
        super().save_state_dict(*args, **kwargs)

    def load_state_dir(self, *args: Any, **kwargs: Any) -> None:
        """As :meth:`save_state_dict`."""
        self._refuse_incomplete()
        super().load_state_dir(*args, **kwargs)

    def _refuse_incomplete(self) -> None:
        if self._spread_head or self.lazy_kinds:
            what = "a head that stages share" if self._spread_head else "what item tables that are trained by rows keep"
            raise CheckpointError(
                f"DeepSpeed's checkpoints know nothing of {what} and would leave it out; use recparallel.engines.checkpoint "
                "(save_checkpoint, load_checkpoint)"
            )

    def _own_rows_of_head(self, base: int) -> torch.nn.Module | None:
        """This stage's share of the last layer, with the weights that the whole one would begin with; None for a stage without.
        Collective: it makes groups."""
        (spread,) = self.partition.spread
        pipes = self.topology().get_axis_comm_lists("pipe")
        groups = [dist.new_group([pipe[stage] for stage in spread.stages]) for pipe in pipes]
        if self.stage_id not in spread.stages:
            return None
        rows = TensorRanks(spread.stages.index(self.stage_id), len(spread.stages), shares=spread.shares)
        rows.group = next(group for group, pipe in zip(groups, pipes) if self.global_rank in pipe)
        head = self._layers[-1]
        seed_layer(base + len(self._layers) - 1)
        return replace(head, kwargs={**head.kwargs, "ranks": rows}).build().to(get_accelerator().current_device_name())

    def _solve(self, config: PartitionConfig, num_stages: int) -> Partition:
        """The registered method's cut, or its error on every rank, also where only one rank's profile has none."""
        assert self.profile is not None
        method = config.method
        answer: Partition | Exception
        try:
            solve = registry.partitioners.load(method)
            if self._spread_head:
                answer = spread_last_layer(self.profile, num_stages, solve)
            elif config.recompute == "when_needed":
                answer = fit_by_recomputing(self.profile, num_stages, solve)
            else:
                answer = solve(self.profile, num_stages)
        except Exception as error:  # the others wait for an answer
            answer = error if isinstance(error, RecParallelError) else PartitionError(f"method {method!r}: {error!r}")
        failed: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(failed, str(answer) if isinstance(answer, Exception) else None)
        if isinstance(answer, Exception):
            raise answer
        if others := [f"rank {rank}: {reason}" for rank, reason in enumerate(failed) if reason is not None]:
            raise PartitionError(others[0])
        return answer

    def _topology(self, num_stages: int, tensor: int) -> ProcessTopology:
        """Where each stage runs. Ranks must agree on it before they make their groups by it."""
        partition = self._chosen
        order = () if partition is None else partition.device_order
        self._agree(None if partition is None else (partition.bounds, order, _spread_of(partition)))
        if partition is not None:
            self._check(partition, num_stages)
        replicas = dist.get_world_size() // (num_stages * tensor)
        return topology_in_order(stages=num_stages, replicas=replicas, tensor=tensor, order=order)

    def _partition_layers(self, method: str = "uniform") -> None:
        """Called by DeepSpeed while it builds. Its own methods go to it; ours, it would answer with
        NotImplementedError. Layers are built after it, and groups made before."""
        self._ranks.group = self._grid.get_slice_parallel_group()
        partition = self._chosen
        if partition is None:
            try:
                super()._partition_layers(method)
            except RuntimeError as error:  # a "type:REGEX" that no layer matches
                kinds = sorted({layer.module_class.__name__ for layer in self._layers})
                raise PartitionError(
                    f"partition.method {method!r}: {error} Layer types are: {', '.join(kinds)}"
                ) from error
            bounds = [int(bound) for bound in self.parts]
            spread: tuple[SpreadLayer, ...] = ()
            if self._spread_head:
                spread = (SpreadLayer(layer=bounds[-1], stages=tuple(range(self.num_stages))),)
                bounds[-1] += 1
            partition = Partition(bounds=tuple(bounds), method=method, spread=spread)
            self._agree((partition.bounds, (), _spread_of(partition)))
            self._check(partition, self.num_stages)
        self.parts = list(partition.bounds)  # plain integers: DeepSpeed's own methods leave NumPy's
        if self._spread_head:
            self.parts[-1] -= 1  # DeepSpeed knows nothing of the head
        self.partition = partition
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])
        if self.global_rank == 0 and self._tells:
            print_partition(partition, [layer.name for layer in self._layers], self.profile)

    def _count_layer_params(self) -> list[int]:
        """Called by DeepSpeed for its method ``parameters``. Shares may differ by a row, and the cut must not."""
        counts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(counts, [int(count) for count in super()._count_layer_params()])
        return [max(of_layer) for of_layer in zip(*counts)]

    def _synchronize_tied_weights(self) -> None:
        """Every copy of a tied table begins with the weights of its first stage, whichever rank that runs on.

        DeepSpeed takes the lowest rank's instead, inside autograd's view, which then warns in every backward pass.
        """
        with torch.no_grad():
            for tied in self.tied_comms.values():
                for name in tied["weight_attr"]:
                    dist.broadcast(getattr(tied["module"], name), src=tied["ranks"][0], group=tied["group"])

    def _agree(self, cut: tuple[Any, ...] | None) -> None:
        """Every rank must hold the same cut: otherwise some rank would wait for ever."""
        cuts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(cuts, cut)
        if different := [rank for rank, theirs in enumerate(cuts) if theirs != cuts[0]]:
            first, other = (_in_words(cuts[rank]) for rank in (0, different[0]))
            raise PartitionError(f"ranks disagree on the cut: rank 0 has {first}, rank {different[0]} has {other}")

    def _check(self, partition: Partition, num_stages: int) -> None:
        """The cut must be one of these layers into these stages, and no stage may be empty."""
        if partition.num_stages != num_stages:
            raise PartitionError(f"the partition has {partition.num_stages} stages, the pipeline {num_stages}")
        if partition.num_layers != len(self._layers):
            raise PartitionError(
                f"the partition covers {partition.num_layers} layers, the model has {len(self._layers)}"
            )
        if partition.virtual > 1:
            raise PartitionError(
                f"DeepSpeed's pipeline runs one chunk a stage; the partition has {partition.virtual} chunks a stage"
            )
        shared = [(spread.layer, spread.stages) for spread in partition.spread]
        runs = not shared
        if self._spread_head:
            runs = (
                len(shared) == 1 and shared[0][0] == partition.num_layers - 1 and _end_in(shared[0][1], num_stages - 1)
            )
        if not runs:
            wanted = (
                f"layer {partition.num_layers - 1}, the last stage among those" if self._spread_head else "no layer"
            )
            raise PartitionError(
                f"the partition shares {_shared_in_words(shared)} among stages; with recparallel.spread_head "
                f"{str(self._spread_head).lower()} the pipeline runs {wanted}"
            )
        bounds = [*partition.bounds[:-1], partition.num_layers - bool(shared)]
        if empty := [s for s, (a, b) in enumerate(zip(bounds, bounds[1:])) if a >= b]:
            raise PartitionError(
                f"method {partition.method!r} leaves stage {empty[0]} of {partition.num_stages} without layers "
                f"(bounds {list(partition.bounds)}); "
                "use fewer stages or partition.method 'profile'"
            )


def _end_in(stages: tuple[int, ...], last: int) -> bool:
    """They are different, in order, and end with the last one."""
    return list(stages) == sorted(set(stages)) and stages[0] >= 0 and stages[-1] == last


def _shared_in_words(shared: list[tuple[int, tuple[int, ...]]]) -> str:
    return ", ".join(f"layer {layer} (stages {list(stages)})" for layer, stages in shared) or "no layer"


def _in_words(cut: tuple[Any, ...] | None) -> str:
    if cut is None:
        return "none"
    bounds, order, spread = cut
    shared = f" with shares {spread}" if spread else ""
    return f"{list(bounds)}" + (f" on devices {list(order)}" if order else "") + shared


def _spread_of(partition: Partition) -> tuple[Any, ...]:
    return tuple((spread.layer, spread.stages, spread.shares) for spread in partition.spread)


def _spec(layer: Layer) -> LayerSpec:
    if layer.tie is not None:
        return TiedLayerSpec(
            layer.tie, layer.module_class, forward_fn=layer.forward, tied_weight_attr="weight", **layer.kwargs
        )
    return LayerSpec(layer.module_class, **layer.kwargs)
