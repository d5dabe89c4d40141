"""The model zoo as a page, made from its cards."""

from collections.abc import Mapping
from pathlib import Path

from recparallel.errors import ConfigError
from recparallel.models.recommender import build_recommender
from recparallel.models.trunk import Trunk
from recparallel.models.zoo import CARD, Card, Result, cards_of

BEGIN, END = "<!-- cards: begin -->", "<!-- cards: end -->"
"""Lines of a document between which the cards stand."""


def page_of(zoo: Path) -> str:
    """A table of all cards, and a section for each, in Markdown.

    Raises:
        ConfigError: there is no card.
    """
    cards = cards_of(zoo)
    if not cards:
        raise ConfigError(f"{zoo} has no folder with a {CARD}")
    lines = ["| card | trunk | weights of the trunk | head, loss | data | measured |", "|---|---|---|---|---|---|"]
    for name, card in cards.items():
        lines.append(f"| [`{name}`](#{name.replace('.', '')}) | {' | '.join(_cells(card))} |")
    return "\n".join([*lines, "", *(_section(name, card) for name, card in cards.items())]).rstrip()


def with_cards(document: str, zoo: Path) -> str:
    """The document with the cards between its markers.

    Raises:
        ConfigError: it lacks one of them, or there is no card.
    """
    if END not in document.partition(BEGIN)[2]:
        raise ConfigError(f"the document needs the lines {BEGIN!r} and {END!r}, between which the cards go")
    before, rest = document.split(BEGIN, 1)
    return f"{before}{BEGIN}\n\n{page_of(zoo)}\n\n{END}{rest.split(END, 1)[1]}"


def num_trunk_weights(card: Card) -> int:
    """Of all blocks and norms, without tables of items or tokens."""
    recommender = build_recommender(card.architecture, num_items=1, tied=card.head.tied, pretrained=False)
    skeleton = Trunk.of(recommender.config).skeleton
    tables = {id(module.weight) for module in (skeleton.get_input_embeddings(), skeleton.get_output_embeddings())}
    return sum(weight.numel() for weight in skeleton.parameters() if id(weight) not in tables)


def _cells(card: Card) -> tuple[str, ...]:
    architecture = card.architecture
    trunk = Trunk.of(build_recommender(architecture, num_items=1, pretrained=False).config)
    best = card.results[-1] if card.results else None
    return (
        f"{architecture['model_type']}, {trunk.num_blocks} blocks, width {trunk.dim}",
        _in_words(num_trunk_weights(card)),
        f"{'tied' if card.head.tied else 'untied'}, `{card.head.loss}`",
        f"{card.data.dataset}, at most {card.data.max_length}",
        "" if best is None else ", ".join(f"{key} {_value(value)}" for key, value in list(best.metrics.items())[:2]),
    )


def _section(name: str, card: Card) -> str:
    lines = [f"### {name}", "", card.description, ""]
    dropouts = [f"dropout {card.head.dropout:g}"]
    if card.head.attention_dropout is not None:
        dropouts.append(f"{card.head.attention_dropout:g} inside attention")
    if card.head.block_dropout:
        dropouts.append(f"{card.head.block_dropout:g} of what blocks add")
    rates = f"learning rate {card.learning_rate:g}, weight decay {card.weight_decay:g}, {card.num_train_epochs} epochs"
    lines.append(f"{', '.join(dropouts).capitalize()}; {rates}; plan `{card.plan}`.")
    if not card.results:
        lines += ["", "Not measured."]
    for result in card.results:
        lines += ["", *_result(result)]
    return "\n".join([*lines, ""])


def _result(result: Result) -> list[str]:
    lines = ["```sh", result.command, "```", "", f"On {result.dataset}: {result.protocol}.", ""]
    lines += _bullets(result.metrics)
    lines += _bullets(result.throughput)
    if result.seeds:
        lines.append(f"- seeds {', '.join(map(str, result.seeds))}: mean, and the least and the largest")
    return [*lines, f"- {result.machine}"]


def _bullets(values: Mapping[str, object]) -> list[str]:
    return [f"- {name}: {_value(value)}" for name, value in values.items()]


def _value(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) and value < 1 else str(value)


def _in_words(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
