"""``recparallel``: measure a model's layers, and cut them, without training; hand a trained run on.

recparallel profile --model llama-tiny --num-items 20000 --micro-batch 8 --length 100 --out profile.json
recparallel partition profile.json --stages 4 --num-micro-batches 16
recparallel export runs/first --to exported
recparallel data describe movielens-1m --data-dir ml-1m
recparallel meeting-point --port 29400
recparallel zoo --write docs/model_zoo.md
"""

import json
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from recparallel import cli_data, registry
from recparallel.errors import ConfigError, PartitionError, RecParallelError
from recparallel.plan import DEFAULT_SCHEDULE, Partition, Profile
from recparallel.profiling.files import read_profile

_MICRO_BATCHES, _LENGTHS = (8,), (100,)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Hybrid parallelism for LLM recommenders.",
)
app.add_typer(cli_data.app, name="data")


class Format(str, Enum):
    """What a partition is printed as."""

    table = "table"
    json = "json"
    deepspeed = "deepspeed"
    megatron = "megatron"


class Schedule(str, Enum):
    """Of a pipeline with one chunk a stage."""

    eager_1f1b = "eager_1f1b"
    one_f_one_b = "1f1b"


class Precision(str, Enum):
    """Of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command()
def profile(
    model: Annotated[
        str, typer.Option(help="a card of the model zoo, a Hugging Face folder or config.json, or a hub name")
    ],
    out: Annotated[Path, typer.Option(help="file to write")],
    num_items: Annotated[
        int | None, typer.Option(help="size of the catalogue; without it, the model's own tokens")
    ] = None,
    micro_batch: Annotated[
        list[int] | None, typer.Option(help="sequences of a micro-batch, 8 if left out; may be repeated")
    ] = None,
    length: Annotated[
        list[int] | None, typer.Option(help="positions of a sequence, 100 if left out; may be repeated")
    ] = None,
    tied: Annotated[bool, typer.Option(help="the head scores against the item embedding itself")] = True,
    loss: Annotated[str, typer.Option(help="name of a loss")] = "cross_entropy",
    dtype: Annotated[Precision, typer.Option(help="of the weights")] = Precision.float32,
    repeats: Annotated[int, typer.Option(min=1, help="timed passes, of which the median counts")] = 3,
    warmup: Annotated[int, typer.Option(min=0, help="untimed passes before them")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="torch threads")] = None,
) -> None:
    """Time every pipeline layer of a recommender with random histories, one layer in memory at a time.

    Alone it measures the layers and this device. Started by `torchrun` on the machines of a training, the ranks share out the
    layers, and measure their speeds and links too.
    """
    import torch
    from tqdm import tqdm

    from recparallel.engines.allocator import keep_freed_memory
    from recparallel.models.recommender import build_recommender
    from recparallel.models.zoo import find_card
    from recparallel.plan import Shape
    from recparallel.profiling.layers import Effort
    from recparallel.profiling.ranks import joined, profile_here
    from recparallel.profiling.sums import GradientSums

    sizes, lengths = sorted(set(micro_batch or _MICRO_BATCHES)), sorted(set(length or _LENGTHS))
    if sizes[0] < 1 or lengths[0] < 1:
        raise PartitionError(f"--micro-batch {sizes} and --length {lengths} must be at least 1")
    if torch.device(device).type == "cpu":
        keep_freed_memory()  # as the training does
    if threads is not None:
        torch.set_num_threads(threads)
    card = find_card(model, Path("model_zoo"))
    recommender = build_recommender(card.architecture if card else model, num_items=num_items, tied=tied, loss=loss)
    if recommender.max_length is not None and lengths[-1] > recommender.max_length:
        raise PartitionError(f"--length {lengths[-1]}, but the model has positions for {recommender.max_length}")

    def bar_of(what: str) -> Callable[[Sequence[Any]], Sequence[Any]]:
        return lambda layers: cast(Sequence[Any], tqdm(layers, desc=what, unit="layer"))

    measured = []
    generator = torch.Generator().manual_seed(0)
    with joined(device) as rank:
        for positions in lengths:
            for sequences in sizes:
                items = torch.randint(1, recommender.num_items + 1, (sequences, positions + 1), generator=generator)
                measured.append(
                    profile_here(
                        recommender.layers,
                        recommender.loss_fn,
                        (items[:, :-1].contiguous(), items[:, 1:].contiguous()),
                        effort=Effort(repeats, warmup, least_seconds=0.05),
                        device=device,
                        dtype=getattr(torch, dtype.value),
                        sums=GradientSums(rows=True),  # as without ZeRO
                        progress=bar_of(f"micro-batch {sequences}, length {positions}"),
                    )
                )
    if rank:
        return
    first, *others = measured
    shapes = tuple(Shape(micro_batch=p.micro_batch, sequence_length=p.sequence_length, layers=p.layers) for p in others)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(first.model_copy(update={"shapes": shapes}).model_dump_json(indent=1) + "\n")
    typer.echo(
        f"{len(first.layers)} layers, {len(measured)} shapes, {len(first.devices)} devices, {len(first.links)} links: "
        f"written to {out}"
    )


@app.command()
def partition(
    profile: Annotated[Path, typer.Argument(help="a profile; `recparallel schema` prints its form")],
    stages: Annotated[int, typer.Option(help="pipeline stages")],
    method: Annotated[
        str | None,
        typer.Option(help="a registered partitioner; by default 'profile', or 'simulated' with --num-micro-batches"),
    ] = None,
    virtual: Annotated[int, typer.Option(min=1, help="chunks of each stage (Megatron's interleaved schedule)")] = 1,
    num_micro_batches: Annotated[int | None, typer.Option(min=1, help="of a step, in each replica")] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="sequences, where the profile has several")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="positions, where the profile has several")] = None,
    schedule: Annotated[
        Schedule | None,
        typer.Option(
            help="that will run, instead of the profile's; if neither says, eager_1f1b, for --format megatron 1f1b"
        ),
    ] = None,
    recompute: Annotated[
        bool,
        typer.Option(help="where nothing fits into memory, recompute as few layers as do; never for --format megatron"),
    ] = True,
    format: Annotated[Format, typer.Option(help="what to print")] = Format.table,
) -> None:
    """Cut a profiled model into pipeline stages."""
    from recparallel.partitioning.interleaved import minimize_interleaved
    from recparallel.partitioning.megatron_layout import megatron_layout
    from recparallel.partitioning.recompute import fit_by_recomputing

    measured = read_profile(profile)
    if micro_batch is not None or length is not None:
        measured = measured.at(micro_batch or measured.micro_batch, length)
    if num_micro_batches is not None:
        measured = measured.model_copy(update={"num_micro_batches": num_micro_batches})
    if schedule is not None:
        measured = measured.model_copy(update={"schedule": schedule.value})
    elif format is Format.megatron and measured.schedule is None:
        measured = measured.model_copy(update={"schedule": Schedule.one_f_one_b.value})
    if virtual > 1 or method == "interleaved":
        if method not in (None, "interleaved"):
            raise PartitionError(
                f"--method {method!r} with --virtual {virtual}: virtual stages are cut by 'interleaved' alone"
            )
        cut = minimize_interleaved(measured, stages, virtual=virtual)
    else:
        name = method or ("profile" if measured.num_micro_batches is None else "simulated")
        solve = registry.partitioners.load(name, where="--method")
        may_recompute = recompute and format is not Format.megatron
        cut = fit_by_recomputing(measured, stages, solve) if may_recompute else solve(measured, stages)
    if format is Format.table:
        _print_table(cut, measured)
    elif format is Format.json:
        typer.echo(cut.model_dump_json(indent=1))
    elif format is Format.megatron:
        typer.echo(megatron_layout(measured, cut))
    else:
        typer.echo(json.dumps(deepspeed_section(cut, measured, profile), indent=2))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="--output_dir of a training, its checkpoints folder, or one checkpoint")],
    to: Annotated[Path, typer.Option(help="new folder to write")],
    dtype: Annotated[Precision, typer.Option(help="of the written weights")] = Precision.float32,
) -> None:
    """Write a trained run as a plain Hugging Face folder: weights, config, and a tokenizer whose tokens are the items.

    `AutoModelForCausalLM.from_pretrained` loads it; the logits at a history's last position are the scores of the next item.
    """
    import torch

    from recparallel.checkpointing.export import export_run

    manifest = export_run(run, to, dtype=getattr(torch, dtype.value))
    typer.echo(f"step {manifest.step}, {manifest.num_rows - 1:,} items: written to {to}")
    if not (to / "tokenizer.json").is_file():
        typer.echo("without a tokenizer: no items.json beside the checkpoints names the items")


@app.command()
def schema() -> None:
    """Print the JSON schema of a profile, for those who write one by hand."""
    typer.echo(json.dumps(Profile.model_json_schema(), indent=1))


def deepspeed_section(cut: Partition, measured: Profile, path: Path) -> dict[str, Any]:
    """What a DeepSpeed JSON needs so that ``recparallel.initialize`` makes the same cut.

    Raises:
        PartitionError: DeepSpeed has no schedule for virtual stages.
    """
    if cut.virtual > 1:
        raise PartitionError(
            "DeepSpeed's pipeline has one chunk a stage; print virtual stages with --format megatron or json"
        )
    section: dict[str, Any] = {"train_micro_batch_size_per_gpu": measured.micro_batch}
    if measured.num_micro_batches is not None:
        section["gradient_accumulation_steps"] = measured.num_micro_batches
    partition = {"method": cut.method, "profile": str(path.absolute())}
    own = {"stages": cut.num_stages, "schedule": measured.schedule or DEFAULT_SCHEDULE, "partition": partition}
    return {**section, "recparallel": own}


@app.command()
def meeting_point(
    port: Annotated[int, typer.Option(min=0, max=65535, help="to listen on; 0 takes a free one")] = 29400,
) -> None:
    """Where replicas that come and go meet: runs until it is interrupted, apart from all of them."""
    import threading

    from recparallel.engines.replica_membership import host_meeting_point

    store = host_meeting_point(port)
    typer.echo(f"meeting point at port {store.port}")
    threading.Event().wait()


@app.command()
def zoo(
    folder: Annotated[Path, typer.Argument(help="with a folder for each card")] = Path("model_zoo"),
    write: Annotated[
        Path | None, typer.Option(help="document whose cards are replaced, between its markers; left out: printed")
    ] = None,
) -> None:
    """The cards of a model zoo: what each is, how it is trained, and what came of it."""
    from recparallel.models.zoo_page import page_of, with_cards

    if write is None:
        typer.echo(page_of(folder))
        return
    if not write.is_file():
        raise ConfigError(f"{write} is not a file")
    write.write_text(with_cards(write.read_text(), folder))


def _print_table(cut: Partition, measured: Profile) -> None:
    from recparallel.engines.partition_table import print_partition

    print_partition(cut, [layer.name for layer in measured.layers], measured)


def main() -> None:
    """The program: errors of recparallel without a traceback."""
    try:
        app()
    except RecParallelError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
