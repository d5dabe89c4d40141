"""Every format, as it is published, with a bad row in each file: what comes out, and what is said about the bad row."""

import gzip
from dataclasses import dataclass, field

import pytest

from recparallel.data.cleaning import Filters
from recparallel.data.loading import load_log
from recparallel.data.preparation import prepare

DAY = 86_400_000
FIRST = 1_500_000_000  # 2017-07-14 02:40:00


@dataclass
class Format:
    """Files by name; what is expected of them; and of each file the line and the reason of its bad row."""

    files: dict
    interactions: list
    items: list
    bad: dict
    options: dict = field(default_factory=dict)


AMAZON_2018 = Format(
    files={
        "Toys_5.json.gz": [
            f'{{"overall": 5.0, "verified": true, "reviewerID": "A1", "asin": "B1", "unixReviewTime": {FIRST}}}',
            f'{{"overall": 3.0, "reviewerID": "A1", "asin": "B2", "style": {{"Size:": " L"}}, "unixReviewTime": {FIRST + 1}}}',
            '{"overall": 3.0, "reviewerID": "A2", "asin": ',
            f'{{"overall": 1.0, "reviewerID": "A2", "asin": "B1", "unixReviewTime": {FIRST * 1000}}}',
        ],
        "meta_Toys.json.gz": [
            '{"asin": "B1", "title": "Duck", "category": ["Toys", "Bath"], "also_buy": ["B2"]}',
            '{"asin": "B2", "title": "Kite", "category": []}',
            '{"title": "no id", "category": []}',
        ],
    },
    interactions=[("A1", "B1", FIRST * 1000, 5.0), ("A1", "B2", (FIRST + 1) * 1000, 3.0)],
    items=[("B1", "Duck", ["Toys", "Bath"]), ("B2", "Kite", [])],
    bad={
        "Toys_5.json.gz": [
            (3, "cannot be parsed"),
            (
                4,
                "timestamp '1500000000000' is no time in seconds between 1970 and 2100 (in milliseconds it is 2017-07-14)",
            ),
        ],
        "meta_Toys.json.gz": [(3, "item is empty")],
    },
)

AMAZON_2023 = Format(
    files={
        "All_Beauty.jsonl": [
            f'{{"rating": 4.0, "text": "…", "asin": "C1", "parent_asin": "P1", "user_id": "U1", "timestamp": {FIRST}123}}',
            f'{{"rating": 2.0, "parent_asin": "P2", "user_id": "U1", "timestamp": {FIRST}}}',
            "[]",
        ],
        "meta_All_Beauty.jsonl": [
            '{"main_category": "All Beauty", "title": "Soap", "categories": ["Bath", "Soap"], "parent_asin": "P1"}',
            '{"main_category": "All Beauty", "title": null, "categories": null, "parent_asin": "P2"}',
        ],
    },
    interactions=[("U1", "P1", FIRST * 1000 + 123, 4.0)],
    items=[("P1", "Soap", ["Bath", "Soap"]), ("P2", "", [])],
    bad={
        "All_Beauty.jsonl": [
            (
                2,
                "timestamp '1500000000' is no time in milliseconds between 1970 and 2100 (in seconds it is 2017-07-14)",
            ),
            (3, "expected an object, found a list"),
        ]
    },
)

YELP = Format(
    files={
        "yelp_academic_dataset_review.json": [
            '{"review_id":"r","user_id":"u","business_id":"b","stars":4.0,"useful":0,"date":"2017-07-14 02:40:00"}',
            '{"review_id":"r","user_id":"u","business_id":"c","stars":2.0,"date":"2017-07-14"}',
            '{"review_id":"r","user_id":"u","business_id":"c","stars":"many","date":"2017-07-14 02:40:00"}',
        ],
        "yelp_academic_dataset_business.json": [
            '{"business_id":"b","name":"Café","categories":"Food, Coffee & Tea","hours":{"Monday":"8:0-22:0"}}',
            '{"business_id":"c","name":"Bar","categories":null}',
            '{"business_id":"b","name":"Other","categories":null}',
        ],
    },
    interactions=[("u", "b", FIRST * 1000, 4.0)],
    items=[("b", "Café", ["Food", "Coffee & Tea"]), ("c", "Bar", [])],
    bad={
        "yelp_academic_dataset_review.json": [
            (2, "timestamp '2017-07-14' is no time of the form %Y-%m-%d %H:%M:%S"),
            (3, "rating 'many' is not a number (Float32)"),
        ],
        "yelp_academic_dataset_business.json": [(3, "item 'b' is on an earlier line")],
    },
)

