"""Both trainings of ``python -m benchmarks sasrec``."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.sasrec_trainer import Work

_ROOT = Path(__file__).parent.parent
_CARD = _ROOT / "model_zoo" / "llama-ml1m" / "card.yaml"
_LENGTH, _BATCH = 200, 128


def _split(data: Path) -> Any:
    from recparallel.data.preparation import prepare
    from recparallel.data.splits.leave_one_out import leave_one_out

    return leave_one_out(prepare("sequences", data).histories())


def _metrics(ranks: torch.Tensor) -> tuple[float, float]:
    from recparallel.evaluation.metrics import summarize

    found = summarize(ranks, ks=(10,))
    return found["HR@10"], found["NDCG@10"]


class Ours:
    """The card, as the recipe trains it, in one process."""

    def __init__(self, data: Path, peer: Path) -> None:
        import recparallel
        from recparallel import config as settings
        from recparallel.engines.allocator import keep_freed_memory
        from recparallel.engines.loading import rows_per_epoch
        from recparallel.models.zoo import load_card
        from recparallel.training.arguments import TrainingArguments, complete_config

        keep_freed_memory()
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29761",
        }
        card = load_card(_CARD)
        config = settings.read_deepspeed_config(_ROOT / card.plan)
        self._split = _split(data)
        windows = self._split.train_windows(card.data.max_length)
        rows = rows_per_epoch(windows, settings.parse_config(config), max_length=card.data.max_length)
        self._steps = -(-rows // config["train_batch_size"]) * card.num_train_epochs
        self._share = card.num_train_epochs / self._steps
        self._engine, _, self._loader, _ = recparallel.initialize(
            model=recparallel.build_recommender(
                card.architecture,
                num_items=self._split.histories.num_items,
                tied=card.head.tied,
                loss=card.head.loss,
                dropout=card.head.dropout,
                attention_dropout=card.head.attention_dropout,
                block_dropout=card.head.block_dropout,
            ),
            config=complete_config(config, TrainingArguments(output_dir=""), card, self._steps),
            training_data=windows,
            max_length=card.data.max_length,
        )

    def steps(self) -> Iterator[Work]:
        from recparallel.data.batching import sequences_of

        while self._engine.global_steps < self._steps:
            for batches in self._loader:
                self._engine.train_batch(iter(batches))
                targets = sum(int((batch[1] != -100).sum()) for batch in batches)
                yield Work(sum(map(sequences_of, batches)), targets, self._share)

    def rank(self) -> tuple[float, float]:
        from recparallel.engines.ranking import rank_targets

        return _metrics(rank_targets(self._engine, self._split.evaluation("test", _LENGTH), max_length=_LENGTH))

    def close(self) -> None:
        self._engine.recparallel.remove()


class Theirs:
    """What the peer's ``main.py`` does with a user's arguments, step by step."""

    def __init__(self, data: Path, peer: Path) -> None:
        self._split = _split(data)
        self._scratch = tempfile.TemporaryDirectory(prefix="bench-sasrec-")
        folder = Path(self._scratch.name)
        (folder / "data").mkdir()
        with (folder / "data" / "ml-1m.txt").open("w") as file:
            for user, items in enumerate(self._split.histories.sequences, 1):
                file.writelines(f"{user} {item}\n" for item in items.tolist())
        os.chdir(folder)
        sys.path.insert(0, str(peer / "python"))
        from model import SASRec  # type: ignore[import-not-found]
        from utils import WarpSampler, data_partition  # type: ignore[import-not-found]

        train, _, _, users, items = data_partition("ml-1m")
        arguments = SimpleNamespace(
            device="cpu", hidden_units=50, maxlen=_LENGTH, dropout_rate=0.2, num_blocks=2, num_heads=1, norm_first=False
        )
        self._sampler = WarpSampler(train, users, items, batch_size=_BATCH, maxlen=_LENGTH, n_workers=3)
        self._model = SASRec(users, items, arguments)
        for parameter in self._model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_normal_(parameter.data)
        self._model.pos_emb.weight.data[0] = 0
        self._model.item_emb.weight.data[0] = 0
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=0.001, betas=(0.9, 0.98))
        self._share = _BATCH / len(train)

    def steps(self) -> Iterator[Work]:
        criterion = torch.nn.BCEWithLogitsLoss()
        self._model.train()
        while True:
            user, sequence, positive, negative = map(np.array, self._sampler.next_batch())
            positive_logits, negative_logits = self._model(user, sequence, positive, negative)
            self._optimizer.zero_grad()
            where = np.where(positive != 0)
            loss = criterion(positive_logits[where], torch.ones_like(positive_logits)[where])
            loss = loss + criterion(negative_logits[where], torch.zeros_like(negative_logits)[where])
            loss.backward()
            self._optimizer.step()
            yield Work(_BATCH, len(where[0]), self._share)

    @torch.no_grad()
    def rank(self) -> tuple[float, float]:
        from recparallel.data.batching import evaluation_batches
        from recparallel.evaluation.metrics import ranks_of_targets

        self._model.eval()
        ranks = []
        rows = self._split.evaluation("test", _LENGTH)
        for batch in evaluation_batches(rows, max_length=_LENGTH, batch_size=_BATCH):
            left = torch.zeros_like(batch.inputs_BL)
            for row, last in enumerate(batch.last_B.tolist()):
                left[row, _LENGTH - last - 1 :] = batch.inputs_BL[row, : last + 1]
            hidden = self._model.log2feats(left.numpy())[:, -1]
            scores = hidden @ self._model.item_emb.weight.T
            found = ranks_of_targets(scores, batch.target_B, batch.listed_rows, batch.listed_cols)
            ranks.append(found[batch.valid_B])
        self._model.train()
        return _metrics(torch.cat(ranks))

    def close(self) -> None:
        self._sampler.close()
        os.chdir("/")
        self._scratch.cleanup()
