"""From files to batches: interaction logs, histories, splits, samplers and tensors.

The way through the room::

    prepared = prepare("movielens-1m", "ml-1m")              # readers/, preparation.py: files to histories on disk
    split = leave_one_out(prepared.histories())              # histories.py, splits/: items are 1 … num_items
    windows = split.train_windows(max_length=200)
    sampler = GlobalBatchSampler(len(windows), micro_batch=16, num_micro_batches=4, num_replicas=2, replica=0, seed=0)
    for micro_batches in WindowLoader(windows, sampler, max_length=200):  # one optimizer step of replica 0
        ...

Nothing here knows a model or an engine.
"""
