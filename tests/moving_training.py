"""A program for the launcher: train, write a checkpoint, and move layers to and fro before every step, until a rank kills itself in
the middle of a move; or go on from the checkpoint.

    deepspeed --num_accelerators N tests/moving_training.py FOLDER kill RANK MOVE SHARE
    deepspeed --num_accelerators N tests/moving_training.py FOLDER resume
"""

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch

sys.path.insert(0, str(Path(__file__).parent))

from training import Run, make_engine, train

RUN = Run(
    partition="adaptive", partition_options={"rebalance": {"every": 10**6}, "cache": False}, zero=1, bounds=(0, 3, 6)
)
CUTS = [(0, 4, 6), (0, 1, 6), (0, 3, 6)]


def main(folder: Path, action: str, *rest: str) -> None:
    from recparallel.engines.checkpoint import load_checkpoint, save_checkpoint
    from recparallel.engines.launch import running

    torch.set_num_threads(1)
    with running(folder):
        deepspeed.init_distributed("gloo", verbose=False)
        engine = make_engine(RUN)
        if action == "resume":
            load_checkpoint(engine, folder)
            train(engine, replace(RUN, steps=5), first=engine.global_steps)
            (folder / f"resumed_{os.environ['RANK']}").write_text(f"{engine.global_steps}")
            return
        train(engine, replace(RUN, steps=3))
        save_checkpoint(engine, folder, sampler={})
        victim, which, share = int(rest[0]), int(rest[1]), float(rest[2])
        took = move(engine, 0)
        for number in range(1, 1000):
            if number == which and int(os.environ["RANK"]) == victim:
                (folder / "killed").write_text(f"{time.time()}")
                kill_in(share * took)
            took = move(engine, number)
            train(engine, replace(RUN, steps=engine.global_steps + 1), first=engine.global_steps)


def move(engine: Any, number: int) -> float:
    """Seconds that it took."""
    from recparallel.engines.moving import move_layers

    start = time.perf_counter()
    move_layers(engine, engine.module.partition.model_copy(update={"bounds": CUTS[number % len(CUTS)]}))
    return time.perf_counter() - start


def kill_in(seconds: float) -> None:
    """SIGKILL, whatever this process does then."""
    threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    main(Path(words[0]), *words[1:])