STEAM = Format(
    files={
        "steam_reviews.json.gz": [
            "{u'username': u'Chaos \"Syren\"', u'hours': 0.1, u'product_id': u'725280', u'date': u'2017-07-14'}",
            "{u'username': u'it\\'s me', u'product_id': u'328100', u'early_access': False, u'date': u'2017-07-15'}",
            "{u'username': u'lost', u'product_id': u'3281",
            "__import__('os').getcwd()",
        ],
        "steam_games.json.gz": [
            "{u'publisher': u'K', u'genres': [u'Action', u'Indie'], u'app_name': u'Lost', u'id': u'725280'}",
            "{u'app_name': u'no id'}",
        ],
    },
    interactions=[
        ('Chaos "Syren"', "725280", FIRST * 1000 // DAY * DAY, 1.0),
        ("it's me", "328100", FIRST * 1000 // DAY * DAY + DAY, 1.0),
    ],
    items=[("725280", "Lost", ["Action", "Indie"])],
    bad={
        "steam_reviews.json.gz": [(3, "cannot be parsed"), (4, "cannot be parsed")],
        "steam_games.json.gz": [(2, "item is empty")],
    },
)

MIND = Format(
    files={
        "behaviors.tsv": [
            "1\tU1\t11/15/2019 9:55:12 PM\tN1 N2\tN3-1 N4-0",
            "2\tU1\t11/15/2019 9:56:12 PM\tN1 N2\tN5-0",
            "3\tU2\t11/15/2019 9:55:12 AM\t\tN3-1",
            "4\tU2\t11/15/2019 9:55:12 AM\t\tN3 N4",
            "5\tU2\t2019-11-15 09:55:12\t\tN3-1",
        ],
        "news.tsv": [
            'N1\tsports\tsoccer\tA "cup"\tabstract\thttps://x\t[]\t[]',
            "N2\tnews",
        ],
    },
    interactions=[
        ("U1", "N1", 0, 1.0),
        ("U1", "N2", 0, 1.0),
        ("U1", "N3", 1_573_854_912_000, 1.0),
        ("U1", "N4", 1_573_854_912_000, 0.0),
        ("U1", "N5", 1_573_854_972_000, 0.0),
        ("U2", "N3", 1_573_811_712_000, 1.0),
    ],
    items=[("N1", 'A "cup"', ["sports", "soccer"])],
    bad={
        "behaviors.tsv": [
            (4, "expected what was shown as 'N1-0 N2-1 …', with labels"),
            (5, "timestamp '2019-11-15 09:55:12' is no time of the form %m/%d/%Y %I:%M:%S %p"),
        ],
        "news.tsv": [(2, "expected 8 fields, found 2")],
    },
)

KUAIRAND = Format(
    files={
        "data/log_standard_4_08_to_4_21_pure.csv": [
            "user_id,video_id,date,hourmin,time_ms,is_click,is_like",
            f"0,3,20220408,600,{FIRST}500,1,0",
            f"0,4,20220408,600,{FIRST}400,0,0",
            "0,4,20220408,600,,0,0",
        ],
        "data/log_standard_4_22_to_5_08_pure.csv": [
            "user_id,video_id,date,hourmin,time_ms,is_click,is_like",
            f"1,3,20220422,600,{FIRST}600,1,0",
        ],
        "data/log_random_4_22_to_5_08_pure.csv": [
            "user_id,video_id,date,hourmin,time_ms,is_click",
            f"9,9,1,1,{FIRST}000,1",
        ],
        "data/video_features_basic_pure.csv": ["video_id,author_id,tag", '3,7,"1,2"', "4,8,"],
    },
    interactions=[
        ("0", "3", FIRST * 1000 + 500, 1.0),
        ("0", "4", FIRST * 1000 + 400, 0.0),
        ("1", "3", FIRST * 1000 + 600, 1.0),
    ],
    items=[("3", "3", ["1", "2"]), ("4", "4", [])],
    bad={"data/log_standard_4_08_to_4_21_pure.csv": [(4, "timestamp '' is not a whole number")]},
)

MOVIELENS_CSV = Format(
    files={
        "ratings.csv": ["userId,movieId,rating,timestamp", f"1,2,3.5,{FIRST}", "1,2,3.5"],
        "movies.csv": [
            "movieId,title,genres",
            '2,"Jeu, Le (1991)",Comedy|Drama',
            "3,Ünder (2001),(no genres listed)",
            '4,"never closed,Drama',
        ],
    },
    interactions=[("1", "2", FIRST * 1000, 3.5)],
    items=[("2", "Jeu, Le (1991)", ["Comedy", "Drama"]), ("3", "Ünder (2001)", [])],
    bad={
        "ratings.csv": [(3, "expected 4 fields, found 3")],
        "movies.csv": [(4, "quotation marks do not go together on this line")],
    },
)

RECBOLE = Format(
    files={
        "ml.inter": [
            "user_id:token\titem_id:token\trating:float\ttimestamp:float",
            f"1\t2\t4\t{FIRST}.0",
            f"\t2\t4\t{FIRST}",
        ],
        "ml.item": [
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
            "2\tThe Game\t1997\tA B",
        ],
    },
    interactions=[("1", "2", FIRST * 1000, 4.0)],
    items=[("2", "The Game", ["A", "B"])],
    bad={"ml.inter": [(3, "user is empty")]},
)

RECBOLE_BARE = Format(
    files={"x.inter": ["item_id:token\tuser_id:token", "i\tu", "j\tu", "k"]},
    interactions=[("u", "i", 2, 1.0), ("u", "j", 3, 1.0)],
    items=[],
    bad={"x.inter": [(4, "expected 2 fields, found 1")]},
)

CSV = Format(
    files={
        "a.csv": ["when;who;what;stars", "2017-07-14;u;i;3", '2017-07-14;"u;2";i;4', "14.7.2017;u;i;3"],
        "b.csv": ["who;what;when;stars", "v;j;2017-07-15;5"],
        "titles.csv": ["what;title", "i;Eye"],
    },
    options={
        "separator": ";",
        "user": "who",
        "item": "what",
        "timestamp": "when",
        "timestamp_unit": "%Y-%m-%d",
        "rating": "stars",
        "items_file": "titles.csv",
    },
    interactions=[
        ("u", "i", FIRST * 1000 // DAY * DAY, 3.0),
        ("u;2", "i", FIRST * 1000 // DAY * DAY, 4.0),
        ("v", "j", FIRST * 1000 // DAY * DAY + DAY, 5.0),
    ],
    items=[("i", "Eye", [])],
    bad={"a.csv": [(4, "timestamp '14.7.2017' is no time of the form %Y-%m-%d")]},
)

JSONL = Format(
    files={"log.jsonl": ['{"user": 7, "item": "i"}', '{"user": null, "item": "i"}', '{"user": 7, "item": 8}']},
    options={"timestamp": "none"},
    interactions=[("7", "i", 1, 1.0), ("7", "8", 3, 1.0)],
    items=[],
    bad={"log.jsonl": [(2, "user is empty")]},
)

FORMATS = {
    "amazon-2018": AMAZON_2018,
    "amazon-2023": AMAZON_2023,
    "yelp": YELP,
    "steam": STEAM,
    "mind": MIND,
    "kuairand": KUAIRAND,
    "movielens-20m": MOVIELENS_CSV,
    "movielens-25m": MOVIELENS_CSV,
    "movielens-32m": MOVIELENS_CSV,
    "recbole": RECBOLE,
    "csv": CSV,
    "jsonl": JSONL,
}


def write(folder, files):
    for name, lines in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = ("\n".join(lines) + "\n").encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


@pytest.mark.parametrize(
    ("name", "fmt"), [*FORMATS.items(), ("recbole", RECBOLE_BARE)], ids=[*FORMATS, "recbole without times"]
)
def test_a_format(tmp_path, name, fmt):
    write(tmp_path, fmt.files)
    log = load_log(name, tmp_path, max_malformed=0.75, options=fmt.options)
    assert [tuple(row.values()) for row in log.interactions.to_list()] == fmt.interactions
    assert [tuple(row.values()) for row in log.items.to_list()] == fmt.items
    told = {}
    for row in log.malformed.first:
        told.setdefault(str(row.path.relative_to(tmp_path)), []).append((row.line, row.reason))
    assert {*told} == {*fmt.bad}
    for file, rows in fmt.bad.items():
        assert [line for line, _ in told[file]] == [line for line, _ in rows]
        for (_, reason), (_, expected) in zip(told[file], rows):
            assert reason.startswith(expected) if expected == "cannot be parsed" else reason == expected


@pytest.mark.parametrize("name", ["mind", "kuairand"])
def test_what_was_not_clicked_is_no_interaction(tmp_path, name):
    write(tmp_path, FORMATS[name].files)
    prepared = prepare(name, tmp_path, folder=tmp_path / "to", max_malformed=0.75, filters=Filters(min_user_events=1))
    clicked = [row for row in FORMATS[name].interactions if row[3] == 1]
    assert prepared.manifest.num_interactions == len(clicked)
    assert prepared.manifest.report.below_min_rating == len(FORMATS[name].interactions) - len(clicked)
