import pytest

from benchmarks.__main__ import main
from benchmarks.environment import capture_environment
from benchmarks.errors import RunError
from benchmarks.ragged import CONTROL, Turn, lines_of, rows_of_a_step
from benchmarks.ragged_rank import Order, Way
from benchmarks.results import Results, ratio_of
from benchmarks.sasrec import lines_of as sasrec_lines
from benchmarks.sasrec_trainer import Point, Trainer, Work
from benchmarks.workloads import DATA, get_workload


def test_an_order_travels_as_text():
    order = Order("ragged", (Way("packed", 9, 4), Way("fixed", 16, 4)), rounds=2, steps=3, threads=1)
    assert Order.from_json(order.to_json()) == order


def test_a_ratio_within_noise_is_said_to_be():
    results = Results(benchmark="ragged", environment=capture_environment("none", emulated=False))
    for side, pairs in (("packed", [(18.0, 10.0)]), ("dynamic", [(10.2, 10.0)]), (CONTROL, [(10.4, 10.0)])):
        results.ratios.append(ratio_of("ragged", "one", "targets_per_second", side=side, against="fixed", pairs=pairs))
    turns = [Turn(2.0, 64.0, 600.0, 1000.0)]
    found = dict.fromkeys(("fixed", "dynamic", "packed", CONTROL), turns)
    chosen = {name: Way(name, 16, 4) for name in ("fixed", "dynamic", "packed")}
    lines = {line[1]: line for line in lines_of(results, "one", chosen, found)}
    assert lines["fixed"][2:] == ("4 × 16 rows", "32.0", "300", "40.0%", "1")
    assert lines["dynamic"][-1] == "1.02 (1.02–1.02), within noise"
    assert lines["packed"][-1] == "1.80 (1.80–1.80)"


@pytest.mark.skipif(get_workload("ragged").missing() is not None, reason="MovieLens-1M is not here")
def test_a_packed_step_has_as_many_histories_in_fewer_rows():
    assert rows_of_a_step("fixed") == rows_of_a_step("dynamic") == 64
    assert 30 < rows_of_a_step("packed") < 45


def test_without_data_or_peer_they_say_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(DATA, str(tmp_path))
    assert main(["ragged"]) == main(["sasrec"]) == 1
    (tmp_path / "ml-1m").mkdir()
    assert main(["sasrec", "--peer", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"set {DATA}" in said
    assert "give the path of a checkout of pmixer/SASRec.pytorch" in said


def test_a_training_is_told_at_its_half_and_its_end():
    points = [Point(60.0 * n, 100 * n, 1000 * n, n / 2, 0.1 * n, 0.05 * n) for n in (1, 2, 3)]
    first, last = sasrec_lines({"ours": points})
    assert first == ("ours", "2.0", "1.0", "2", "17", "0.2000", "0.1000")
    assert last[1:3] == ("3.0", "1.5")


class Counting:
    def __init__(self, data, peer):
        if not data.is_dir():
            raise ValueError("no data")
        self.data = data

    def steps(self):
        for _ in range(3):
            yield Work(2, 5, 0.5)

    def rank(self):
        return 0.2, 0.1

    def close(self):
        (self.data / "closed").touch()


def test_a_trainer_works_in_turns_and_ends_by_itself(tmp_path):
    with Trainer(Counting, tmp_path, tmp_path) as trainer:
        points = [trainer.turn(5.0) for _ in range(2)]
    assert (tmp_path / "closed").exists()
    assert [(p.sequences, p.targets, p.epochs, p.hr, p.ndcg) for p in points] == 2 * [(6, 15, 1.5, 0.2, 0.1)]
    with Trainer(Counting, tmp_path / "none", tmp_path) as trainer, pytest.raises(RunError, match="ended with 1"):
        trainer.turn(5.0)
