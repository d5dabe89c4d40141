"""From prompts to tokens, with a model's tokenizer or one that is trained on the prompts themselves."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recparallel.data.prompts.reading import Prompt
from recparallel.data.windows import Windows
from recparallel.errors import ConfigError

logger = logging.getLogger(__name__)

PAD = "[PAD]"
ANSWERS = " Yes", " No"
_QUOTED = '"[^"]*"'


def train_tokenizer(
    prompts: Sequence[Prompt], *, vocab_size: int = 8192, min_frequency: int = 2
) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on prompts, in which what stands between quotation marks, a title, can become one token.

    Args:
        prompts: to train on.
        vocab_size: tokens at most.
        min_frequency: of two tokens beside each other that become one.

    Returns:
        The tokenizer; token 0 is padding, and both answers are tokens.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f'{_QUOTED}| ?[^\\s"]+|\\s+'), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[PAD, *ANSWERS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([prompt.text for prompt in prompts], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD)


def load_tokenizer(name: str | Path) -> Any:
    """A tokenizer of a folder or of the hub.

    Raises:
        ConfigError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer at {name}: {error}") from error


@dataclass(frozen=True)
class Encoder:
    """Prompts to tokens.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens of a prompt; of a longer one the last are taken, and how many were longer is logged.
    """

    tokenizer: Any
    max_length: int

    @property
    def answers(self) -> tuple[int, int]:
        """The tokens of yes and of no: the first in which they differ.

        Raises:
            ConfigError: they differ in none.
        """
        yes, no = self._differing
        return yes[-1], no[-1]

    @property
    def _differing(self) -> tuple[list[int], list[int]]:
        """The tokens of both answers up to the first that is not the same; a tokenizer may write spaces apart."""
        both = [self.tokenizer.encode(answer, add_special_tokens=False) for answer in ANSWERS]
        for position, (yes, no) in enumerate(zip(*both), start=1):
            if yes != no:
                return both[0][:position], both[1][:position]
        raise ConfigError(f"the tokenizer makes the same of {ANSWERS[0]!r} and {ANSWERS[1]!r}: {both[0]} and {both[1]}")

    def windows(self, prompts: Sequence[Prompt]) -> Windows:
        """To train on: the tokens of each prompt and its answer, which alone is a target."""
        yes, no = self.answers
        lists = [np.append(tokens, yes if p.liked else no) for p, tokens in zip(prompts, self._encoded(prompts))]
        lengths = np.array([len(tokens) for tokens in lists], dtype=np.int64)
        numbers = np.arange(len(lists), dtype=np.int64)
        return Windows(lists, numbers, np.zeros_like(numbers), lengths, last_only=True)

    def rows(self, prompts: Sequence[Prompt]) -> list[Mapping[str, Any]]:
        """To predict: as of :class:`~recparallel.data.splits.base.Evaluation`, the answer being the target."""
        yes, no = self.answers
        return [
            {"user": number, "history": tokens, "target": yes if prompt.liked else no, "listed": tokens[:0]}
            for number, (prompt, tokens) in enumerate(zip(prompts, self._encoded(prompts)))
        ]

    def _encoded(self, prompts: Sequence[Prompt]) -> list[NDArray[np.int64]]:
        before = self._differing[0][:-1]
        found = self.tokenizer([prompt.text for prompt in prompts], add_special_tokens=True)["input_ids"]
        encoded = [[*tokens, *before] for tokens in found]
        longer = sum(len(tokens) > self.max_length for tokens in encoded)
        if longer:
            logger.warning(
                "%d of %d prompts have more than %d tokens: the first ones are cut off",
                longer,
                len(prompts),
                self.max_length,
            )
        return [np.array(tokens[-self.max_length :], dtype=np.int64) for tokens in encoded]
