"""One replica of several that come and go, in a process of its own: what `tests/engines/test_replicas_elastic.py` starts and kills.

    python tests/elastic_program.py '{"mode": {…}, "port": …, "steps": …, "out": "…"}'

Writes a line for every step, and at the end what it found.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from launching import free_port
from training import LENGTH, NUM_ITEMS, Run, deepspeed_config, recommender

ROWS, MICRO_BATCH = 96, 2


def main(told: dict[str, Any]) -> None:
    import datasets
    import torch

    import recparallel
    from recparallel import events
    from recparallel.engines.checkpoint import load_checkpoint, save_checkpoint
    from recparallel.engines.engine_state import read_weights

    torch.set_num_threads(1)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(free_port())
    out = Path(told["out"])
    config = deepspeed_config(Run(stages=1), 2)
    config["scheduler"] = {"type": "WarmupLR", "params": {"warmup_max_lr": 5e-3, "warmup_num_steps": 20}}
    config["recparallel"]["data_parallel"] = told["mode"]
    rows = [[(start + 3 * i) % NUM_ITEMS + 1 for i in range(2 + start % LENGTH)] for start in range(ROWS)]
    engine, _, loader, scheduler = recparallel.initialize(
        model=recommender(Run(**told.get("run", {}))),
        config=config,
        training_data=datasets.Dataset.from_dict({"items": rows}),
        max_length=LENGTH,
    )
    if told.get("resume"):
        loader.sampler.load_state_dict(load_checkpoint(engine, Path(told["resume"])))
    handle, formed, losses = engine.recparallel, [], []
    with (out / "steps").open("w", buffering=1) as steps:

        def note(event: events.Event) -> None:
            if isinstance(event, events.ReplicasFormed):
                formed.append((event.step, event.count))
                steps.write(f"formed {event.count}\n")

        with events.subscribe(note):
            began = handle.begin()
            while handle.progress < told["steps"]:
                for micro_batches in loader:
                    losses.append(engine.train_batch(iter(micro_batches)).item())
                    steps.write(f"step {handle.progress}\n")
                    time.sleep(told.get("seconds", 0.0))
                    if handle.progress >= told["steps"]:
                        break
            handle.meet()
            save_checkpoint(engine, out / "checkpoints", sampler=loader.sampler.state_dict())
            handle.end()
    replicas = handle.replicas
    name, start = replicas._dealing
    found = {
        "weights": {key: weight.double().sum().item() for key, weight in read_weights(engine).items()},
        "progress": handle.progress,
        "began": began,
        "steps": engine.global_steps,
        "formed": formed,
        "losses": losses,
        "learning_rate": scheduler.get_last_lr()[0],
        "dealt": start + replicas.world.store.add(name, 0),
        "landed": (handle.progress - replicas._landed // 2) * 2 + replicas._landed,
    }
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
