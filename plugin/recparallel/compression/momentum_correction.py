"""Momentum that is added up before it is cut down to what is sent."""

import torch
from torch import Tensor

from recparallel.compression.memory import ByBucket, Key, Memory
from recparallel.errors import ConfigError


class MomentumCorrection(Memory):
    """Momentum correction with local gradient clipping and momentum factor masking.

    For each bucket, with momentum ``m``:

    1. ``g`` is scaled down to a norm of ``clip / sqrt(number of replicas)``, if ``clip`` is given.
    2. ``u = m u + g``, ``v = v + u``; exchange ``v``.
    3. Where an element got through whole, ``u = v = 0``; elsewhere ``v`` keeps what did not. Of a bucket that is summed densely
       ``u`` goes on.

    Takes the place of the optimizer's momentum: use it with plain SGD (Lin et al., "Deep Gradient Compression", ICLR 2018,
    sections 3.1 and 3.2).

    Args:
        momentum: in [0, 1).
        clip: largest norm of the sum of all replicas' gradients for a bucket; None is not to clip.
        replicas: that exchange.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(self, *, momentum: float = 0.9, clip: float | None = None, replicas: int = 1) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ConfigError(f"momentum_correction: momentum must be in [0, 1), got {momentum!r}")
        if clip is not None and not clip > 0.0:
            raise ConfigError(f"momentum_correction: clip must be above 0, got {clip!r}")
        self._momentum, self._clip = momentum, None if clip is None else clip / replicas**0.5
        self._velocities, self._totals = ByBucket(), ByBucket()

    def corrected(self, flat_N: Tensor, names: Key, sizes: list[int]) -> Tensor:
        gradient_N = flat_N if self._clip is None else flat_N * self._scale(flat_N)
        before_N, total_N = self._velocities.of(names, sizes, flat_N), self._totals.of(names, sizes, flat_N)
        into_N = self._velocities.unused(names, before_N)
        velocity_N = torch.add(gradient_N, before_N, alpha=self._momentum, out=into_N)
        self._velocities.wait(names, velocity_N)
        return torch.add(total_N, velocity_N, out=self._totals.unused(names, total_N))

    def keep(self, names: Key, rest_N: Tensor, *, dense: bool = False) -> None:
        if not dense:
            self._velocities.waiting(names).mul_(rest_N != 0)
        self._totals.wait(names, rest_N)

    def settle(self, made: bool | Tensor) -> None:
        self._velocities.settle(made)
        self._totals.settle(made)

    def state_dict(self) -> dict[str, Tensor]:
        totals = self._totals.by_name()
        return {name: torch.stack([velocity, totals[name]]) for name, velocity in self._velocities.by_name().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._velocities.load({name: both[0] for name, both in state.items()})
        self._totals.load({name: both[1] for name, both in state.items()})

    def _scale(self, flat_N: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(flat_N.float())
        return (self._clip / norm.clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=1.0)
