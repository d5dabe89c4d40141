import json
import re

import numpy as np
import pytest

from recparallel.data.batching import WindowLoader, first_rows
from recparallel.data.prompts.reading import Prompt, read_prompts, some_of
from recparallel.data.prompts.tokens import Encoder, load_tokenizer, train_tokenizer
from recparallel.data.sampler import GlobalBatchSampler
from recparallel.errors import ConfigError, DataError

RECORDS = [
    {
        "instruction": "Will the user like it?",
        "input": 'Liked: "Heat (1995)", "Speed (1994)". "Ran (1985)"?',
        "output": "Yes.",
    },
    {"instruction": "", "input": 'Liked: "Heat (1995)". "Jaws (1975)"?', "output": "no"},
]
PROMPTS = [
    Prompt('Will the user like it?\nLiked: "Heat (1995)", "Speed (1994)". "Ran (1985)"?\nAnswer:', True),
    Prompt('Liked: "Heat (1995)". "Jaws (1975)"?\nAnswer:', False),
]


def test_an_array_and_lines_are_read_alike(tmp_path):
    (tmp_path / "array.json").write_text(json.dumps(RECORDS))
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, RECORDS)) + "\n")
    assert read_prompts(tmp_path / "array.json") == read_prompts(tmp_path / "lines.jsonl") == PROMPTS


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"input": "x", "output": "Maybe"}, "output 'Maybe' is neither Yes nor No"),
        ({"input": " ", "output": "No."}, "input is missing, empty or no text"),
        ({"input": "x"}, "output is missing, empty or no text"),
        ("Yes", "expected an object with instruction, input and output"),
    ],
)
def test_a_malformed_prompt_is_left_out_and_named(tmp_path, record, reason):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([RECORDS[0], record]))
    assert read_prompts(path, max_malformed=0.5) == PROMPTS[:1]
    with pytest.raises(DataError) as error:
        read_prompts(path)
    assert f"{path}:2: {reason}" in str(error.value)


def test_what_is_no_file_of_prompts_is_named(tmp_path):
    path = tmp_path / "prompts.json"
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(path)
    for content, message in (("", "the file is empty"), ("[1,", "neither a JSON array nor an object a line")):
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            read_prompts(path)


def test_some_are_drawn_by_the_seed():
    prompts = [Prompt(str(i), True) for i in range(100)]
    drawn = [some_of(prompts, 10, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({prompt.text for prompt in drawn[0]}) == 10
    with pytest.raises(ConfigError, match="101 training prompts were asked for; allowed are 1 to 100"):
        some_of(prompts, 101, seed=0)


def test_a_title_becomes_a_token_and_text_comes_back():
    tokenizer = train_tokenizer(PROMPTS * 3, vocab_size=2000)
    for prompt in PROMPTS:
        assert tokenizer.decode(tokenizer(prompt.text)["input_ids"]) == prompt.text
    heat = tokenizer('"Heat (1995)"')["input_ids"]
    assert len(heat) == 1
    assert heat[0] in tokenizer(PROMPTS[0].text)["input_ids"]
    assert tokenizer.pad_token_id == 0
    unknown = 'Liked: "Çédille (2001)"?'
    assert tokenizer.decode(tokenizer(unknown)["input_ids"]) == unknown


def test_the_answer_alone_is_a_target():
    encoder = Encoder(train_tokenizer(PROMPTS * 3, vocab_size=2000), max_length=64)
    yes, no = encoder.answers
    windows = encoder.windows(PROMPTS)
    sampler = GlobalBatchSampler(
        2, micro_batch=2, num_micro_batches=1, num_replicas=1, replica=0, seed=0, shuffle=False
    )
    (((inputs_BL, labels_BL),),) = WindowLoader(windows, sampler, max_length=64)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, (yes, no))):
        tokens = encoder.tokenizer(prompt.text)["input_ids"]
        assert inputs_BL[row].tolist() == tokens + [0] * (64 - len(tokens))
        assert labels_BL[row].tolist() == [-100] * (len(tokens) - 1) + [answer] + [-100] * (64 - len(tokens))
    sample = first_rows(windows, 2, max_length=64)
    assert (sample[0].tolist(), sample[1].tolist()) == (inputs_BL.tolist(), labels_BL.tolist())
    for row, given in zip(encoder.rows(PROMPTS), (yes, no)):
        assert row["target"] == given
        assert np.array_equal(row["history"], inputs_BL[row["user"]][: len(row["history"])])


def test_of_a_long_prompt_the_end_is_read(caplog):
    tokenizer = train_tokenizer(PROMPTS * 3, vocab_size=2000)
    encoder = Encoder(tokenizer, max_length=5)
    assert [row["history"].tolist() for row in encoder.rows(PROMPTS)] == [
        tokenizer(prompt.text)["input_ids"][-5:] for prompt in PROMPTS
    ]
    assert "2 of 2 prompts have more than 5 tokens" in caplog.text


def test_a_saved_tokenizer_is_the_same(tmp_path):
    tokenizer = train_tokenizer(PROMPTS * 3, vocab_size=2000)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = load_tokenizer(tmp_path / "tokenizer")
    assert again(PROMPTS[0].text)["input_ids"] == tokenizer(PROMPTS[0].text)["input_ids"]
    assert Encoder(again, 9).answers == Encoder(tokenizer, 9).answers
    with pytest.raises(ConfigError, match="no tokenizer at"):
        load_tokenizer(tmp_path)


def test_the_published_prompts(real_data):
    prompts = read_prompts(real_data("tallrec-movie") / "test.json", max_malformed=0)
    assert len(prompts) == 1000
    assert sum(prompt.liked for prompt in prompts) == 528


class _SpacesApart:
    """Writes a space as a token of its own, as SentencePiece does for some models."""

    def __init__(self, words):
        self.words = {word: number for number, word in enumerate(["_", *words], start=1)}

    def encode(self, text, add_special_tokens):
        return [self.words["_"] if part == " " else self.words[part] for part in re.split("( )", text) if part]

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [self.encode(text, add_special_tokens) for text in texts]}


def test_answers_may_begin_with_the_same_token():
    encoder = Encoder(_SpacesApart(["like?", "Yes", "No"]), max_length=9)
    assert encoder.answers == (3, 4)
    (row,) = encoder.rows([Prompt("like?", True)])
    assert (row["history"].tolist(), row["target"]) == (
        [2, 1],
        3,
    )  # the space before the answer is read, the answer is not
    same = _SpacesApart(["like?", "Yes"])
    same.words["No"] = same.words["Yes"]
    with pytest.raises(ConfigError, match="makes the same of ' Yes' and ' No'"):
        _ = Encoder(same, 9).answers
