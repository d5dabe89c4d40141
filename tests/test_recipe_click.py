"""The click recipe as a user starts it: it learns what there is to learn, goes on where it was, and not with other data."""

import json

import numpy as np
import pytest
from launching import ROOT, launch, losses, write_config

from recparallel.errors import DataError
from recparallel.training.identity import check_same_data

pytestmark = [pytest.mark.launch, pytest.mark.timeout(300)]
RECIPE = ROOT / "recipes" / "train_click.py"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Everybody likes the films with an even number."""
    folder = tmp_path_factory.mktemp("prompts")
    generator = np.random.default_rng(0)
    for part, count in (("train", 256), ("valid", 40), ("test", 60)):
        records = []
        for _ in range(count):
            liked, film = generator.integers(8, size=2).tolist()
            answer = "No." if film % 2 else "Yes."
            records.append({"instruction": "", "input": f'Liked: "Film {liked}". "Film {film}"?', "output": answer})
        (folder / f"{part}.json").write_text(json.dumps(records))
    return folder


def _run(folder, prompts, steps, *more):
    config = write_config(
        folder / "ds.json", train_batch_size=32, train_micro_batch_size_per_gpu=16, recparallel={"stages": 1}
    )
    options = {
        "--deepspeed_config": config,
        "--data_dir": prompts,
        "--output_dir": folder / "run",
        "--max_steps": steps,
        "--learning_rate": 5e-3,
        "--max_length": 32,
        "--eval_epochs": 3,
        "--report_to": "none",
    }
    done = launch(1, *(str(part) for pair in options.items() for part in pair), *more, program=RECIPE)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_it_learns(prompts, tmp_path):
    told = _run(tmp_path, prompts, 40)
    assert "prompts: 256 train, 40 valid, 60 test" in told
    assert "valid AUC" in told
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["auc"] > 0.95
    assert metrics["protocol"].startswith("AUC of the logit of yes less that of no over 60 prompts")
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_it_goes_on(prompts, tmp_path):
    _run(tmp_path, prompts, 20)
    assert "test AUC" in _run(tmp_path, prompts, 30, "--resume")
    assert {*losses(tmp_path / "run")} == {*range(1, 31)}


def test_a_training_does_not_go_on_with_other_data(tmp_path):
    check_same_data(tmp_path, {"log": "a", "split": "ratio"}, resume=False)
    check_same_data(tmp_path, {"log": "a", "split": "ratio"}, resume=True)
    with pytest.raises(DataError, match=r"data\.json says .* other data: log was 'a' and is 'b'$"):
        check_same_data(tmp_path, {"log": "b", "split": "ratio"}, resume=True)
    with pytest.raises(DataError, match="split was 'ratio' and is None"):
        check_same_data(tmp_path, {"log": "a"}, resume=True)
    check_same_data(tmp_path, {"log": "c"}, resume=False)  # anew
    check_same_data(tmp_path, {"log": "c"}, resume=True)
