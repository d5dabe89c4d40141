"""The command line, run as a person runs it."""

import json
import subprocess
import sys

import pytest

from recparallel.errors import ConfigError
from recparallel.models.zoo_page import page_of, with_cards
from recparallel.plan import LayerCost, LinkCost, Partition, Profile, Shape

ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
ARCHITECTURE |= {"intermediate_size": 24, "bos_token_id": None, "eos_token_id": None}


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "recparallel.cli", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def profile(tmp_path):
    kinds = ["embedding", "block", "block", "block", "head"]
    layers = tuple(
        LayerCost(name=f"{kind} {i}", kind=kind, forward_seconds=s, backward_seconds=s)
        for i, (kind, s) in enumerate(zip(kinds, [0.1, 1, 1, 1, 3]))
    )
    slower = tuple(layer.model_copy(update={"forward_seconds": 3 * layer.forward_seconds}) for layer in layers)
    path = tmp_path / "profile.json"
    shapes = (Shape(micro_batch=3, sequence_length=8, layers=slower),)
    path.write_text(Profile(layers=layers, micro_batch=1, sequence_length=8, shapes=shapes).model_dump_json())
    return path


def test_a_model_is_profiled_at_several_shapes_and_cut(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(ARCHITECTURE))
    out = tmp_path / "profile.json"
    done = run(
        *("profile", "--model", config, "--num-items", 30, "--out", out, "--micro-batch", 2, "--micro-batch", 4),
        *("--length", 6, "--repeats", 1),
    )
    assert done.returncode == 0, done.stderr
    assert "5 layers, 2 shapes" in done.stdout
    written = Profile.model_validate_json(out.read_text())
    assert (written.micro_batch, written.shapes[0].micro_batch) == (2, 4)
    assert [layer.kind for layer in written.layers] == ["embedding", "block", "block", "norm", "head"]
    cut = run("partition", out, "--stages", 2, "--micro-batch", 3, "--format", "json")
    assert cut.returncode == 0, cut.stderr
    assert Partition.model_validate_json(cut.stdout).num_layers == 5


def test_every_format(profile):
    table = run("partition", profile, "--stages", 2)
    assert "pipeline cut by 'profile': 5 layers on 2 stages" in table.stdout
    assert "no single layer bounds the pipeline" in table.stdout
    table = run("partition", profile, "--stages", 3)
    assert "head 4 cannot be cut and bounds the pipeline: 6000.00 ms of each micro-batch" in table.stdout
    cut = Partition.model_validate_json(run("partition", profile, "--stages", 2, "--format", "json").stdout)
    assert cut.bounds == (0, 4, 5)
    assert run("partition", profile, "--stages", 2, "--format", "megatron").stdout == "Et*3|L\n"
    section = json.loads(run("partition", profile, "--stages", 2, "--format", "deepspeed").stdout)
    assert section == {
        "train_micro_batch_size_per_gpu": 1,
        "recparallel": {
            "stages": 2,
            "schedule": "eager_1f1b",
            "partition": {"method": "profile", "profile": str(profile)},
        },
    }
    virtual = run("partition", profile, "--stages", 2, "--virtual", 2, "--format", "megatron").stdout
    assert virtual.count("|") == 3
    assert virtual.count("t") == 3


def test_with_micro_batches_the_step_is_predicted(profile):
    printed = run("partition", profile, "--stages", 2, "--num-micro-batches", 4).stdout
    assert "predicted step" in printed


def test_the_schedule_decides_what_is_predicted(tmp_path):
    """Two stages, two tensors over the boundary in each of 4 micro-batches, at 1 s each."""
    layers = [
        LayerCost(name="a", forward_seconds=1, backward_seconds=1, boundary_bytes=10),
        LayerCost(name="b", forward_seconds=5, backward_seconds=5),
    ]
    links = (LinkCost(bytes_per_second=10),)
    path = tmp_path / "profile.json"
    path.write_text(
        Profile(layers=layers, micro_batch=1, sequence_length=1, num_micro_batches=4, links=links).model_dump_json()
    )
    steps = {
        schedule: Partition.model_validate_json(
            run("partition", path, "--stages", 2, "--format", "json", *schedule).stdout
        ).step_seconds
        for schedule in ((), ("--schedule", "eager_1f1b"), ("--schedule", "1f1b"))
    }
    assert list(steps.values()) == [2 + 4 * 10 + 2, 2 + 4 * 10 + 2, 2 + 4 * 10 + 8]
    assert Profile.model_validate_json(path.read_text()).schedule is None  # so that a Megatron layout is cut for 1f1b


