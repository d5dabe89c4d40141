"""Random numbers of a rank's own in a part of a layer, the same on all ranks elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ODD = 0x9E3779B97F4A7C15
_MASK = (1 << 63) - 1


class OwnRandomness:
    """Dropout inside what ranks compute each for itself must differ between them; behind it, it must not.

    Args:
        rank: number of this rank.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._before: tuple[torch.Generator, torch.Tensor] | None = None

    def begin(self, device: torch.device) -> None:
        """From here on, numbers follow from the generator's seed and the rank."""
        generator = torch.default_generator
        if device.type == "cuda":
            generator = torch.cuda.default_generators[device.index or 0]
        self._before = generator, generator.get_state()
        generator.manual_seed((generator.initial_seed() + (self._rank + 1) * _ODD) & _MASK)

    def end(self) -> None:
        """Go on where all ranks were; does nothing if nothing began."""
        if self._before is not None:
            generator, state = self._before
            generator.set_state(state)
            self._before = None

    @contextmanager
    def within(self, device: torch.device) -> Iterator[None]:
        """From :meth:`begin` to :meth:`end`."""
        self.begin(device)
        try:
            yield
        finally:
            self.end()
