"""A partition in Megatron-Core's words: ``pipeline_model_parallel_layout``, ``"Et*3|t*4|t*3L"``.

``E`` is the embedding, ``t`` a decoder block, ``L`` the loss with the output table; ``|`` parts the chunks, in the order of
Megatron's own parser (chunk ``c`` on pipeline rank ``c mod stages``). Megatron puts the final norm and positional tables
where it wants, so they have no letter.
"""

from recparallel.errors import PartitionError
from recparallel.plan import Partition, Profile

LETTERS = {"embedding": "E", "block": "t", "head": "L", "norm": "", "other": ""}
_SHORTEST_RUN = 3


def megatron_layout(profile: Profile, partition: Partition) -> str:
    """The layout of ``partition``.

    Args:
        profile: whose layers were cut; their ``kind`` says which letter they get.
        partition: with one chunk a stage or virtual stages.

    Raises:
        PartitionError: the layers are not those of the profile; the model is not one embedding, decoder blocks and one head
            in this order; or devices are to be reordered, which a layout cannot say.
    """
    layers = profile.layers
    if partition.num_layers != len(layers):
        raise PartitionError(f"the partition covers {partition.num_layers} layers, the profile has {len(layers)}")
    if partition.device_order:
        raise PartitionError(
            f"device_order is {list(partition.device_order)}: a layout cannot reorder devices; order the hosts of the launch so, "
            "and cut with a method that keeps the order ('profile', 'simulated')"
        )
    if partition.spread:
        raise PartitionError("Megatron's layout cannot spread a layer over stages")
    letters = [LETTERS[layer.kind] for layer in layers]
    word = "".join(letters)
    if not (word.startswith("E") and word.endswith("L") and word.count("E") == 1 and word.count("L") == 1):
        found = ", ".join(f"{layer.name}: {layer.kind}" for layer in layers[:2] + layers[-2:])
        raise PartitionError(
            "Megatron's layout needs exactly one layer of kind 'embedding', first, and one of kind 'head', last; the "
            f"profile's first and last layers are {found}"
        )
    chunks = ("".join(letters[a:b]) for a, b in zip(partition.bounds, partition.bounds[1:]))
    return "|".join(_shortened(chunk) for chunk in chunks)


def _shortened(chunk: str) -> str:
    run = chunk.count("t")
    return chunk if run < _SHORTEST_RUN else chunk.replace("t" * run, f"t*{run}")
