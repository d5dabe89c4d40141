import importlib
import pkgutil
from pathlib import Path

import pytest

import recparallel
from recparallel.config import parse_config, read_deepspeed_config
from recparallel.config_checks import check_together
from recparallel.data import prompts
from recparallel.errors import ConfigError, UnknownNameError
from recparallel.models.shared import shared_among
from recparallel.models.zoo import Card, find_card, load_card
from recparallel.models.zoo_page import num_trunk_weights, with_cards
from recparallel.tensor_parallel import TensorRanks

ROOT = Path(__file__).parent.parent
ZOO = ROOT / "model_zoo"
CARDS = sorted(path.parent.name for path in ZOO.glob("*/card.yaml"))
MODULES = ["recparallel", *(found.name for found in pkgutil.walk_packages(recparallel.__path__, "recparallel."))]


@pytest.mark.parametrize("name", recparallel.__all__)
def test_every_exported_name_resolves(name):
    assert getattr(recparallel, name) is not None
    assert name in dir(recparallel)


def test_exported_names_are_sorted_and_are_what_their_homes_hold():
    assert recparallel.__all__ == sorted(recparallel.__all__)
    for name, home in recparallel._HOMES.items():
        assert name in recparallel.__all__
        assert getattr(recparallel, name) is getattr(importlib.import_module(home), name)
        assert getattr(recparallel, name).__module__ == home
    assert set(recparallel.__all__) == {*recparallel._HOMES, "__version__"}


def test_an_unknown_attribute_is_named_with_what_there_is():
    with pytest.raises(AttributeError) as raised:
        recparallel.initialise  # noqa: B018
    message = str(raised.value)
    assert "'initialise'" in message
    assert "'initialize'" in message
    assert "initialise" not in dir(recparallel)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name):
    module = importlib.import_module(name)
    assert name == "recparallel._version" or (module.__doc__ or "").strip()


def test_every_module_was_looked_at():
    assert len(MODULES) == len(list(Path(recparallel.__file__).parent.rglob("*.py")))


# --- the model zoo


@pytest.mark.parametrize("name", CARDS)
def test_every_card_loads_by_name_and_by_path(name):
    card = find_card(name, ZOO)
    assert isinstance(card, Card)
    assert find_card(str(ZOO / name), ZOO) == card == load_card(ZOO / name / "card.yaml")


@pytest.mark.parametrize("name", CARDS)
def test_every_card_builds_its_recommender(name):
    card = find_card(name, ZOO)
    built = recparallel.build_recommender(
        card.architecture,
        num_items=7,
        tied=card.head.tied,
        loss=card.head.loss,
        loss_options=card.head.loss_options,
        dropout=card.head.dropout,
    )
    assert built.num_items == 7
    assert built.tied == card.head.tied
    assert (built.layers[0].name, built.layers[-1].name) == ("embedding", "head")
    if num_trunk_weights(card) < 10_000_000:  # others are not for this machine
        modules = [layer.build() for layer in built.layers]
        assert modules[0].weight.shape[0] == 8


@pytest.mark.parametrize("name", CARDS)
def test_every_card_names_a_dataset_and_a_plan_that_exist(name):
    from recparallel import registry

    card = find_card(name, ZOO)
    assert card.data.dataset in (*registry.readers, *prompts.DATASETS)
    assert (ROOT / card.plan).is_file()


@pytest.mark.parametrize("name", CARDS)
def test_the_plan_of_a_card_goes_with_its_model(name):
    card = find_card(name, ZOO)
    config = read_deepspeed_config(ROOT / card.plan)
    section = parse_config(config)
    built = recparallel.build_recommender(card.architecture, num_items=7, tied=card.head.tied, loss="cross_entropy")
    ranks = section.stages * section.tensor
    check_together(config, section, world_size=ranks, num_layers=len(built.layers))
    shared_among(built, TensorRanks(0, section.tensor))
    assert card.data.max_length <= (built.max_length or card.data.max_length)


@pytest.mark.parametrize(
    ("name", "billions"), [("llama3-8b", 8.03 - 2 * 0.525), ("qwen3-8b", 8.19 - 2 * 0.622), ("qwen3-0.6b", 0.44)]
)
def test_cards_with_the_sizes_of_published_models_have_their_weights(name, billions):
    """The published number of parameters, less the tables of tokens."""
    assert num_trunk_weights(find_card(name, ZOO)) / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_page_of_the_zoo_is_made_from_the_cards():
    page = ROOT / "docs" / "model_zoo.md"
    assert with_cards(page.read_text(), ZOO) == page.read_text(), "run recparallel zoo --write docs/model_zoo.md"


def test_the_zoo_has_cards():
    assert {"llama-tiny", "gpt2-tiny"} <= set(CARDS)


def test_an_unknown_model_is_refused_with_the_cards_and_the_nearest():
    with pytest.raises(UnknownNameError) as raised:
        find_card("lama-tiny", ZOO)
    message = str(raised.value)
    assert "unknown model 'lama-tiny'" in message
    assert f"known are: {', '.join(CARDS)}." in message
    assert message.endswith("Did you mean 'llama-tiny'?")
    assert "model_zoo/" in message


def test_a_hub_name_or_a_path_is_not_looked_for_in_the_zoo(tmp_path):
    assert find_card("some-owner/some-model", ZOO) is None
    assert find_card(str(tmp_path), ZOO) is None


CARD = """\
description: a card
architecture: {model_type: llama}
data: {dataset: synthetic, max_length: 10}
num_train_epochs: 1
learning_rate: 0.1
plan: recipes/configs/single.json
"""


def _write(folder, text):
    folder.mkdir()
    (folder / "card.yaml").write_text(text)
    return folder / "card.yaml"


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        (CARD + "epochs: 3\n", "epochs", "3"),
        (CARD + "head: {tyed: true}\n", "head.tyed", "True"),
        (CARD + "head: {dropout: 1.0}\n", "head.dropout", "1.0"),
        (CARD.replace("max_length: 10", "max_length: 0"), "data.max_length", "0"),
        (CARD.replace("learning_rate: 0.1", "learning_rate: 0"), "learning_rate", "0"),
        (CARD.replace("plan: recipes/configs/single.json\n", ""), "plan", ""),
    ],
)
def test_a_wrong_card_is_named_with_file_key_and_value(tmp_path, text, key, value):
    path = _write(tmp_path / "mine", text)
    with pytest.raises(ConfigError) as raised:
        find_card("mine", tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{path}: {key}: ")
    assert f"(given {value}" in message
    assert len(message.splitlines()) == 1


def test_every_wrong_key_of_a_card_gets_a_line(tmp_path):
    path = _write(tmp_path / "mine", CARD.replace("learning_rate: 0.1", "learning_rate: -1") + "epochs: 3\n")
    with pytest.raises(ConfigError) as raised:
        load_card(path)
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == ["learning_rate", "epochs"]


@pytest.mark.parametrize(("text", "reason"), [("a: [1\nb: 2\n", "line 2"), ("", "given None"), ("- 1\n", "given [1]")])
def test_a_file_that_is_no_card_is_named(tmp_path, text, reason):
    path = _write(tmp_path / "mine", text)
    with pytest.raises(ConfigError) as raised:
        load_card(path)
    assert str(raised.value).startswith(str(path))
    assert reason in str(raised.value)


def test_the_smallest_card_has_a_tied_head_and_no_results(tmp_path):
    card = load_card(_write(tmp_path / "mine", CARD))
    assert card.head.tied
    assert (card.head.loss, card.head.dropout, card.results) == ("cross_entropy", 0.0, ())
