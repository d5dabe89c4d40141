"""What benchmarks write to the terminal."""

import logging
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

# A file or pipe has no width of its own; tables need more than rich's 80 columns.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red", "white", "bright_black")


def show_line(rank: int, line: str) -> None:
    """One line of a rank's output, after its number."""
    if console.is_terminal:
        console.print(f"[rank {rank}] ", style=_COLOURS[rank % len(_COLOURS)], end="", markup=False)
        console.print(line, markup=False)
    else:
        sys.stdout.write(f"[rank {rank}] {line}\n")
        sys.stdout.flush()


def print_lines(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A table; long cells fold."""
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def set_up_logging() -> None:
    """Warnings of the cluster go to the terminal."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )
