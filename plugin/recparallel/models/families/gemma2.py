"""Gemma 2: vectors of the table are scaled by the root of their width before the first block."""

from recparallel.models.trunk import Trunk


class Gemma2Trunk(Trunk):
    """Where Gemma 2 keeps its parts, and how it scales what comes in."""

    @property
    def embedding_scale(self) -> float:
        return float(self.dim**0.5)
