from collections import Counter

import numpy as np
import pytest
import torch

from recparallel.data.batching import evaluation_batches
from recparallel.data.loading import load_log
from recparallel.data.preparation import prepare
from recparallel.data.splits.leave_one_out import leave_one_out
from recparallel.data.synthetic import write_synthetic
from recparallel.errors import ConfigError, DataError
from recparallel.evaluation.metrics import hit_rate, ranks_of_targets
from recparallel.evaluation.popularity import evaluate_popularity


@pytest.fixture(scope="module")
def synthetic():
    return load_log("synthetic", None, seed=0)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    sizes = {"num_users": 20, "num_items": 50, "min_events": 5, "max_events": 9}
    write_synthetic(tmp_path / "a", seed=3, **sizes)
    write_synthetic(tmp_path / "b", seed=3, **sizes)
    write_synthetic(tmp_path / "c", seed=4, **sizes)
    for file in ("u.data", "u.item"):
        content = (tmp_path / "a" / file).read_bytes()
        assert content == (tmp_path / "b" / file).read_bytes()
        assert content != (tmp_path / "c" / file).read_bytes()


def test_sizes(tmp_path):
    write_synthetic(tmp_path, num_users=20, num_items=50, min_events=5, max_events=9)
    log = load_log("movielens-100k", tmp_path, max_malformed=0)
    counts = Counter(log.interactions["user"][:])
    assert len(counts) == 20
    assert set(counts.values()) <= {5, 6, 7, 8, 9}
    assert len(set(counts.values())) > 1
    assert len(log.items) == 50


def test_every_user_may_take_the_whole_catalogue(tmp_path):
    write_synthetic(tmp_path, num_users=2, num_items=10, min_events=10, max_events=10, drift=1.0)
    log = load_log("movielens-100k", tmp_path)
    assert sorted(log.interactions["item"][:], key=int) == [str(i + 1) for i in range(10) for _ in range(2)]


def test_titles_stay_unique_in_a_large_catalogue(tmp_path):
    write_synthetic(tmp_path, num_users=1, num_items=2500, min_events=3, max_events=3)
    titles = [title.rpartition(" (")[0] for title in load_log("movielens-100k", tmp_path).items["title"]]
    assert len(set(titles)) == 2500


def test_no_user_meets_an_item_twice_or_two_at_once(synthetic):
    table = synthetic.interactions.to_polars()
    assert table.select("user", "item").n_unique() == table.height
    assert table.select("user", "timestamp").n_unique() == table.height


def test_ratings_genres_and_titles_are_plausible(synthetic):
    table = synthetic.interactions.to_polars()
    assert set(table["rating"].unique()) == {1, 2, 3, 4, 5}
    assert all(1 <= len(genres) <= 2 for genres in synthetic.items["genres"])
    titles = synthetic.items["title"][:]
    assert all(title.startswith("The ") and title[-6:-5] == "(" for title in titles)
    assert any("é" in title for title in titles)


def test_popularity_has_a_long_tail(synthetic):
    counts = np.sort(np.array(list(Counter(synthetic.interactions["item"][:]).values())))[::-1]
    assert counts[:60].sum() > 2.5 * 60 / 600 * counts.sum()


def test_the_order_says_far_more_than_popularity(tmp_path):
    """A table of which item followed which, the simplest sequence model there is, against the popularity count."""
    split = leave_one_out(prepare("synthetic", None, folder=tmp_path).histories())
    follows = torch.zeros(split.histories.num_items + 1, split.histories.num_items + 1)
    for items in split.train:
        follows[items[:-1].tolist(), items[1:].tolist()] += 1
    ranks = []
    for batch in evaluation_batches(split.evaluation("test", 50), max_length=50, batch_size=512):
        last_B = batch.inputs_BL.gather(1, batch.last_B[:, None])[:, 0]
        ranks_B = ranks_of_targets(follows[last_B], batch.target_B, batch.listed_rows, batch.listed_cols)
        ranks.append(ranks_B[batch.valid_B])
    sequential = hit_rate(torch.cat(ranks), 10)
    popularity = evaluate_popularity(split, "test", max_length=50)["HR@10"]
    assert popularity < 0.15
    assert sequential > 3 * popularity


def test_an_empty_folder_is_filled_and_read_back(tmp_path, synthetic):
    folder = tmp_path / "new" / "folder"
    log = load_log("synthetic", folder)
    assert sorted(path.name for path in folder.iterdir()) == ["u.data", "u.item"]
    again = load_log("movielens-100k", folder)
    for other in (log, again):
        assert other.interactions.to_polars().equals(synthetic.interactions.to_polars())
        assert other.items.to_polars().equals(synthetic.items.to_polars())


def test_a_folder_of_another_seed_is_neither_read_nor_changed(tmp_path, synthetic, caplog):
    write_synthetic(tmp_path, seed=1)
    before = (tmp_path / "u.data").read_bytes()
    log = load_log("synthetic", tmp_path, seed=0)
    assert log.interactions.to_polars().equals(synthetic.interactions.to_polars())
    assert (tmp_path / "u.data").read_bytes() == before
    assert "was not read" in caplog.text


def test_a_folder_of_the_same_seed_is_no_cause_for_a_warning(tmp_path, caplog):
    write_synthetic(tmp_path, seed=0)
    load_log("synthetic", tmp_path, seed=0)
    assert caplog.text == ""


def test_the_seed_reaches_the_generator(synthetic):
    other = load_log("synthetic", None, seed=1)
    assert not other.interactions.to_polars().equals(synthetic.interactions.to_polars())


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file is a file"):
        load_log("synthetic", tmp_path / "file")


@pytest.mark.parametrize(
    "wrong",
    [{"num_users": 0}, {"min_events": 0}, {"max_events": 601}, {"min_events": 81}, {"num_items": 6}, {"drift": 2}],
)
def test_sizes_that_do_not_go_together(tmp_path, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        write_synthetic(tmp_path, **wrong)
