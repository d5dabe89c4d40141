"""A small training that every engine test shares: the same model, data and steps in one plain process and on an engine.

The reference is plain torch, without DeepSpeed and without a cut: all micro-batches of a global batch one after the
other, the mean over all targets, ``clip_grad_norm_``, ``AdamW``.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

NUM_ITEMS, LENGTH, MICRO_BATCH, GLOBAL_MICRO_BATCHES = 40, 12, 2, 4
LR = 5e-3

SIZE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
FEW_KEYS = {**SIZE, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "pad_token_id": None}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZE},
    "mistral": {"model_type": "mistral", **FEW_KEYS, "sliding_window": 4},
    "qwen2": {"model_type": "qwen2", **FEW_KEYS},
    "qwen3": {"model_type": "qwen3", **FEW_KEYS},
    "qwen3, one key head": {"model_type": "qwen3", **FEW_KEYS, "num_key_value_heads": 1},
    "phi3": {"model_type": "phi3", **FEW_KEYS},
    "gemma2": {"model_type": "gemma2", **FEW_KEYS, "sliding_window": 4},
    "gpt_neox": {"model_type": "gpt_neox", **SIZE},
    "opt": {
        "model_type": "opt",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "max_position_embeddings": LENGTH,
        "pad_token_id": None,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": LENGTH},
}


@dataclass(frozen=True)
class Run:
    """One training: what differs between engine runs."""

    stages: int = 2
    tensor: int = 1
    sequence: bool = False
    spread_head: bool = False
    partition: str = "uniform"
    partition_options: dict[str, Any] = field(default_factory=dict)
    bounds: tuple[int, ...] | None = None
    tied: bool = True
    zero: int = 0
    clip: float = 0.5
    eps: float = 1e-8
    steps: int = 20
    dropout: float = 0.0
    block_dropout: float = 0.0
    family: str = "llama"
    dtype: str = "fp32"
    loss: str = "cross_entropy"
    schedule: str = "eager_1f1b"
    wire: str = "same"
    attention: str = "model"
    num_items: int = NUM_ITEMS
    compression: dict[str, Any] | None = None
    deepspeed: dict[str, Any] = field(default_factory=dict)


def recommender(run: Run) -> Any:
    from recparallel import build_recommender

    architecture = {**FAMILIES[run.family], "vocab_size": 8, "bos_token_id": None, "eos_token_id": None}
    options = {
        "answers": {"yes": 3, "no": 5},
        "sampled_softmax": {"num_negatives": 10},
        "gbce": {"num_negatives": 10},
        "chunked_cross_entropy": {"chunk_mib": 1e-3},
    }.get(run.loss)
    return build_recommender(
        architecture,
        num_items=run.num_items,
        tied=run.tied,
        dropout=run.dropout,
        block_dropout=run.block_dropout,
        loss=run.loss,
        loss_options=options,
    )


def built(run: Run) -> tuple[Any, list[Any]]:
    """Layers, and their modules with the weights that an engine gives them, to evaluate with."""
    from recparallel.engines.seeding import base_seed, seed_layer

    layers = recommender(run).layers
    modules, shared = [], {}
    for index, layer in enumerate(layers):
        seed_layer(base_seed(1234) + index)
        module = shared.get(layer.tie) or layer.build()
        shared[layer.tie or layer.name] = module
        modules.append(module.eval())
    return layers, modules


def global_batches(steps: int) -> list[list[tuple[Tensor, Tensor]]]:
    """For every step all micro-batches of the job, ragged, one of them without any target."""
    generator = torch.Generator().manual_seed(7)
    made = []
    for step in range(steps):
        micro = []
        for m in range(GLOBAL_MICRO_BATCHES):
            start = torch.randint(0, NUM_ITEMS, (MICRO_BATCH, 1), generator=generator)
            items = (start + 3 * torch.arange(LENGTH + 1)) % NUM_ITEMS + 1  # each item has one successor, to be learned
            inputs, labels = items[:, :-1].clone(), items[:, 1:].clone()
            for row in range(MICRO_BATCH):
                length = int(torch.randint(2, LENGTH + 1, (1,), generator=generator))
                if (step, m) == (1, 3):
                    length = 0
                inputs[row, length:], labels[row, length:] = 0, -100
            micro.append((inputs, labels))
        made.append(micro)
    return made


def reference(run: Run) -> list[float]:
    """Losses of plain torch in this process."""
    return list(_reference(*_decides(run))[0])


def reference_weights(run: Run) -> dict[str, Tensor]:
    """Weights after the last step, by their global names."""
    return _reference(*_decides(run))[1]


def assert_weights_of_one_process(written: dict[str, Tensor], run: Run) -> None:
    """What ranks wrote together, as ``weight/NAME``; ten steps add up what sums in another order differ by."""
    assert_same_names(written, run)
    for name, whole in reference_weights(run).items():
        torch.testing.assert_close(written[f"weight/{name}"], whole, rtol=1e-4, atol=1e-6, msg=name)


def assert_same_names(written: dict[str, Tensor], run: Run) -> None:
    """Weights are those of the model, none missing and none too many."""
    weights = reference_weights(run)
    assert {name for name in written if name.startswith("weight/")} == {f"weight/{name}" for name in weights}


def _decides(run: Run) -> tuple[Any, ...]:
    """What the plan does not change."""
    return run.family, run.tied, run.dropout, run.block_dropout, run.loss, run.num_items, run.steps, run.clip, run.eps


@cache
def _reference(*decides: Any) -> tuple[tuple[float, ...], dict[str, Tensor]]:
    from recparallel.checkpointing.names import global_name
    from recparallel.engines.seeding import base_seed, seed_layer
    from recparallel.models.trunk import Trunk

    family, tied, dropout, block_dropout, loss_name, num_items, steps, clip, eps = decides
    run = replace(
        Run(),
        family=family,
        tied=tied,
        dropout=dropout,
        block_dropout=block_dropout,
        loss=loss_name,
        num_items=num_items,
        steps=steps,
        clip=clip,
        eps=eps,
    )
    rec = recommender(run)
    modules: list[nn.Module] = []
    shared: dict[str, nn.Module] = {}
    for index, layer in enumerate(rec.layers):
        seed_layer(base_seed(1234) + index)
        module = shared.get(layer.tie or "") or layer.build()
        if layer.tie:
            shared[layer.tie] = module
        modules.append(module)
    model = nn.ModuleList(modules)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01, eps=run.eps)
    losses = []
    for step, micro_batches in enumerate(global_batches(run.steps)):
        targets = sum(int((labels != -100).sum()) for _, labels in micro_batches)
        total = 0.0
        for m, (inputs, labels) in enumerate(micro_batches):
            x: Any = inputs
            for index, (layer, module) in enumerate(zip(rec.layers, modules)):
                seed_layer(base_seed(1234) * (step * GLOBAL_MICRO_BATCHES + m + 2) + index)
                x = layer.run(module, x)
            rec.loss_fn.targets_per_micro_batch = float(targets)
            loss = rec.loss_fn(x, labels)
            loss.backward()
            total += loss.item()
        if run.clip:
            nn.utils.clip_grad_norm_(model.parameters(), run.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    trunk = Trunk.of(rec.config)
    weights = {
        global_name(layer, name, trunk): parameter.detach()
        for layer, module in zip(rec.layers, modules)
        for name, parameter in module.named_parameters()
    }
    return tuple(losses), weights


def deepspeed_config(run: Run, replicas: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": MICRO_BATCH,
        "gradient_accumulation_steps": GLOBAL_MICRO_BATCHES // replicas,
        "gradient_clipping": run.clip,
        "steps_per_print": 10**9,
        "optimizer": {"type": "AdamW", "params": {"lr": LR, "weight_decay": 0.01, "eps": run.eps, "torch_adam": True}},
        "zero_optimization": {"stage": run.zero},
        "zero_allow_untested_optimizer": True,
        "recparallel": {
            "stages": run.stages,
            "tensor": run.tensor,
            "sequence_parallel": run.sequence,
            "spread_head": run.spread_head,
            "schedule": run.schedule,
            "wire_format": run.wire,
            "attention": run.attention,
            "partition": {"method": run.partition, "repeats": 1, "warmup": 0, **run.partition_options},
        },
        **run.deepspeed,
    }
    if run.compression is not None:
        config["recparallel"]["compression"] = run.compression
    if run.dtype.startswith("bf16"):
        config["bf16"] = {"enabled": True}
        if run.dtype == "bf16_fp32_accumulation":
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def make_engine(run: Run) -> Any:
    import torch.distributed as dist

    import recparallel

    replicas = dist.get_world_size() // (run.stages * run.tensor)
    sample = global_batches(1)[0][0]
    cut = run.bounds and recparallel.Partition(bounds=run.bounds, method="by hand")
    config = deepspeed_config(run, replicas)
    engine, *_ = recparallel.initialize(model=recommender(run), config=config, sample=sample, partition=cut)
    return engine


def train(engine: Any, run: Run, *, first: int = 0) -> list[float]:
    """Losses of steps ``first`` up to ``run.steps`` on ``engine``."""
    replicas, replica = engine.grid.data_parallel_size, engine.grid.data_parallel_id
    share = GLOBAL_MICRO_BATCHES // replicas
    losses = []
    for micro_batches in global_batches(run.steps)[first:]:
        own = micro_batches[replica * share : (replica + 1) * share]
        losses.append(engine.train_batch(iter(own)).item())
    return losses


def train_on_engine(run: Run) -> list[float]:
    return train(make_engine(run), run)


def ranks_of_some_targets(engine: Any) -> list[int]:
    """Ranks of the targets of 23 users, of whom the last batch is short."""
    from recparallel.engines.ranking import rank_targets

    users = range(23)
    histories = [[1 + (user + k) % NUM_ITEMS for k in range(5)] for user in users]
    rows = [
        {"history": h, "target": 1 + (u + 7) % NUM_ITEMS, "listed": [u % NUM_ITEMS + 1]}
        for u, h in zip(users, histories)
    ]
    found: list[int] = rank_targets(engine, rows, max_length=LENGTH).tolist()
    return found
