from datetime import datetime, timezone

import pytest

from recparallel.data.cleaning import Filters
from recparallel.data.description import describe, plot


def test_numbers_by_hand(prepare_rows):
    first = 1_500_000_000
    rows = [("u", item, first + i) for i, item in enumerate("aab")] + [("v", "a", first + 86_400), ("w", "c", 0)]
    prepared = prepare_rows(rows, filters=Filters(min_user_events=1), options={"timestamp_unit": "s"})
    description = describe(prepared)
    assert (description.num_users, description.num_items, description.num_interactions) == (3, 3, 5)
    assert description.counts_I.tolist() == [3, 1, 1]
    assert description.lengths_U.tolist() == [3, 1, 1]
    assert description.density == pytest.approx(5 / 9)
    assert description.top_share == pytest.approx(3 / 5)
    assert description.first == datetime(2017, 7, 14, 2, 40, tzinfo=timezone.utc)
    assert description.last == datetime(2017, 7, 15, 2, 40, tzinfo=timezone.utc)
    told = dict(description.rows())
    assert told["density"] == "55.5556%"
    assert (told["length of a history, 0%"], told["length of a history, 100%"]) == ("1", "3")
    assert (told["from"], told["to"]) == ("2017-07-14", "2017-07-15")


def test_an_order_is_no_date_and_the_plot_is_drawn(prepare_rows, tmp_path):
    description = describe(prepare_rows([("u", item, 0) for item in "abc"]))
    assert description.first is None
    assert "from" not in dict(description.rows())
    plot(description, tmp_path / "new" / "log.png", title="log")
    assert (tmp_path / "new" / "log.png").read_bytes().startswith(b"\x89PNG")
