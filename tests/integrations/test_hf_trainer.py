"""An unmodified Trainer script with the callback: under DDP and under DeepSpeed, from its start and from a checkpoint."""

import pytest

from recparallel.errors import ConfigError
from recparallel.integrations.hf_trainer import RecParallelCallback

COMPRESSION = {"recparallel": {"compression": {"codec": "top_k", "ratio": 0.05}}}


def trained(*, folder, deepspeed, steps, resume=False, config=None):
    """Losses, the bytes that were sent as a share of the dense ones, and whether the hook is off again."""
    import os

    import torch
    import torch.distributed as dist
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from recparallel import events

    os.environ.update(ACCELERATE_USE_CPU="true", LOCAL_RANK=str(dist.get_rank()))
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.0))
    model.config.embd_pdrop = model.config.attn_pdrop = 0.0
    generator = torch.Generator().manual_seed(1)
    items = [{"input_ids": row, "labels": row} for row in torch.randint(0, 40, (64, 8), generator=generator)]
    arguments = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_steps=3,
        report_to=[],
        disable_tqdm=True,
        deepspeed={
            "train_micro_batch_size_per_gpu": 4,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
            "zero_optimization": {"stage": 1},
        }
        if deepspeed
        else None,
        ddp_backend="gloo",
    )
    callback = RecParallelCallback(config or COMPRESSION)
    trainer = Trainer(model=model, args=arguments, train_dataset=items, callbacks=[callback])
    seen = []
    with events.subscribe(lambda event: seen.append(event) if isinstance(event, events.Exchange) else None):
        trainer.train(resume_from_checkpoint=resume or None)
    share = sum(e.wire_bytes for e in seen) / max(1, sum(e.dense_bytes for e in seen))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, share, callback.handle is None


@pytest.mark.parametrize("deepspeed", [False, True])
def test_an_unmodified_trainer_compresses_and_goes_on_from_its_checkpoint(pools, tmp_path, deepspeed):
    through = pools[2].run(trained, folder=str(tmp_path / "through"), deepspeed=deepspeed, steps=6)
    losses, share, off = through[0]
    assert len(losses) == 6
    assert 0 < share < 0.2
    assert off
    first = pools[2].run(trained, folder=str(tmp_path / "two"), deepspeed=deepspeed, steps=3)
    assert first[0][0] == pytest.approx(losses[:3], rel=1e-5)
    second = pools[2].run(trained, folder=str(tmp_path / "two"), deepspeed=deepspeed, steps=6, resume=True)
    assert second[0][0] == pytest.approx(
        losses, rel=1e-4
    )  # the log goes on from the checkpoint, rounded to four digits


def test_a_wrong_config_is_refused_where_it_is_written():
    with pytest.raises(ConfigError, match="ratio must be a number"):
        RecParallelCallback({"recparallel": {"compression": {"codec": "top_k", "ratio": 3}}})


def not_wrapped():
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from recparallel.errors import HookError

    callback = RecParallelCallback(COMPRESSION)
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to=[])
    try:
        callback.on_train_begin(arguments, TrainerState(), TrainerControl(), model=torch.nn.Linear(2, 2))
    except HookError as error:
        return str(error)
    return ""


def test_a_model_that_nothing_wraps_is_named(pools):
    for said in pools[2].run(not_wrapped):
        assert "wraps this Linear" in said
        assert "recparallel.attach(engine, config)" in said
