"""Sum payloads by gathering all of them: exact for any codec; the volume grows with the number of replicas."""

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.compression import Codec, Payload


def sum_of_gathered(
    codec: Codec, payload: Payload, *, size: int, dtype: torch.dtype, group: dist.ProcessGroup
) -> Tensor:
    """Sum over the ranks of ``group`` of what their payloads stand for, shape (size,), in ``dtype``.

    Payloads are added in the order of ranks, so the result is the same, bit for bit, on every rank.
    """
    world = dist.get_world_size(group)
    gathered: list[list[Tensor]] = []
    for tensor in payload:
        everyone = tensor.new_empty(world * tensor.numel())
        dist.all_gather_into_tensor(everyone, tensor.contiguous().view(-1), group=group)
        gathered.append([part.view(tensor.shape) for part in everyone.split(tensor.numel())])
    total = torch.zeros(size, dtype=dtype, device=payload[0].device)
    for rank in range(world):
        codec.add_decoded(tuple(parts[rank] for parts in gathered), total)
    return total
