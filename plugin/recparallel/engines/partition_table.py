"""Show a partition: which layers each stage holds, their parameters, and the predicted time of one micro-batch."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from recparallel.plan import Partition, Profile


def partition_table(partition: Partition, names: Sequence[str], profile: Profile | None) -> Table:
    """One row a stage. Times and parameters need a profile; without one they are left empty."""
    table = Table(
        title=f"pipeline cut by '{partition.method}': {partition.num_layers} layers on {partition.num_stages} stages"
    )
    for heading, right in (
        ("stage", True),
        ("layers", False),
        ("parameters", True),
        ("ms / micro-batch", True),
        ("of slowest", True),
    ):
        table.add_column(heading, justify="right" if right else "left")
    slowest = max(partition.stage_seconds, default=0.0)
    for stage, (start, stop) in enumerate(zip(partition.bounds, partition.bounds[1:])):
        own = names[start:stop]
        span = own[0] if len(own) == 1 else f"{own[0]} … {own[-1]} ({len(own)})"
        cells = [str(stage), span, "", "", ""]
        if profile is not None:
            cells[2] = f"{sum(layer.num_parameters for layer in profile.layers[start:stop]):,}"
        if partition.stage_seconds:
            seconds = partition.stage_seconds[stage]
            cells[3:] = [f"{seconds * 1e3:.2f}", f"{seconds / slowest:.0%}" if slowest else ""]
        table.add_row(*cells)
    return table


def print_partition(partition: Partition, names: Sequence[str], profile: Profile | None) -> None:
    """Print the table to the terminal."""
    console = Console()
    console.width = max(console.width, 100)  # a log file has no width; 80 columns would break the rows
    console.print(partition_table(partition, names, profile))
