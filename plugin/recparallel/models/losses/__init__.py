"""Losses over :data:`~recparallel.models.layer.HeadOutput`: one file each, all means over targets."""

from recparallel.data.markers import IGNORE
from recparallel.models.losses.base import TargetLoss

__all__ = ["IGNORE", "TargetLoss"]
