"""Sum payloads as they are, where adding them is as good as adding what they stand for."""

import torch.distributed as dist
from torch import Tensor

from recparallel.collectives.base import Aggregation
from recparallel.compression.base import Codec


class Reduced(Aggregation):
    """One all-reduce of payloads in fp32: ``2 (P - 1) / P`` of one arrives at each rank. For codecs that pick the same elements on
    every rank."""

    name = "reduced"

    @classmethod
    def refuses(cls, codec: Codec) -> str:
        return "" if codec.exact_sums else "its payloads cannot be added"

    def sum(self, codec: Codec, given_N: Tensor, total_N: Tensor, *, seed: int, keep_rest: bool) -> int:
        payload = codec.encode(given_N, seed=seed)
        if keep_rest:
            codec.add_decoded(payload, given_N, seed=seed, alpha=-1.0)
        sums = tuple(tensor.to(total_N.dtype, copy=True) for tensor in payload)
        for tensor in sums:
            dist.all_reduce(tensor, group=self.group)
        codec.add_decoded(sums, total_N.zero_(), seed=seed)
        return sum(tensor.numel() * tensor.element_size() for tensor in sums)
