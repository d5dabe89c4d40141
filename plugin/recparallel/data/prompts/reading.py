"""Prompts as TALLRec publishes them: JSON objects with ``instruction``, ``input`` and ``output``, in an array or one a line."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recparallel.data.malformed import NUM_KEPT, MalformedReport, MalformedRow, shorten
from recparallel.errors import ConfigError, DataError

_ANSWERS = {"yes": True, "no": False}


@dataclass(frozen=True)
class Prompt:
    """One question and its answer.

    Attributes:
        text: what the model reads.
        liked: what it should say: yes or no.
    """

    text: str
    liked: bool


def read_prompts(path: Path, *, max_malformed: float = 0.001) -> list[Prompt]:
    """Read a file of prompts.

    Args:
        path: a JSON array, or an object a line.
        max_malformed: share that may be malformed: left out, counted and logged.

    Raises:
        DataError: the file is missing or no JSON, or too many prompts are malformed; in a JSON array a prompt's number, from 1,
            stands for its line.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    good: list[Prompt] = []
    bad: list[MalformedRow] = []
    records = _records(content, path)
    for number, record in enumerate(records, start=1):
        reason = _complaint(record)
        if reason is None:
            good.append(_prompt(record))
        else:
            bad.append(MalformedRow(path, number, reason, shorten(str(record))))
    report = MalformedReport(len(records), len(bad), tuple(bad[:NUM_KEPT]))
    report.check(path=path, max_malformed=max_malformed)
    return good


def some_of(prompts: Sequence[Prompt], count: int, *, seed: int) -> list[Prompt]:
    """``count`` of them, drawn without replacement; in their order.

    Raises:
        ConfigError: there are fewer.
    """
    if not 1 <= count <= len(prompts):
        raise ConfigError(f"{count} training prompts were asked for; allowed are 1 to {len(prompts)}")
    chosen = np.random.default_rng(seed).permutation(len(prompts))[:count]
    return [prompts[i] for i in sorted(chosen.tolist())]


def _records(content: str, path: Path) -> list[Any]:
    stripped = content.strip()
    if not stripped:
        raise DataError(f"{path}: the file is empty; expected at least one prompt")
    try:
        if stripped.startswith("["):
            records: list[Any] = json.loads(stripped)
            return records
        return [json.loads(line) if line.strip() else None for line in stripped.split("\n")]
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: neither a JSON array nor an object a line: {error}") from error


def _complaint(record: Any) -> str | None:
    if not isinstance(record, dict):
        return "expected an object with instruction, input and output"
    for key in ("input", "output"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            return f"{key} is missing, empty or no text"
    if _answer(record) not in _ANSWERS:
        return f"output {record['output'][:20]!r} is neither Yes nor No"
    return None


def _answer(record: dict[str, Any]) -> str:
    answer: str = record["output"]
    return answer.strip().rstrip(".").lower()


def _prompt(record: dict[str, Any]) -> Prompt:
    parts = [str(record.get("instruction") or "").strip(), record["input"].strip(), "Answer:"]
    return Prompt("\n".join(part for part in parts if part), _ANSWERS[_answer(record)])
