"""Which share of the data a replica reads."""

from typing import Any


def data_parallel_place(engine: Any) -> tuple[int, int]:
    """Number of this replica of the pipeline, and how many there are, in all worlds of replicas that train apart."""
    size, number = engine.grid.data_parallel_size, engine.grid.data_parallel_id
    replicas = engine.recparallel.replicas
    if replicas is None:
        return number, size
    own, count = replicas.place
    return own * size + number, count * size


def times_own_share(engine: Any) -> float:
    """How many times what this replica has of a global batch that is."""
    shares = engine.recparallel.shares
    return data_parallel_place(engine)[1] if shares is None else shares.own_in_all
