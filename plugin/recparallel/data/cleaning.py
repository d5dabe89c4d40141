"""What is left out of a log before it becomes histories, counted step by step: nothing disappears in silence."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from recparallel.errors import ConfigError


@dataclass(frozen=True)
class Filters:
    """What is left out.

    Attributes:
        min_user_events: users with fewer events are; 3 is what leaving one out needs.
        min_item_events: items with fewer events are. With both above 1, what is left has both (a core).
        max_user_events: users with more are: a script, or the wrong column.
        min_rating: interactions rated lower are none; None takes what the reader says, for most formats all.

    Raises:
        ConfigError: a number is less than 1, or nothing can be between two of them.
    """

    min_user_events: int = 3
    min_item_events: int = 1
    max_user_events: int = 1_000_000
    min_rating: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_user_events", "min_item_events", "max_user_events"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_user_events < self.min_user_events:
            raise ConfigError(
                f"max_user_events={self.max_user_events} is below min_user_events={self.min_user_events}: nothing is left"
            )
        if self.min_rating is not None and self.min_rating != self.min_rating:
            raise ConfigError("min_rating is not a number")


class CleaningReport(BaseModel):
    """What was read, what was left out, and why. Steps in this order; each counts what the ones before have left.

    Attributes:
        rows: of the log's files, and of those that name items.
        malformed: of these, left out.
        malformed_first: the first of them, as ``path:line: reason: text``.
        below_min_rating: interactions that are none.
        overlong_users, overlong_events: users with too many events, and these.
        overlong_names: the first of these users.
        duplicates: repeated another interaction in every column.
        out_of_order: came behind a later one of the same user in the files; they are sorted, not left out.
        short_users, short_events: users with too few events, and these.
        rare_items, rare_events: items with too few events, and these.
        repeated_items: rows of metadata about an item that an earlier one was about; left out.
        untitled_items: items that are left and that the metadata lacks; they are called by their id. 0 without metadata.
    """

    model_config = ConfigDict(extra="forbid")

    rows: int = 0
    malformed: int = 0
    malformed_first: list[str] = []
    below_min_rating: int = 0
    overlong_users: int = 0
    overlong_events: int = 0
    overlong_names: list[str] = []
    duplicates: int = 0
    out_of_order: int = 0
    short_users: int = 0
    short_events: int = 0
    rare_items: int = 0
    rare_events: int = 0
    repeated_items: int = 0
    untitled_items: int = 0

    def lines(self) -> list[tuple[str, int]]:
        """What happened, in words, with its count; steps that left everything as it was are not listed."""
        steps = {
            "malformed rows, left out": self.malformed,
            "interactions below the least rating, left out": self.below_min_rating,
            f"events of {self.overlong_users:,} overlong users (first {', '.join(self.overlong_names[:3])}), left out": (
                self.overlong_events
            ),
            "exact duplicates, left out": self.duplicates,
            "rows out of order, sorted": self.out_of_order,
            f"events of {self.rare_items:,} rare items, left out": self.rare_events,
            f"events of {self.short_users:,} short users, left out": self.short_events,
            "rows about an item that an earlier row was about, left out": self.repeated_items,
            "items that the metadata lacks, called by their id": self.untitled_items,
        }
        return [(words, count) for words, count in steps.items() if count]