def test_the_schema_is_printed():
    assert "sequence_length" in json.loads(run("schema").stdout)["properties"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stages", 9], "9 stages, but only 5 layers"),
        (["--stages", 2, "--method", "best"], "unknown partitioner 'best' (--method); known are: adaptive, profile"),
        (["--stages", 2, "--method", "simulated"], "num_micro_batches of the profile is not set"),
        (["--stages", 2, "--micro-batch", 9], "says nothing of micro-batch 9 × length 8; measured are 1 × 8, 3 × 8"),
        (["--stages", 2, "--virtual", 2, "--method", "profile"], "virtual stages are cut by 'interleaved' alone"),
        (["--stages", 2, "--virtual", 2, "--format", "deepspeed"], "DeepSpeed's pipeline has one chunk a stage"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(profile, arguments, said):
    done = run("partition", profile, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "Invalid JSON"),
        ('{"layers": [], "micro_batch": 1, "sequence_length": 1}', "layers: Tuple should have at least 1 item"),
        (
            '{"layers": [{"name": "a", "forward_seconds": -1, "backward_seconds": 0}], "micro_batch": 1, "sequence_length": 1}',
            "layers.0.forward_seconds: Input should be greater than or equal to 0 (given '-1')",
        ),
        (
            '{"layers": [{"name": "a", "forward_seconds": NaN, "backward_seconds": 0}], "micro_batch": 1, "sequence_length": 1}',
            "layers.0.forward_seconds: Input should be a finite number",
        ),
        (
            '{"layers": [{"name": "a", "forward_seconds": 1, "backward_seconds": 0, "seconds": 1}], "micro_batch": 1, '
            '"sequence_length": 1}',
            "layers.0.seconds: Extra inputs are not permitted",
        ),
    ],
)
def test_a_profile_written_by_hand_is_checked(tmp_path, content, said):
    path = tmp_path / "profile.json"
    path.write_text(content)
    done = run("partition", path, "--stages", 1)
    assert done.returncode == 2
    assert said in done.stderr


def test_cards_go_between_the_markers_of_a_document(tmp_path):
    card = tmp_path / "zoo" / "mine"
    card.mkdir(parents=True)
    result = {"command": "train it", "dataset": "d", "protocol": "p", "machine": "m", "seeds": [1, 2]}
    result["metrics"] = {"ndcg@10": {"mean": 0.2, "low": 0.1, "high": 0.3}}
    content = {
        "description": "A card.",
        "architecture": ARCHITECTURE,
        "data": {"dataset": "synthetic", "max_length": 10},
    }
    content |= {"num_train_epochs": 1, "learning_rate": 0.1, "plan": "single.json", "results": [result]}
    (card / "card.yaml").write_text(json.dumps(content))
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- cards: begin -->\nold\n<!-- cards: end -->\nafter\n")
    assert run("zoo", tmp_path / "zoo", "--write", document).returncode == 0
    page = document.read_text()
    assert page.startswith("before\n<!-- cards: begin -->\n\n| card |")
    assert "| [`mine`](#mine) | llama, 2 blocks, width 16 | 4.43 k | tied, `cross_entropy` |" in page
    assert "- ndcg@10: 0.2000 (0.1000–0.3000)\n- seeds 1, 2: mean, and the least and the largest\n- m\n" in page
    assert page.endswith("<!-- cards: end -->\nafter\n")
    assert "old" not in page
    document.write_text("<!-- cards: end --> <!-- cards: begin -->")
    with pytest.raises(ConfigError, match="needs the lines"):
        with_cards(document.read_text(), tmp_path / "zoo")
    with pytest.raises(ConfigError, match="has no folder with a card"):
        page_of(tmp_path)
    refused = run("zoo", tmp_path / "zoo", "--write", tmp_path / "none.md")
    assert refused.returncode == 2
    assert refused.stderr == f"error: {tmp_path / 'none.md'} is not a file\n"
