"""Save and resume a training: DeepSpeed's checkpoint, and beside it what DeepSpeed does not know.

One folder a step holds DeepSpeed's files (layers, optimizer, scheduler), ``plan.json``, and one file a rank with the
state of the gradient hook. The sampler's position travels in DeepSpeed's client state. Dropout and negatives need no
random state: they are seeded by the number of the micro-batch, which follows from the step.

The pointer ``latest`` moves, atomically, when every rank has written its files; a save that is interrupted leaves the
one before it the latest. (DeepSpeed moves it on rank 0 without waiting for the others.)
"""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from recparallel.errors import CheckpointError
from recparallel.plan import ParallelPlan

POINTER = "latest"


def save_checkpoint(engine: Any, folder: Path, *, sampler: dict[str, Any]) -> Path:
    """Write ``folder/step_N``, and make it the latest.

    Args:
        sampler: ``GlobalBatchSampler.state_dict()``.
    """
    tag = f"step_{engine.global_steps}"
    target = folder / tag
    if (folder / POINTER).is_file() and latest_checkpoint(folder) == target:
        return target  # the same step of the same run: writing it again would put the only good copy at risk
    dist.barrier()  # everybody has looked before anybody writes
    target.mkdir(parents=True, exist_ok=True)
    torch.save(engine.recparallel.state_dict(), _rank_file(target))
    if dist.get_rank() == 0:
        (target / "plan.json").write_text(engine.recparallel.plan.model_dump_json(indent=2))
    engine.save_checkpoint(
        str(folder), tag=tag, client_state={"sampler": sampler}, save_latest=False
    )  # ends with a barrier
    if dist.get_rank() == 0:
        moved = folder / f"{POINTER}.new"
        moved.write_text(tag)
        os.replace(moved, folder / POINTER)
    dist.barrier()
    return target


def latest_checkpoint(folder: Path) -> Path:
    """Folder of the latest complete checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    pointer = folder / POINTER
    if not pointer.is_file():
        raise CheckpointError(
            f"{folder} holds no checkpoint (no file {POINTER!r}); start without --resume, or name another folder"
        )
    target = folder / pointer.read_text().strip()
    if not (target / "plan.json").is_file():
        raise CheckpointError(f"{pointer} names {target}, which has no plan.json: the checkpoint is incomplete")
    return target


def stored_plan(folder: Path) -> ParallelPlan:
    """The plan that the latest checkpoint of ``folder`` was written under; its partition has to be used again."""
    return ParallelPlan.model_validate_json((latest_checkpoint(folder) / "plan.json").read_text())


def check_resumable(folder: Path, *, stages: int, replicas: int, zero_stage: int) -> ParallelPlan:
    """The stored plan, if a run with these degrees can continue it; needs no process group.

    Raises:
        CheckpointError: there is no checkpoint, or it was written under another plan.
    """
    stored = stored_plan(folder)
    wanted = {"pipeline": stages, "data": replicas, "zero_stage": zero_stage}
    _refuse_differences(latest_checkpoint(folder), [(key, getattr(stored, key), now) for key, now in wanted.items()])
    return stored


def load_checkpoint(engine: Any, folder: Path) -> dict[str, Any]:
    """Restore the latest checkpoint of ``folder`` into ``engine``; call it on every rank.

    Returns:
        the sampler's state.

    Raises:
        CheckpointError: there is none, a file of it is missing, or it was written under another plan.
    """
    source = latest_checkpoint(folder)
    _check_plan(engine.recparallel.plan, stored_plan(folder), source)
    own = _rank_file(source)
    if not own.is_file():
        raise CheckpointError(f"{own} is missing: the checkpoint is incomplete")
    path, client_state = engine.load_checkpoint(str(folder), tag=source.name)
    if path is None:
        raise CheckpointError(f"DeepSpeed could not load {source}; its log says why")
    engine.recparallel.load_state_dict(torch.load(own, map_location=engine.device, weights_only=False))
    return dict(client_state["sampler"])


def _check_plan(own: ParallelPlan, stored: ParallelPlan, source: Path) -> None:
    keys = ("pipeline", "tensor", "data", "zero_stage", "dtype", "compression")
    compared = [(key, getattr(stored, key), getattr(own, key)) for key in keys]
    cuts = [
        (name, list(getattr(stored.partition, key)), list(getattr(own.partition, key)))
        for name, key in (("cut", "bounds"), ("order of devices", "device_order"))
    ]
    _refuse_differences(source, [*compared, *cuts])


def _refuse_differences(source: Path, compared: list[tuple[str, Any, Any]]) -> None:
    different = [f"{key}: stored {then!r}, now {now!r}" for key, then, now in compared if then != now]
    if different:
        raise CheckpointError(
            f"{source} was written under another plan ({'; '.join(different)}); resume with the stored one"
        )


def _rank_file(folder: Path) -> Path:
    return folder / f"recparallel_rank_{dist.get_rank()}.pt"
