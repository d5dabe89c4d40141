"""HR@k, NDCG@k and MRR against a library that nobody here has written, by each protocol."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg, retrieval_reciprocal_rank

from recparallel.data.batching import evaluation_batches
from recparallel.data.histories import Histories
from recparallel.data.protocols import Protocol
from recparallel.data.splits.leave_one_out import leave_one_out
from recparallel.evaluation.metrics import ranks_of_targets, summarize

NUM_ITEMS, K = 60, 10


@pytest.mark.parametrize(
    "protocol", [Protocol(), Protocol(filter_seen=False), Protocol(20), Protocol(20, filter_seen=False)], ids=str
)
def test_metrics_are_those_of_torchmetrics(protocol):
    generator = np.random.default_rng(0)
    sequences = [generator.permutation(NUM_ITEMS)[: generator.integers(3, 30)] + 1 for _ in range(40)]
    names = [str(i) for i in range(40)], ["", *map(str, range(1, NUM_ITEMS + 1))]
    rows = leave_one_out(Histories(*names, sequences)).evaluation("test", 50, protocol)
    scores_UV = torch.rand(len(rows), NUM_ITEMS + 1, generator=torch.Generator().manual_seed(1))
    ranks = []
    for first, batch in zip(range(0, 40, 7), evaluation_batches(rows, max_length=50, batch_size=7)):
        scores_BV = torch.nn.functional.pad(
            scores_UV[first : first + 7], (0, 0, 0, 7 - len(scores_UV[first : first + 7]))
        )
        found = ranks_of_targets(
            scores_BV, batch.target_B, batch.listed_rows, batch.listed_cols, among=protocol.among_listed
        )
        ranks.append(found[batch.valid_B])
    ours = summarize(torch.cat(ranks), ks=(K,))

    theirs = {f"HR@{K}": 0.0, f"NDCG@{K}": 0.0, "MRR": 0.0}
    for row, scores in zip(rows, scores_UV):
        listed = {*row["listed"].tolist()}
        rivals = listed if protocol.among_listed else {*range(1, NUM_ITEMS + 1)} - listed
        candidates = sorted(rivals | {row["target"]})
        given = scores[candidates], torch.tensor([item == row["target"] for item in candidates])
        theirs[f"HR@{K}"] += float(retrieval_hit_rate(*given, top_k=K)) / 40
        theirs[f"NDCG@{K}"] += float(retrieval_normalized_dcg(*given, top_k=K)) / 40
        theirs["MRR"] += float(retrieval_reciprocal_rank(*given)) / 40
    assert ours == pytest.approx(theirs, rel=1e-6)
