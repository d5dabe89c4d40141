"""Save and resume a training, under any cut, number of replicas and ZeRO stage.

A checkpoint is one folder, ``step_N``: tensors by global names (``engines/engine_state.py``), what else the engine counts
(scheduler, steps, loss scale) with the sampler's position, the gradient hook's state of each rank, and a manifest. Dropout and
negatives need no random state: they are seeded by the number of the micro-batch, which follows from the step.

Residuals of a gradient hook belong to the buckets of their plan: with a hook, and only then, the plan must stay what it was.
"""

import io
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.checkpointing.commit import POINTER, begin, commit, latest, write_synced
from recparallel.checkpointing.manifest import FILE, Manifest, describe_files, list_files, read_manifest, verify_files
from recparallel.checkpointing.names import STATE, WEIGHT
from recparallel.checkpointing.tensors import TENSORS, read_tensors, stored_tensors, write_tensors
from recparallel.engines.agreement import Ranks
from recparallel.engines.engine_state import check_storable, collect, parameters_by_name, restore
from recparallel.engines.replica_elastic import ElasticReplicas
from recparallel.errors import CheckpointError
from recparallel.models.layers import ItemEmbedding
from recparallel.plan import ParallelPlan
from recparallel.tensor_parallel.split import shape_of_whole

TRAINING = "training.pt"

__all__ = ["POINTER", "Checkpointer", "check_resumable", "load_checkpoint", "load_weights", "save_checkpoint"]


