"""The one registry: names to import strings, for built-ins and for other packages' entry points.

Names can be listed without importing what they name, so a config is validated before torch is loaded. To add a
partitioner, a codec, a reader, a head or a model family: write its file, then add its line here. Another package adds
one with an entry point in the group ``recparallel.<kind>``.
"""

import importlib
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from recparallel.errors import UnknownNameError

PARTITIONERS = {
    "adaptive": "recparallel.partitioning.adaptive:cut_at_the_start",
    "profile": "recparallel.partitioning.bottleneck:minimize_bottleneck",
    "profile_any_order": "recparallel.partitioning.device_order:minimize_bottleneck_any_order",
    "simulated": "recparallel.partitioning.even_cut:minimize_step_evenly",
    "simulated_any_order": "recparallel.partitioning.even_cut:minimize_step_any_order_evenly",
}

CODECS = {
    "auto": "recparallel.planning.automatic:automatic",
    "bf16": "recparallel.compression.cast:BFloat16Codec",
    "block_top_k": "recparallel.compression.block_top_k:BlockTopK",
    "fp16": "recparallel.compression.cast:Float16Codec",
    "int4": "recparallel.compression.int4:Int4",
    "int8": "recparallel.compression.int8:Int8",
    "none": "recparallel.data_parallel.synchronous:dense_hook",
    "power_sgd": "recparallel.data_parallel.power_sgd:power_sgd",
    "random_k": "recparallel.compression.random_k:RandomK",
    "sign": "recparallel.compression.sign:Sign",
    "top_k": "recparallel.compression.top_k:TopK",
    "top_k_threshold": "recparallel.compression.top_k_threshold:TopKThreshold",
    "torch_fp16": "recparallel.data_parallel.torch_hooks:fp16",
    "torch_bf16": "recparallel.data_parallel.torch_hooks:bf16",
    "torch_powersgd": "recparallel.data_parallel.torch_hooks:powersgd",
}

AGGREGATIONS = {
    "gathered": "recparallel.collectives.gathered:Gathered",
    "hierarchical": "recparallel.collectives.hierarchical:Hierarchical",
    "reduced": "recparallel.collectives.reduced:Reduced",
    "sparse": "recparallel.collectives.sparse:SparseRegions",
    "two_hop": "recparallel.collectives.two_hop:TwoHop",
}

READERS = {
    "amazon-2018": "recparallel.data.readers.amazon_2018:Amazon2018",
    "amazon-2023": "recparallel.data.readers.amazon_2023:Amazon2023",
    "csv": "recparallel.data.readers.csv:Csv",
    "hub": "recparallel.data.readers.hub:Hub",
    "jsonl": "recparallel.data.readers.jsonl:Jsonl",
    "kuairand": "recparallel.data.readers.kuairand:KuaiRand",
    "mind": "recparallel.data.readers.mind:Mind",
    "movielens-100k": "recparallel.data.readers.movielens_100k:MovieLens100K",
    "movielens-1m": "recparallel.data.readers.movielens_1m:MovieLens1M",
    "movielens-20m": "recparallel.data.readers.movielens_csv:MovieLens20M",
    "movielens-25m": "recparallel.data.readers.movielens_csv:MovieLens25M",
    "movielens-32m": "recparallel.data.readers.movielens_csv:MovieLens32M",
    "parquet": "recparallel.data.readers.parquet:Parquet",
    "recbole": "recparallel.data.readers.recbole:RecBole",
    "sequences": "recparallel.data.readers.sequences:Sequences",
    "steam": "recparallel.data.readers.steam:Steam",
    "synthetic": "recparallel.data.readers.synthetic:Synthetic",
    "yelp": "recparallel.data.readers.yelp:Yelp",
}

SPLITS = {
    "leave_one_out": "recparallel.data.splits.leave_one_out:leave_one_out",
    "ratio": "recparallel.data.splits.ratio:ratio",
    "temporal": "recparallel.data.splits.temporal:temporal",
}

FAMILIES = {
    "gemma2": "recparallel.models.families.gemma2:Gemma2Trunk",
    "gpt2": "recparallel.models.families.gpt2:GPT2Trunk",
    "gpt_neox": "recparallel.models.families.gpt_neox:GPTNeoXTrunk",
    "llama": "recparallel.models.trunk:Trunk",
    "mistral": "recparallel.models.trunk:Trunk",
    "opt": "recparallel.models.families.opt:OPTTrunk",
    "phi3": "recparallel.models.families.phi3:Phi3Trunk",
    "qwen2": "recparallel.models.trunk:Trunk",
    "qwen3": "recparallel.models.trunk:Trunk",
}

LOSSES = {
    "answers": "recparallel.models.losses.answers:Answers",
    "chunked_cross_entropy": "recparallel.models.losses.chunked_cross_entropy:ChunkedCrossEntropy",
    "cross_entropy": "recparallel.models.losses.cross_entropy:CrossEntropy",
    "gbce": "recparallel.models.losses.gbce:GBCE",
    "in_batch_softmax": "recparallel.models.losses.in_batch_softmax:InBatchSoftmax",
    "sampled_softmax": "recparallel.models.losses.sampled_softmax:SampledSoftmax",
}

MODES = {
    "bounded_staleness": "recparallel.data_parallel.bounded_staleness:BoundedStaleness",
    "delayed": "recparallel.data_parallel.delayed:Delayed",
    "diloco": "recparallel.data_parallel.diloco:DiLoCo",
    "local_sgd": "recparallel.data_parallel.local_sgd:LocalSGD",
}


class Registry:
    """Names of one kind.

    Args:
        kind: what the names name, in words, for messages.
        built_ins: name to ``"module:attribute"``.
        group: entry-point group in which other packages add names.
    """

    def __init__(self, kind: str, built_ins: dict[str, str], *, group: str) -> None:
        self.kind = kind
        self.group = group
        self._built_ins = built_ins

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._built_ins, *(point.name for point in entry_points(group=self.group))}))

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def load(self, name: str, *, where: str = "") -> Any:
        """Import and return what ``name`` names.

        Raises:
            UnknownNameError: nothing has this name; the message lists what exists.
        """
        target = self._built_ins.get(name)
        if target is not None:
            module, _, attribute = target.partition(":")
            return getattr(importlib.import_module(module), attribute)
        for point in entry_points(group=self.group, name=name):
            return point.load()
        raise UnknownNameError(self.kind, name, self, where=where)


partitioners = Registry("partitioner", PARTITIONERS, group="recparallel.partitioners")
codecs = Registry("codec", CODECS, group="recparallel.codecs")
aggregations = Registry("aggregation", AGGREGATIONS, group="recparallel.aggregations")
readers = Registry("dataset", READERS, group="recparallel.readers")
splits = Registry("split", SPLITS, group="recparallel.splits")
families = Registry("model family", FAMILIES, group="recparallel.families")
losses = Registry("loss", LOSSES, group="recparallel.losses")
modes = Registry("data-parallel mode", MODES, group="recparallel.modes")
