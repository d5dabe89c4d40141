"""The benchmarks that exist, by name. A benchmark is a module with ``run(options: Options) -> int``."""

from dataclasses import dataclass

from recparallel.errors import UnknownNameError


@dataclass(frozen=True)
class Benchmark:
    """One entry: its name on the command line, its module (imported when it is run), and what it shows."""

    name: str
    module: str
    summary: str


BENCHMARKS: dict[str, Benchmark] = {
    entry.name: entry
    for entry in (
        Benchmark(
            "selfcheck", "benchmarks.selfcheck", "link rate, all-reduce and CPU share against what is configured"
        ),
        Benchmark("stock", "benchmarks.stock", "stock DeepSpeed and torch DDP, side by side: what a hybrid must beat"),
        Benchmark(
            "partition", "benchmarks.partition", "cuts by measured cost against DeepSpeed's own, and what was predicted"
        ),
        Benchmark(
            "rebalance", "benchmarks.rebalance", "a node that slows down in mid-run: layers move, or stock is restarted"
        ),
        Benchmark(
            "transfers", "benchmarks.transfers", "transfers beside the computation against blocking ones, and in bf16"
        ),
        Benchmark(
            "quality", "benchmarks.quality", "recommendations on MovieLens-1M with codecs, against dense, user by user"
        ),
        Benchmark(
            "preparation", "benchmarks.preparation", "seconds and memory to prepare a log of 50 million interactions"
        ),
        Benchmark(
            "ragged", "benchmarks.ragged", "histories of different lengths: padded, as long as the longest, packed"
        ),
        Benchmark("sasrec", "benchmarks.sasrec", "NDCG@10 on MovieLens-1M over time, beside pmixer/SASRec.pytorch"),
        Benchmark("click", "benchmarks.click", "the click task of TALLRec's movies, with a trunk trained from scratch"),
        Benchmark(
            "async", "benchmarks.asynchrony", "replicas that exchange in every step, now and then, at their own pace"
        ),
        Benchmark(
            "async_quality",
            "benchmarks.async_quality",
            "recommendations on MovieLens-1M of replicas that train apart, against synchronous ones, user by user",
        ),
        Benchmark("compression", "benchmarks.compression", "gradients through codecs, against dense and torch's hooks"),
        Benchmark(
            "learning", "benchmarks.learning", "the loss after as many samples and after as long, with codecs and dense"
        ),
        Benchmark(
            "endurance", "benchmarks.endurance", "2,000 steps with gradients that are none, and a link that drops"
        ),
        Benchmark("codecs", "benchmarks.codecs", "what every codec reads and writes a second, beside a plain copy"),
        Benchmark(
            "tensor",
            "benchmarks.tensor",
            "tensor × pipeline × data, and a head spread over the pipeline, against stock",
        ),
    )
}


def get_benchmark(name: str) -> Benchmark:
    """The entry of this name.

    Raises:
        UnknownNameError: there is none; the message lists those that exist and the nearest.
    """
    if name not in BENCHMARKS:
        raise UnknownNameError("benchmark", name, BENCHMARKS, where="python -m benchmarks NAME")
    return BENCHMARKS[name]
