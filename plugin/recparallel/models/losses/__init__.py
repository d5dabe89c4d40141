"""Losses over :data:`~recparallel.models.layer.HeadOutput`: one file each, all means over targets."""

from recparallel.models.losses.base import IGNORE, TargetLoss

__all__ = ["IGNORE", "TargetLoss"]
