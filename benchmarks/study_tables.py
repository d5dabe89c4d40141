"""The results of a study as tables: on the terminal, and in a document between two markers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from benchmarks.interleave import control_name
from benchmarks.output import console
from benchmarks.results import Ratio, Results, Row, exceeds_noise, spread
from benchmarks.study_metrics import CPU, LOSS, PEAK, RATE, busy, sent
from recparallel.errors import ConfigError

_SMALL = 0.05
COLUMNS = (
    "side",
    "setting",
    "sequences/s",
    "ratio",
    "verdict",
    "compute bound",
    "network bound",
    "busy share by rank",
    "MB sent by rank",
    "peak MiB",
    "loss",
)


@dataclass(frozen=True)
class Line:
    """One side's line of a table, cells as text in the order of :data:`COLUMNS`."""

    cells: tuple[str, ...]


def lines_of(results: Results, workload: str, cluster: str, *, base: str) -> list[Line]:
    """A line for each side that was measured, the fastest first."""
    own = [row for row in results.rows if (row.workload, row.cluster) == (workload, cluster)]
    rates = sorted((row for row in own if row.metric == RATE), key=lambda row: -row.median)
    return [Line(_cells(results, own, rate, base=base)) for rate in rates]


def failures_of(results: Results, workload: str, cluster: str) -> list[str]:
    """A sentence for each side that did not run, or not to the end."""
    failed = [f for f in results.failures if (f.workload, f.cluster) == (workload, cluster)]
    return [f"{f.side} did not run: {f.reason}" for f in failed]


def print_table(results: Results, workload: str, cluster: str, *, base: str) -> None:
    """The table of one workload on one cluster."""
    table = Table(title=f"{workload} on {cluster}, against {base}", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for line in lines_of(results, workload, cluster, base=base):
        table.add_row(*line.cells)
    console.print(table)
    for sentence in failures_of(results, workload, cluster):
        console.print(sentence, markup=False)
    console.print(_summary(results, workload, cluster, base=base) + "\n", markup=False)


def markdown_tables(results: Results, *, base: str) -> str:
    """All tables of a run in Markdown, with the conditions."""
    environment = results.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    parts = [
        f"Measured with `{environment.command}` on {environment.cores} cores of {environment.machine}; {versions}"
        + ("." if environment.emulated else "; **plain local processes, no limits**.")
    ]
    for workload, cluster in dict.fromkeys((row.workload, row.cluster) for row in results.rows):
        parts += [f"### `{workload}` on `{cluster}`", _summary(results, workload, cluster, base=base)]
        lines = lines_of(results, workload, cluster, base=base)
        parts.append(markdown_table(COLUMNS, [[_escape(cell) for cell in line.cells] for line in lines]))
        if failed := failures_of(results, workload, cluster):
            parts.append("\n".join(f"- {_escape(sentence)}" for sentence in failed))
    return "\n\n".join(parts)


def markdown_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ("---",) * len(columns), *lines))


def markers(name: str) -> tuple[str, str]:
    """The lines of a document between which the tables of a benchmark stand."""
    return f"<!-- results of {name}: begin -->", f"<!-- results of {name}: end -->"


def write_between_markers(path: Path, text: str, *, name: str) -> None:
    """Replace what stands between the markers of a benchmark in a document.

    Raises:
        ConfigError: the document lacks one.
    """
    content = path.read_text()
    begin, end = markers(name)
    if begin not in content or end not in content:
        raise ConfigError(f"{path}: needs the lines {begin!r} and {end!r}, between which the tables go")
    before, rest = content.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def verdict(results: Results, rate: Row, *, base: str) -> str:
    """What may be said of a side: faster, slower, or nothing. Below 5 % CPU seconds decide, not wall time."""
    if rate.side == base:
        return "base"
    if rate.side == control_name(base):
        return "control"
    ratio, control = _ratio(results, rate, rate.side, RATE), _ratio(results, rate, control_name(base), RATE)
    if ratio is None or control is None:
        return ""
    if not exceeds_noise(ratio, control):
        return "within noise"
    if abs(ratio.median - 1) < _SMALL:
        cpu, cpu_control = _ratio(results, rate, rate.side, CPU), _ratio(results, rate, control_name(base), CPU)
        if cpu is None or cpu_control is None or not exceeds_noise(cpu, cpu_control):
            return "within noise"
        return f"{cpu.median:.2f} x CPU seconds"
    return "faster" if ratio.median > 1 else "slower"


def _cells(results: Results, own: Sequence[Row], rate: Row, *, base: str) -> tuple[str, ...]:
    medians = {row.metric: row.median for row in own if row.side == rate.side}
    origin = base if rate.side == control_name(base) else rate.side
    setting = next(
        (
            c.setting
            for c in results.choices
            if (c.workload, c.cluster, c.side) == (rate.workload, rate.cluster, origin)
        ),
        "",
    )
    ratio = _ratio(results, rate, rate.side, RATE)
    return (
        rate.side,
        setting.replace("micro-batch ", ""),
        f"{rate.median:.1f} ({rate.min:.1f}–{rate.max:.1f})",
        "1" if ratio is None else f"{ratio.median:.2f} ({ratio.min:.2f}–{ratio.max:.2f})",
        verdict(results, rate, base=base),
        _bound(results, rate, origin, "compute"),
        _bound(results, rate, origin, "network"),
        _by_rank(medians, busy, 1.0, "{:.2f}"),
        _by_rank(medians, sent, 1e6, "{:.1f}"),
        f"{medians[PEAK] / 2**20:.0f}",
        f"{medians[LOSS]:.3f}" if LOSS in medians else "",
    )


def _summary(results: Results, workload: str, cluster: str, *, base: str) -> str:
    control = next(
        (
            ratio
            for ratio in results.ratios
            if (ratio.workload, ratio.cluster, ratio.side, ratio.metric)
            == (workload, cluster, control_name(base), RATE)
        ),
        None,
    )
    ideal = next((b for b in results.bounds if (b.workload, b.cluster, b.side) == (workload, cluster, None)), None)
    noise = (
        f"the control strays from its base by {spread(control):.1%} at most" if control else "no control was measured"
    )
    if ideal is None:
        return f"{noise}."
    return f"{noise}; computing alone would allow {ideal.value:.1f} sequences/s ({ideal.basis})."


def _ratio(results: Results, rate: Row, side: str, metric: str) -> Ratio | None:
    wanted = (rate.workload, rate.cluster, side, metric)
    return next((r for r in results.ratios if (r.workload, r.cluster, r.side, r.metric) == wanted), None)


def _bound(results: Results, rate: Row, side: str, name: str) -> str:
    wanted = (rate.workload, rate.cluster, side, name)
    found = next((b for b in results.bounds if (b.workload, b.cluster, b.side, b.name) == wanted), None)
    return "" if found is None else f"{found.value:.1f}"


def _by_rank(medians: dict[str, float], metric: object, unit: float, form: str) -> str:
    assert callable(metric)
    values: list[str] = []
    while (name := metric(len(values))) in medians:
        values.append(form.format(medians[name] / unit))
    return " / ".join(values)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;")
