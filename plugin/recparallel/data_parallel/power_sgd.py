"""Send matrices by factors of low rank."""

import zlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recparallel.collectives.bucket import Bucket
from recparallel.compression.error_feedback import ErrorFeedback
from recparallel.compression.memory import Memory
from recparallel.compression.options import check_integer
from recparallel.data_parallel.hook import BoundHook
from recparallel.data_parallel.synchronous import CompressedHook, LossyAverage, Sent, average_compressed


def power_sgd(
    group: dist.ProcessGroup | None, *, rank: int = 2, error_feedback: bool = True, warm_up_steps: int = 0
) -> BoundHook:
    """The hook, see :class:`LowRankAverage`.

    Args:
        rank: of the approximation of each matrix.
        error_feedback: keep what was left out and send it later.
        warm_up_steps: with the dense average, before anything is approximated.

    Raises:
        ConfigError: rank is not an integer of at least 1.
    """
    check_integer("power_sgd", "rank", rank, least=1)
    memory = ErrorFeedback() if error_feedback else None
    state = LowRankAverage(group, rank=rank, memory=memory, dense_steps=warm_up_steps)
    return CompressedHook("power_sgd", average_compressed, state)


class LowRankAverage(LossyAverage):
    """PowerSGD with warm start.

    For every gradient ``M`` (n, m) of a matrix, with ``Q`` (m, r) from the step before, the same on all ranks:

    1. ``P = M Q``; sum over the ranks; orthogonalize.
    2. ``Q = Mᵀ P``; sum over the ranks.
    3. The sum of all ``M`` becomes ``P Qᵀ``; a rank keeps ``M - P (Mᵀ P)ᵀ``, its own share of what is missing.

    Vectors, and matrices that factors would not make smaller, are summed as they are, beside step 1 (Vogels, Karimireddy & Jaggi,
    "PowerSGD", NeurIPS 2019, Algorithms 1 and 2; there a rank keeps the difference to the mean, which adds up to the same and is
    larger). ``r (n + m)`` numbers travel instead of ``n m``, in two messages a bucket.

    Args:
        group, memory: see :class:`~recparallel.data_parallel.synchronous.LossyAverage`.
        rank: r.
        dense_steps: at the start, in which everything is summed as it is.
    """

    def __init__(
        self, group: dist.ProcessGroup | None, *, rank: int, memory: Memory | None, dense_steps: int = 0
    ) -> None:
        super().__init__(group, memory=memory)
        self._rank, self._dense_steps = rank, dense_steps
        self._factors: dict[str, Tensor] = {}
        self._waiting: dict[str, Tensor] = {}

    shows_what_is_given = True  # each element of M is in a sum of P

    def sum(self, given_N: Tensor, total_N: Tensor, bucket: Bucket, *, step: int) -> Sent:
        if step < self._dense_steps:
            return self.sum_densely(given_N, total_N, bucket.buffer().dtype)
        given_N = given_N.to(total_N.dtype)
        matrices, vectors = {}, []
        parts = zip(bucket.names, bucket.parameters(), *(flat.split(bucket.sizes()) for flat in (given_N, total_N)))
        for name, parameter, given, total in parts:
            shape = (parameter.shape[0], -1) if parameter.dim() > 1 else (-1, 1)
            matrix, into = given.view(shape), total.view(shape)
            if self._rank * sum(matrix.shape) < matrix.numel():
                matrices[name] = (matrix, into)
            else:
                vectors.append((given, total))
        factors = {name: self._factor(name, matrix) for name, (matrix, _) in matrices.items()}
        lefts = [matrices[name][0] @ factor for name, factor in factors.items()]
        firsts, sent = self._all_reduced([*lefts, *(given for given, _ in vectors)], given_N)
        factors = {name: torch.linalg.qr(summed).Q for name, summed in zip(matrices, sent)}
        rights = [matrices[name][0].T @ factors[name] for name in matrices]
        seconds, sums = self._all_reduced(rights, given_N)
        # What is not finite on one rank, or overflows, is so in a sum, here on all: then nothing but NaN comes back.
        finite = firsts.isfinite().all() & seconds.isfinite().all()
        world = firsts.new_tensor(float(dist.get_world_size(self.process_group)))
        divisor = torch.where(finite, world, world.new_tensor(float("nan")))
        for (given, total), summed in zip(vectors, sent[len(lefts) :]):
            torch.div(summed, divisor, out=total)
            if self.memory is not None:
                given.zero_()
        for (name, (matrix, into)), own, summed in zip(matrices.items(), rights, sums):
            if self.memory is not None:
                matrix.addmm_(factors[name], own.T, alpha=-1)
            self._waiting[name] = summed / divisor
            torch.matmul(factors[name], self._waiting[name].T, out=into)
        numbers = len(firsts) + len(seconds)
        known = bool(finite) if finite.device.type == "cpu" else finite
        return Sent(numbers * total_N.element_size(), finite=known)

    def settle(self, *, made: bool = True) -> None:
        finite = self._finite if made else False
        for name, factor in self._waiting.items():
            if isinstance(finite, Tensor):
                self._factors[name] = torch.where(finite, factor, self._factors[name])
            elif finite:
                self._factors[name] = factor
        self._waiting.clear()
        super().settle(made=made)

    def _factor(self, name: str, matrix: Tensor) -> Tensor:
        """Q (m, r): that of the step before, or drawn by the parameter's name."""
        if name in self._waiting:  # a second micro-batch of the step
            return self._waiting[name]
        if name not in self._factors:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            self._factors[name] = torch.randn(matrix.shape[1], self._rank, generator=generator)
        self._factors[name] = self._factors[name].to(matrix)  # as loaded, it may be elsewhere
        return self._factors[name]

    def _all_reduced(self, parts: list[Tensor], like: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The sums of ``parts`` in one message: flat, and each in its shape; nothing, on the device of ``like``, of none."""
        if not parts:
            return torch.zeros(0, device=like.device), []
        flat = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(flat, group=self.process_group)
        return flat, [piece.view(part.shape) for part, piece in zip(parts, flat.split([p.numel() for p in parts]))]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "factors": self._factors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._factors = dict(state["factors"])
        self._waiting.clear()

    def by_parameter(self) -> dict[str, Tensor]:
        """One tensor each: the size of Q, Q, and the residual."""
        residuals = super().by_parameter()
        found = {}
        for name in [*residuals, *(name for name in self._factors if name not in residuals)]:
            factor, residual = self._factors.get(name), residuals.get(name)
            kept = [part.reshape(-1) for part in (factor, residual) if part is not None]
            size = kept[0].new_tensor([0.0 if factor is None else factor.numel()])
            found[name] = torch.cat([size, *(part.to(size) for part in kept)])
        return found

    def set_by_parameter(self, state: dict[str, Tensor]) -> None:
        self._factors, residuals = {}, {}
        for name, packed in state.items():
            end = 1 + int(packed[0])
            if end > 1:
                self._factors[name] = packed[1:end].view(-1, self._rank).clone()
            if end < len(packed):
                residuals[name] = packed[end:].clone()
        super().set_by_parameter(residuals)
