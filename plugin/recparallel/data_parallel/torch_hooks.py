"""PyTorch's own communication hooks, by name, bound to the right group.

They are written for torch DDP (``torch/distributed/algorithms/ddp_comm_hooks``); a bucket here offers what theirs
offers. Buckets are exchanged one after the other, each waited for, so the chained collectives of PowerSGD keep one
order on all ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from recparallel.data_parallel.hook import BoundHook
from recparallel.errors import ConfigError


def fp16(group: dist.ProcessGroup | None) -> BoundHook:
    """Half precision on the wire."""
    return _TwoByteHook("torch_fp16", fp16_compress_hook, group)


def bf16(group: dist.ProcessGroup | None) -> BoundHook:
    """bfloat16 on the wire."""
    return _TwoByteHook("torch_bf16", bf16_compress_hook, group)


def powersgd(
    group: dist.ProcessGroup | None, *, rank: int = 2, start_iter: int = 2, error_feedback: bool = True
) -> BoundHook:
    """PowerSGD with warm start (Vogels, Karimireddy & Jaggi, NeurIPS 2019).

    Args:
        rank: of the approximation of each matrix.
        start_iter: steps with the dense average before compression starts; torch asks for at least 2.
        error_feedback: keep what was left out and send it later.

    Raises:
        ConfigError: a number is out of range.
    """
    for name, value, least in (("rank", rank, 1), ("start_iter", start_iter, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"torch_powersgd: {name} must be an integer of at least {least}, got {value!r}")
    state = PowerSGDState(
        process_group=group,
        matrix_approximation_rank=rank,
        start_powerSGD_iter=start_iter,
        use_error_feedback=error_feedback,
    )
    return PowerSGDHook("torch_powersgd", powerSGD_hook, state)


class _TwoByteHook(BoundHook):
    def wire_bytes(self, bucket: Any) -> int:
        return 2 * int(bucket.buffer().numel())


class PowerSGDHook(BoundHook):
    """Adds what torch's state object lacks: a state dict, without the process group that cannot be stored, and a
    count of bytes."""

    _KEPT = ("error_dict", "p_memory_dict", "q_memory_dict", "iter")

    def wire_bytes(self, bucket: Any) -> int:
        sent = self.state.total_numel_after_compression - getattr(self, "_counted", 0)
        self._counted = self.state.total_numel_after_compression
        flat = bucket.buffer()
        return int((sent or flat.numel()) * flat.element_size())  # nothing counted: a dense step of the warm-up

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values alone; of NumPy's generator what it needs to go on."""
        kind, keys, *rest = self.state.rng.get_state()
        rng = (kind, torch.from_numpy(keys.astype("int64")), *rest)
        return {**{name: getattr(self.state, name) for name in self._KEPT}, "rng": rng}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._KEPT:
            setattr(self.state, name, state[name])
        kind, keys, *rest = state["rng"]
        self.state.rng.set_state((kind, keys.numpy().astype("uint32"), *rest))
