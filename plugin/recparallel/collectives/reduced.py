"""Sum payloads as they are, where adding them is as good as adding what they stand for."""

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.collectives.base import Aggregation, Summed, zeros_for_sum
from recparallel.compression.base import Codec


class Reduced(Aggregation):
    """One all-reduce of payloads in fp32: ``2 (P - 1) / P`` of one arrives at each rank. For codecs that pick the same elements on
    every rank."""

    name = "reduced"

    @classmethod
    def refuses(cls, codec: Codec) -> str:
        return "" if codec.exact_sums else "its payloads cannot be added"

    def sum(self, codec: Codec, flat_N: Tensor, *, seed: int, keep_rest: bool) -> Summed:
        payload = codec.encode(flat_N, seed=seed)
        sent_N = zeros_for_sum(len(flat_N), flat_N)
        if keep_rest:
            codec.add_decoded(payload, sent_N, seed=seed)
        rest_N = torch.sub(flat_N, sent_N) if keep_rest else None
        sums = tuple(tensor.to(sent_N.dtype, copy=True) for tensor in payload)
        for tensor in sums:
            dist.all_reduce(tensor, group=self.group)
        total_N = sent_N.zero_()
        codec.add_decoded(sums, total_N, seed=seed)
        return Summed(total_N, rest_N, sum(tensor.numel() * tensor.element_size() for tensor in sums))
