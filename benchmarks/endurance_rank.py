"""``python -m benchmarks.endurance_rank ORDER``: one rank of a long training in which things go wrong.

Four replicas, fp16 with its loss scale under ZeRO-1, gradients exchanged as ``auto`` decides. Now and then one rank, another one
each time, has a gradient that is not finite. Every so many steps all ranks compare their weights bit by bit.
"""

import json
import sys
import time
import zlib
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import recparallel
from benchmarks import rank as bench
from recparallel import events

_TIMEOUT = timedelta(seconds=240)
_ITEMS, _LENGTH, _SEQUENCES = 2_000, 16, 4
_MODEL = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Order:
    """What is to be run.

    Attributes:
        steps: how many.
        poisoned_every: steps between two gradients that are not finite.
        compared_every: steps between two comparisons of weights.
        compression: as the config has it.
    """

    steps: int
    poisoned_every: int = 97
    compared_every: int = 50
    compression: dict[str, Any] = field(default_factory=lambda: {"codec": "auto"})

    def to_json(self) -> str:
        """For the command line of a rank."""
        return json.dumps(asdict(self))

    def poisons(self, step: int, rank: int, world: int) -> bool:
        """Whether this rank's gradient of step ``step``, from 1, is not finite."""
        return step % self.poisoned_every == 0 and step // self.poisoned_every % world == rank

    @property
    def num_poisoned(self) -> int:
        """Steps that must be skipped."""
        return self.steps // self.poisoned_every


def main(order: Order) -> None:
    """Train, and report: ``losses``, ``seconds`` and ``skipped`` of each step; ``choices`` and ``looks`` with the step behind which
    they were made; ``diverged``, steps at whose end ranks differed; ``kept_finite``, whether all that hooks keep is finite."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    bench.report_step(0)
    rank, world = dist.get_rank(), dist.get_world_size()
    model = recparallel.build_recommender(_MODEL, num_items=_ITEMS)
    engine, *_ = recparallel.initialize(model=model, config=_config(order, world))
    poison = _Poison(next(p for p in engine.module.parameters() if p.dim() == 2 and len(p) == _MODEL["hidden_size"]))
    report: dict[str, Any] = {"losses": [], "seconds": [], "skipped": [], "choices": [], "looks": [], "diverged": []}

    def note(event: events.Event) -> None:
        if isinstance(event, events.ExchangeChoice):
            report["choices"].append([engine.global_steps, event.size, event.way])
        elif isinstance(event, events.ExchangeLook):
            report["looks"].append([engine.global_steps, event.measured_seconds, event.decides_anew])

    with events.subscribe(note):
        for step in range(1, order.steps + 1):
            bench.report_step(step)
            poison.on = order.poisons(step, rank, world)
            skipped, begin = engine.skipped_steps, time.monotonic()
            report["losses"].append(engine.train_batch(iter([_batch(step, rank)])).item())
            report["seconds"].append(time.monotonic() - begin)
            report["skipped"].append(engine.skipped_steps > skipped)
            if step % order.compared_every == 0 and not _is_alike(engine):
                report["diverged"].append(step)
    kept = engine.recparallel.hook.by_parameter() or {}
    report["kept_finite"] = all(bool(value.isfinite().all()) for value in kept.values())
    bench.write_report(report)
    dist.barrier()
    engine.recparallel.remove()
    dist.destroy_process_group()


class _Poison:
    """Makes the gradient of a parameter something that is no number, while it is on."""

    def __init__(self, parameter: torch.Tensor) -> None:
        self.on = False
        self._values = [float("nan"), float("inf"), -float("inf")]
        parameter.register_hook(self._spoil)

    def _spoil(self, gradient: torch.Tensor) -> torch.Tensor:
        if not self.on:
            return gradient
        self._values.append(self._values.pop(0))
        spoilt = gradient.clone()
        spoilt.view(-1)[7] = self._values[0]
        return spoilt


def _config(order: Order, world: int) -> dict[str, Any]:
    return {
        "train_batch_size": _SEQUENCES * world,
        "train_micro_batch_size_per_gpu": _SEQUENCES,
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
        "optimizer": {"type": "AdamW", "params": {"lr": 2e-3, "torch_adam": True}},
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 40, "hysteresis": 1},
        "recparallel": {"stages": 1, "compression": order.compression},
    }


def _batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Histories in which each item has one successor."""
    generator = torch.Generator().manual_seed(1_000 * step + rank)
    start = torch.randint(0, _ITEMS, (_SEQUENCES, 1), generator=generator)
    items = (start + 7 * torch.arange(_LENGTH + 1)) % _ITEMS + 1
    return items[:, :-1], items[:, 1:]


def _is_alike(engine: Any) -> bool:
    """All ranks hold the same weights, to the last bit; collective."""
    digest = 0
    for parameter in engine.module.parameters():
        digest = zlib.crc32(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes(), digest)
    everywhere = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, torch.tensor([digest]))
    return len({int(found) for found in everywhere}) == 1


if __name__ == "__main__":
    main(Order(**json.loads(sys.argv[1])))
