"""Which way to compute attention all ranks use: the model's own, a given one, or the one that is the fastest on them."""

from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from recparallel.config import AttentionChoice
from recparallel.engines.packed_rows import Sample
from recparallel.errors import PartitionError
from recparallel.models.attention import layers_by_attention, with_attention
from recparallel.models.packing import Packing
from recparallel.models.recommender import Recommender
from recparallel.models.trunk import Trunk
from recparallel.profiling.attention import time_attentions

_WORTH_IT = 0.95
"""A way that takes more than this share of the time of the model's own is not taken: results should not change for nothing."""


def with_chosen_attention(
    recommender: Recommender,
    choice: AttentionChoice,
    *,
    sample: Sample | None,
    device: str,
    dtype: torch.dtype,
) -> Recommender:
    """The recommender as all ranks will build it. Collective over the default group where ``choice`` is ``fastest``.

    Args:
        sample: one micro-batch; only its shape counts.
        device: of this rank.
        dtype: of the weights that will be trained.

    Raises:
        ConfigError: the model's attention is another one than the given.
        PartitionError: on every rank, if one has no sample, or measuring fails on one; the message names it.
    """
    if choice == "model":
        return recommender
    if choice != "fastest":
        return with_attention(recommender, choice)
    trunk = Trunk.of(recommender.config)
    if len(trunk.attentions) == 1:
        return recommender
    answer: dict[str, float] | str
    if sample is None:
        answer = (
            f"rank {dist.get_rank()} has no micro-batch to time it with: pass training_data or sample on every rank"
        )
    else:
        try:
            layers_of = layers_by_attention(recommender)
            answer = time_attentions(
                layers_of, sample[0].shape, trunk.dim, device=device, dtype=dtype, packing=Packing.of(sample)
            )
        except Exception as error:  # the others wait for an answer
            answer = f"rank {dist.get_rank()}: {error!r}"
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, answer)
    if failed := [each for each in answers if isinstance(each, str)]:
        raise PartitionError(f"recparallel.attention 'fastest': {'; '.join(failed)}")
    seconds = {name: sum(each[name] for each in answers) for name in trunk.attentions}
    name = fastest(seconds)
    if dist.get_rank() == 0:
        times = ", ".join(f"{each} {1e3 * took / len(answers):.1f} ms" for each, took in seconds.items())
        Console(soft_wrap=True).print(
            f"attention: {name} (a block, forward and backward: {times})", markup=False, highlight=False
        )
    return with_attention(recommender, name)


def fastest(seconds: dict[str, float]) -> str:
    """The name with the fewest seconds, or the first where nothing is worth a change."""
    own = next(iter(seconds))
    best = min(seconds, key=lambda name: seconds[name])
    return best if seconds[best] < _WORTH_IT * seconds[own] else own
