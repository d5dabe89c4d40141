"""``recparallel data``: prepare interaction logs for training, and look at them.

recparallel data prepare movielens-1m --data-dir ml-1m
recparallel data describe movielens-1m --data-dir ml-1m --plot ml-1m.png
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recparallel import registry
from recparallel.data.cleaning import Filters
from recparallel.errors import ConfigError

if TYPE_CHECKING:
    from recparallel.data.prepared import Prepared

app = typer.Typer(no_args_is_help=True, help="Interaction logs: prepare them, look at them.")

_DEFAULTS = Filters()
_MAX_MALFORMED = 0.001

Dataset = Annotated[str, typer.Argument(help=f"one of {', '.join(sorted(registry.readers))}; or a prepared folder")]
DataDir = Annotated[Path | None, typer.Option(help="folder with the dataset's original files")]
Option = Annotated[
    list[str] | None, typer.Option("--option", help="what the format leaves open, as user=uid; may be repeated")
]
To = Annotated[Path | None, typer.Option(help="folder for prepared logs; by default the cache, where recipes look too")]
MaxMalformed = Annotated[float, typer.Option(help="share of malformed rows above which reading stops")]
MinUserEvents = Annotated[int, typer.Option(help="users with fewer events are left out")]
MinItemEvents = Annotated[int, typer.Option(help="items with fewer events are left out")]
MaxUserEvents = Annotated[int, typer.Option(help="users with more events are left out")]
MinRating = Annotated[float | None, typer.Option(help="lower ratings are no interactions")]


@app.command("prepare")
def prepare_command(
    dataset: Dataset,
    data_dir: DataDir = None,
    option: Option = None,
    to: To = None,
    max_malformed: MaxMalformed = _MAX_MALFORMED,
    min_user_events: MinUserEvents = _DEFAULTS.min_user_events,
    min_item_events: MinItemEvents = _DEFAULTS.min_item_events,
    max_user_events: MaxUserEvents = _DEFAULTS.max_user_events,
    min_rating: MinRating = None,
) -> None:
    """Clean a log, number it, and write it as histories that trainings read; what exists is not made again."""
    filters = Filters(min_user_events, min_item_events, max_user_events, min_rating)
    _tell(_prepared(dataset, data_dir, option, to, max_malformed, filters))


@app.command("describe")
def describe_command(
    dataset: Dataset,
    data_dir: DataDir = None,
    option: Option = None,
    to: To = None,
    plot: Annotated[
        Path | None, typer.Option(help="picture to write: lengths of histories, popularity of items")
    ] = None,
    max_malformed: MaxMalformed = _MAX_MALFORMED,
    min_user_events: MinUserEvents = _DEFAULTS.min_user_events,
    min_item_events: MinItemEvents = _DEFAULTS.min_item_events,
    max_user_events: MaxUserEvents = _DEFAULTS.max_user_events,
    min_rating: MinRating = None,
) -> None:
    """Prepare a log if need be, and print users, items, density, and how long histories are."""
    from recparallel.data.description import describe as describe_log
    from recparallel.data.description import plot as plot_log

    filters = Filters(min_user_events, min_item_events, max_user_events, min_rating)
    prepared = _prepared(dataset, data_dir, option, to, max_malformed, filters)
    _tell(prepared)
    description = describe_log(prepared)
    width = max(len(name) for name, _ in description.rows())
    for name, value in description.rows():
        typer.echo(f"{name:<{width}}  {value:>14}")
    if plot is not None:
        plot_log(description, plot, title=prepared.manifest.dataset)
        typer.echo(f"drawn: {plot}")


def _prepared(
    dataset: str,
    data_dir: Path | None,
    option: list[str] | None,
    to: Path | None,
    max_malformed: float,
    filters: Filters,
) -> "Prepared":
    from recparallel.data.preparation import parse_options, prepare
    from recparallel.data.prepared import Prepared

    if dataset not in registry.readers and Path(dataset).is_dir():
        if data_dir or option or to or filters != Filters() or max_malformed != _MAX_MALFORMED:
            raise ConfigError(
                f"{dataset} is prepared already: data_dir, to, options and filters have no effect; leave them out"
            )
        return Prepared.open(Path(dataset))
    options = parse_options(option or [], where="--option")
    return prepare(
        dataset, data_dir, folder=to, filters=filters, max_malformed=max_malformed, options=options, progress=True
    )


def _tell(prepared: "Prepared") -> None:
    manifest = prepared.manifest
    typer.echo(
        f"{manifest.dataset}: {manifest.report.rows:,} rows read; {manifest.num_users:,} users, {manifest.num_items:,} items, "
        f"{manifest.num_interactions:,} interactions in {manifest.shards} shards"
    )
    for words, count in manifest.report.lines():
        typer.echo(f"  {words}: {count:,}")
    for row in manifest.report.malformed_first[:5]:
        typer.echo(f"    {row}")
    typer.echo(f"prepared: {prepared.folder}")
