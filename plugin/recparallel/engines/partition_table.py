"""Show a partition: what each stage holds and takes, and what bounds the pipeline."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from recparallel.partitioning.indivisible import indivisible
from recparallel.plan import Partition, Profile


def partition_table(partition: Partition, names: Sequence[str], profile: Profile | None) -> Table:
    """One row a chunk, which is a stage unless stages are virtual. Times and sizes need a profile; without one they are left
    empty."""
    table = Table(
        title=f"pipeline cut by '{partition.method}': {partition.num_layers} layers on {partition.num_stages} stages"
    )
    for heading, right in (
        ("stage", True),
        ("layers", False),
        ("parameters", True),
        ("ms / micro-batch", True),
        ("of slowest", True),
        *((("device", False),) if partition.device_order else ()),
    ):
        table.add_column(heading, justify="right" if right else "left")
    slowest = max(partition.stage_seconds, default=0.0)
    for chunk, (start, stop) in enumerate(zip(partition.bounds, partition.bounds[1:])):
        stage = chunk % partition.num_stages
        own = names[start:stop]
        span = "" if not own else own[0] if len(own) == 1 else f"{own[0]} … {own[-1]} ({len(own)})"
        cells = [str(stage), span, "", "", ""]
        if profile is not None:
            cells[2] = f"{sum(layer.num_parameters for layer in profile.layers[start:stop]):,}"
        if partition.stage_seconds and chunk < partition.num_stages:
            seconds = partition.stage_seconds[stage]
            cells[3:] = [f"{seconds * 1e3:.2f}", f"{seconds / slowest:.0%}" if slowest else ""]
        if partition.device_order:
            cells.append(str(partition.device_order[stage]))
        table.add_row(*cells)
    return table


def partition_notes(partition: Partition, profile: Profile | None) -> list[str]:
    """Sentences below the table: layers that stages share, the predicted step, and the layer that no cut can divide."""
    notes = []
    for spread in partition.spread:
        shares = spread.shares or (1 / len(spread.stages),) * len(spread.stages)
        parts = ", ".join(f"stage {stage} {share:.0%}" for stage, share in zip(spread.stages, shares))
        notes.append(f"the rows of layer {spread.layer} are shared: {parts}")
    if partition.recompute:
        layers = ", ".join(map(str, partition.recompute))
        notes.append(f"recomputed in the backward pass, so that their stages fit into memory: layers {layers}")
    if partition.step_seconds is not None:
        proved = "" if partition.optimal else " (not proved to be the best: a better cut may exist)"
        notes.append(f"predicted step {partition.step_seconds:.3f} s{proved}")
    if profile is not None and partition.stage_seconds and partition.num_stages > 1:
        notes.append(indivisible(profile, partition).sentence())
    return notes


def print_partition(partition: Partition, names: Sequence[str], profile: Profile | None) -> None:
    """Print table and notes to the terminal."""
    console = Console()
    console.width = max(console.width, 100)  # a log file has no width; 80 columns would break the rows
    console.print(partition_table(partition, names, profile))
    for note in partition_notes(partition, profile):
        console.print(note, markup=False, highlight=False)
