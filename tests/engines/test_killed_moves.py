"""A rank that is killed while layers move: the job ends with the first error, and the last checkpoint resumes."""

import os
import random
import time

import pytest
from launching import ROOT, launch

PROGRAM = ROOT / "tests" / "moving_training.py"
MOMENTS = int(os.environ.get("RECPARALLEL_MOMENTS", "1"))
"""How many random moments are tried; 20 take ten minutes."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(MOMENTS))
def test_a_rank_killed_during_a_move_stops_the_job(tmp_path, seed):
    moment = random.Random(seed)
    processes = moment.choice([2, 4]) if MOMENTS > 1 else 2
    victim, which, share = moment.randrange(processes), moment.randint(1, 6), moment.uniform(0, 1)
    done = launch(processes, str(tmp_path), "kill", str(victim), str(which), f"{share:.3f}", program=PROGRAM)
    ended = time.time()
    assert done.returncode != 0
    assert (tmp_path / "killed").is_file(), done.stdout
    assert ended - float((tmp_path / "killed").read_text()) < 60
    assert "return code = -9" in done.stdout or "lost a peer" in done.stdout, done.stdout
    again = launch(processes, str(tmp_path), "resume", program=PROGRAM)
    assert again.returncode == 0, again.stdout
    assert [(tmp_path / f"resumed_{rank}").read_text() for rank in range(processes)] == ["5"] * processes