class Checkpointer:
    """Writes checkpoints of one training, each while the training goes on. Every rank makes one, and calls it alike.

    Args:
        engine: a pipeline engine over a recommender.
        folder: where ``step_N`` and the pointer ``latest`` go; shared by all machines.

    Attributes:
        folder: where they go for this replica; those that train apart, but for the first, have one of their own in it.
    """

    def __init__(self, engine: Any, folder: Path) -> None:
        check_storable(engine)
        self._engine, self.folder = engine, _folder_of(engine, folder)
        self._ranks = Ranks(dist.new_group(backend="gloo"))  # its own: messages of a training must not mix with these
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None
        self._last: Path | None = None

    def save(self, *, sampler: dict[str, Any]) -> None:
        """Copy the state to the host's memory, and begin to write it; what was being written is finished first.

        Args:
            sampler: ``GlobalBatchSampler.state_dict()``.

        Raises:
            CheckpointError: the checkpoint before this one could not be written (:meth:`wait`).
        """
        self.wait()
        self._engine.recparallel.meet()
        target = self.folder / _name(self._engine)
        if target not in (self._last, self._engine.recparallel.checkpoint):  # it may have been loaded from there
            self._writing = self._thread.submit(_write, _snapshot(self._engine, sampler), self.folder, self._ranks)
            self._last = self._engine.recparallel.checkpoint = target
            self._engine.recparallel.writing = self._is_writing

    def _is_writing(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def wait(self) -> None:
        """Until the checkpoint is whole and the latest, or has failed.

        Raises:
            CheckpointError: on every rank, where one could not write its part. The checkpoint before stays the latest.
        """
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
        except CheckpointError:
            self._last = self._engine.recparallel.checkpoint = None
            raise

    def close(self) -> None:
        """Wait, and give the thread and the group back."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            dist.destroy_process_group(self._ranks.group)


def save_checkpoint(engine: Any, folder: Path, *, sampler: dict[str, Any]) -> Path:
    """Write ``folder/step_N``, make it the latest, and return when that is done; call it on every rank.

    Args:
        sampler: ``GlobalBatchSampler.state_dict()``.

    Raises:
        CheckpointError: on every rank, where one could not write its part. The checkpoint before stays the latest.
    """
    check_storable(engine)
    engine.recparallel.meet()
    folder = _folder_of(engine, folder)
    target = folder / _name(engine)
    if engine.recparallel.checkpoint != target:
        _write(_snapshot(engine, sampler), folder, Ranks())
        engine.recparallel.checkpoint = target
    return target


@dataclass(frozen=True)
class _Snapshot:
    """What one rank writes, apart from the engine, which goes on.

    Attributes:
        name: of the checkpoint.
        tensors: this rank's share.
        files: others, by name.
        manifest: without the files.
    """

    name: str
    tensors: dict[str, Tensor]
    files: dict[str, bytes]
    manifest: Manifest


def _name(engine: Any) -> str:
    return f"step_{engine.recparallel.progress}"


def _snapshot(engine: Any, sampler: dict[str, Any]) -> _Snapshot:
    rank, files = dist.get_rank(), {}
    if engine.recparallel.hook is not None:
        files[_hook_file(rank)] = _to_bytes(engine.recparallel.state_dict())
    if engine.recparallel.replicas is not None:
        files[_outer_file(rank)] = _to_bytes(engine.recparallel.replicas.state_dict())
    if rank == 0:
        files[TRAINING] = _to_bytes(_counters(engine) | {"sampler": sampler})
    recommender = engine.module.recommender
    manifest = Manifest(
        step=engine.recparallel.progress,
        plan=engine.recparallel.plan,
        trunk=recommender.config.to_dict(),
        num_rows=recommender.num_items + 1,
        items=issubclass(recommender.layers[0].module_class, ItemEmbedding),
        files={},
    )
    return _Snapshot(_name(engine), collect(engine), files, manifest)


def _write(snapshot: _Snapshot, folder: Path, ranks: Ranks) -> Path:
    partial = ranks.first(lambda: begin(folder, snapshot.name))
    with _removed_on_failure(partial, ranks):
        write_tensors(snapshot.tensors, partial / TENSORS, group=ranks.group)

        def write_files() -> None:
            for name, content in snapshot.files.items():
                write_synced(partial / name, content)

        ranks.together(write_files)
        names = ranks.first(lambda: list_files(partial))
        parts = ranks.gather(lambda: describe_files(partial, names[ranks.number :: ranks.count]))
        files = {name: found for part in parts for name, found in part.items()}

        def finish() -> None:
            manifest = snapshot.manifest.model_copy(update={"files": files})
            write_synced(partial / FILE, manifest.model_dump_json(indent=1).encode())
            commit(partial)

        ranks.first(finish)
    return folder / snapshot.name


def check_resumable(
    folder: Path, *, stages: int, replicas: int, zero_stage: int, codec: str, tensor: int = 1
) -> Manifest:
    """The manifest of the latest checkpoint, if a run with these degrees can go on from it; needs no process group.

    Args:
        codec: of the gradients; ``"none"`` without a hook.

    Raises:
        CheckpointError: there is no checkpoint, or its hook cannot go on under this plan.
    """
    source = latest(folder)
    manifest = read_manifest(source)
    active = codec if replicas > 1 else "none"
    now = {"pipeline": stages, "tensor": tensor, "data": replicas, "zero_stage": zero_stage, "compression": active}
    _check_hook(source, manifest.plan, now)
    return manifest


def load_checkpoint(engine: Any, folder: Path) -> dict[str, Any]:
    """Restore the latest checkpoint of ``folder`` into ``engine``; call it on every rank.

    Returns:
        the sampler's state.

    Raises:
        CheckpointError: on every rank, if there is none, a file of it is missing or damaged, it is of another model, or its
            hook cannot go on under this plan.
    """
    ranks = Ranks()
    ranks.together(lambda: check_storable(engine))
    source = ranks.first(lambda: _latest_of(engine, folder))
    manifest = ranks.first(lambda: read_manifest(source))
    ranks.together(lambda: _check_hook(source, manifest.plan, _in_plain_values(engine.recparallel.plan)))
    ranks.together(lambda: verify_files(manifest, source, share=ranks.number, shares=ranks.count))
    stored = ranks.together(lambda: stored_tensors(source / TENSORS))
    own = parameters_by_name(engine)
    shapes = ranks.gather(lambda: {name: tuple(shape_of_whole(parameter)) for name, parameter in own.items()})
    weights = {name.partition("/")[2]: t.shape for name, t in stored.items() if name.startswith(f"{WEIGHT}/")}
    _check_model(source, weights, {name: shape for part in shapes for name, shape in part.items()})

    def read() -> dict[str, Any]:
        prefixes = tuple(f"{STATE}/{name}/" for name in own)
        names = [f"{WEIGHT}/{name}" for name in own] + [name for name in stored if name.startswith(prefixes)]
        restore(engine, read_tensors(names, source / TENSORS, stored=stored))
        if manifest.plan.compression != "none":
            engine.recparallel.load_state_dict(
                torch.load(source / _hook_file(ranks.number), map_location=engine.device, weights_only=False)
            )
        if engine.recparallel.replicas is not None:
            # A replica without a checkpoint of its own reads the first one's, and has left nothing out of exchanges yet.
            same = source.parent == _folder_of(engine, folder)
            same = same and _in_plain_values(manifest.plan) == _in_plain_values(engine.recparallel.plan)
            engine.recparallel.replicas.load_state_dict(_outer_state(source, ranks.number, same=same))
        training: dict[str, Any] = torch.load(source / TRAINING, weights_only=True)
        return training

    training = ranks.together(read)
    ranks.together(lambda: _restore_counters(engine, training))
    if engine.recparallel.replicas is not None:
        engine.recparallel.replicas.at_rest()
    engine.recparallel.checkpoint = _folder_of(engine, folder) / _name(engine)
    return dict(training["sampler"])


def load_weights(engine: Any, folder: Path) -> None:
    """Give ``engine`` the weights of the latest checkpoint of ``folder``, whatever its plan was; call it on every rank. What
    optimizer and hook keep stays as it is: for an evaluation, not to go on from.

    Raises:
        CheckpointError: on every rank, if there is none, or a file of it is missing or damaged.
    """
    ranks = Ranks()
    source = ranks.first(lambda: latest(_folder_of(engine, folder)))
    manifest = ranks.first(lambda: read_manifest(source))
    ranks.together(lambda: verify_files(manifest, source, share=ranks.number, shares=ranks.count))

    def read() -> None:
        stored = stored_tensors(source / TENSORS)
        restore(
            engine,
            read_tensors([f"{WEIGHT}/{name}" for name in parameters_by_name(engine)], source / TENSORS, stored=stored),
        )

    ranks.together(read)


def _counters(engine: Any) -> dict[str, Any]:
    """What the engine counts, the same on every rank; replicas at their own pace go on by the training's clock."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    steps = engine.recparallel.progress
    return {
        "global_steps": steps,
        "global_samples": engine.global_samples + (steps - engine.global_steps) * engine.train_batch_size(),
        "skipped_steps": engine.skipped_steps,
        "scheduler": None if engine.lr_scheduler is None else engine.lr_scheduler.state_dict(),
        "groups": [
            {key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups
        ],
        "loss_scaler": {key: value for key, value in vars(scaler).items() if isinstance(value, (int, float))}
        if engine.fp16_enabled() and scaler is not None
        else {},
    }


def _restore_counters(engine: Any, training: dict[str, Any]) -> None:
    groups = engine.optimizer.param_groups
    if len(groups) != len(training["groups"]):
        raise CheckpointError(
            f"stored are {len(training['groups'])} groups of parameters, the optimizer has {len(groups)}"
        )
    for group, stored in zip(groups, training["groups"]):
        group.update(stored)
    if engine.lr_scheduler is not None and training["scheduler"] is not None:
        engine.lr_scheduler.load_state_dict(training["scheduler"])
    for key in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, key, training[key])
    if engine.fp16_enabled():
        vars(engine.optimizer.loss_scaler).update(training["loss_scaler"])


def _check_model(source: Path, stored: dict[str, Any], own: dict[str, Any]) -> None:
    differences = [f"{name} is not in the checkpoint" for name in sorted(own.keys() - stored.keys())]
    differences += [f"{name} is not in the model" for name in sorted(stored.keys() - own.keys())]
    differences += [
        f"{name}: stored {list(stored[name])}, now {list(own[name])}"
        for name in sorted(own.keys() & stored.keys())
        if stored[name] != own[name]
    ]
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise CheckpointError(f"{source} is of another model: {'; '.join(differences[:5])}{more}")


def _check_hook(source: Path, stored: ParallelPlan, now: dict[str, Any]) -> None:
    """With a hook on either side the plans must be the same in what ``now`` tells."""
    then = _in_plain_values(stored)
    if then["compression"] == now["compression"] == "none":
        return
    different = [f"{key}: stored {then[key]!r}, now {value!r}" for key, value in now.items() if then[key] != value]
    if different:
        raise CheckpointError(
            f"{source} was written under another plan ({'; '.join(different)}), and a gradient hook's state belongs to its plan; "
            "resume with the stored one (where neither has a hook, any plan can go on)"
        )


def _in_plain_values(plan: ParallelPlan) -> dict[str, Any]:
    keys = ("pipeline", "tensor", "data", "zero_stage", "dtype", "compression")
    bounds, order = plan.partition.bounds, plan.partition.device_order
    shared = [(spread.layer, spread.shares) for spread in plan.partition.spread]
    values = {key: getattr(plan, key) for key in keys}
    return values | {"cut": list(bounds), "order of devices": list(order), "layers shared by stages": shared}


def _folder_of(engine: Any, folder: Path) -> Path:
    """Replicas that train apart have checkpoints of their own, for what their optimizers keep; the first has them in ``folder``.
    Those that come and go are given a folder each."""
    replicas = engine.recparallel.replicas
    number = 0 if replicas is None or isinstance(replicas, ElasticReplicas) else replicas.world.number
    return folder / f"replica_{number}" if number else folder


def _latest_of(engine: Any, folder: Path) -> Path:
    """This replica's, if it is as new as that of the first, whose weights are the same; else that one."""
    first, own = latest(folder), _folder_of(engine, folder)
    return own / first.name if (own / first.name / FILE).is_file() else first


def _outer_file(rank: int | str) -> str:
    return f"outer_rank_{rank}.pt"


def _outer_state(source: Path, rank: int, *, same: bool) -> dict[str, Any] | None:
    """What :meth:`Replicas.state_dict` gave: the outer optimizer's of all ranks, so that another cut finds its weights; of what is
    exchanged this rank's own."""
    files = sorted(source.glob(_outer_file("*")))
    parts = [torch.load(path, map_location="cpu", weights_only=True) for path in files]
    if not parts:
        return None
    exchange = parts[files.index(source / _outer_file(rank))]["exchange"] if same else {}
    outer = {name: kept for part in parts for name, kept in part["outer"].items()}
    return {**parts[0], "outer": outer, "exchange": exchange}


def _hook_file(rank: int) -> str:
    return f"hook_rank_{rank}.pt"


def _to_bytes(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@contextmanager
def _removed_on_failure(partial: Path, ranks: Ranks) -> Iterator[None]:
    """A disk that was full has room again."""
    try:
        yield
    except CheckpointError:
        if ranks.number == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
