"""Layers that several ranks share: column, row and vocabulary sharding, and what the ranks exchange."""

from recparallel.tensor_parallel.ranks import ALONE, TensorRanks

__all__ = ["ALONE", "TensorRanks"]
