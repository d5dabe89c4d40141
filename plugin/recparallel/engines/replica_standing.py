"""How far a replica that comes and goes is, as it tells the others when they form a group."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Standing:
    """What one of them tells.

    Attributes:
        progress: steps of the training.
        exchanges: that it has followed since the training began at this meeting point.
        is_new: it has been in no group yet.
        identity: what must be the same for all, in words.
        digest: of the common weights of one that is new.
        counters: of an :class:`OwnPaceReplicas`, which those behind take over.
        seen: progress, as its training loop has seen it last.
        dealing: the counter by which batches are dealt out, and from which number.
        followed: ``exchanges`` at the end of each group, by its name.
    """

    progress: int
    exchanges: int
    is_new: bool
    identity: tuple[Any, ...]
    digest: tuple[str, ...]
    counters: tuple[int, int, int]
    seen: int
    dealing: tuple[str, int]
    followed: dict[str, int]

    @property
    def how_far(self) -> tuple[bool, int, int]:
        """Who was there before is further than who has just come."""
        return not self.is_new, self.progress, self.exchanges


def is_behind(one: Standing, first: Standing) -> bool:
    """Whether ``one`` needs what ``first``, the furthest, has. Who has just come does, unless all have, with the same weights."""
    if one.is_new:
        return not first.is_new or one.progress != first.progress or one.digest != first.digest
    return (one.how_far, one.followed) != (first.how_far, first.followed)
