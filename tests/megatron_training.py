"""A Megatron-Core GPT model on a CPU under gloo, trained with or without a pipeline, for tests on real ranks.

Megatron asks CUDA for the current device and for its random state; both are answered for the CPU, for the time of a case.
"""

import contextlib
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

B, L, D, V, NUM_LAYERS = 2, 8, 16, 24, 5


@contextlib.contextmanager
def megatron_on_cpu(pipeline: int) -> Iterator[None]:
    """Megatron's groups, on the default gloo group."""
    from megatron.core import parallel_state, tensor_parallel

    class NoState:
        def fork(self, name=None):
            return nullcontext()

    class OnCpu(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if kwargs.get("device") == "cuda":
                kwargs["device"] = "cpu"
            return func(*args, **kwargs)

    with (
        OnCpu(),
        mock.patch.object(torch.cuda, "current_device", return_value=torch.device("cpu")),
        mock.patch.object(torch.cuda, "synchronize"),
        mock.patch.object(tensor_parallel.random, "get_cuda_rng_tracker", return_value=NoState()),
        mock.patch("megatron.core.transformer.attention.get_cuda_rng_tracker", NoState, create=True),
        mock.patch("megatron.core.transformer.dot_product_attention.tensor_parallel.get_cuda_rng_tracker", NoState),
        mock.patch(
            "megatron.core.models.common.embeddings.language_model_embedding.tensor_parallel.get_cuda_rng_tracker",
            NoState,
        ),
    ):
        parallel_state.initialize_model_parallel(pipeline_model_parallel_size=pipeline)
        try:
            yield
        finally:
            parallel_state.destroy_model_parallel()


def train_gpt(pipeline: int, layout: str | None, *, steps: int, micro_batches: int) -> dict[str, object]:
    """Losses of the last stage, and the global numbers of the layers that this rank holds."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer import TransformerConfig

    with megatron_on_cpu(pipeline):
        config = TransformerConfig(
            num_layers=NUM_LAYERS,
            hidden_size=D,
            num_attention_heads=2,
            use_cpu_initialization=True,
            pipeline_dtype=torch.float32,
            pipeline_model_parallel_size=pipeline,
            pipeline_model_parallel_layout=layout,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            bias_dropout_fusion=False,
            bias_activation_fusion=False,
            masked_softmax_fusion=False,
            gradient_accumulation_fusion=False,
            batch_p2p_sync=False,
        )
        first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
        model = GPTModel(
            config,
            get_gpt_layer_local_spec(),
            vocab_size=V,
            max_sequence_length=L,
            pre_process=first,
            post_process=last,
            share_embeddings_and_output_weights=False,
        )
        numbers = [layer.layer_number - 1 for layer in model.decoder.layers]
        _same_weights_everywhere(model, numbers)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for step in range(steps):
            optimizer.zero_grad()
            reduced = get_forward_backward_func()(
                forward_step_func=_forward_step,
                data_iterator=iter([_batch(step, m) for m in range(micro_batches)]),
                model=[model],
                num_microbatches=micro_batches,
                seq_length=L,
                micro_batch_size=B,
                forward_only=False,
            )
            optimizer.step()
            losses.append(sum(float(each["loss"]) for each in reduced) / micro_batches if last else None)
        return {"layers": numbers, "losses": losses, "embedding": first, "head": last}


def _forward_step(data, model):
    tokens, labels = next(data)
    positions = torch.arange(L).unsqueeze(0).expand(B, L)
    mask = torch.triu(torch.ones(1, 1, L, L, dtype=torch.bool), diagonal=1)
    output = model(tokens, positions, mask, labels=labels)

    def loss(output):
        value = output.mean()
        return value, {"loss": value.detach()}

    return output, loss


def _batch(step: int, micro_batch: int):
    generator = torch.Generator().manual_seed(1000 * step + micro_batch)
    items = torch.randint(0, V, (B, L + 1), generator=generator)
    return items[:, :-1].contiguous(), items[:, 1:].contiguous()


def _same_weights_everywhere(model, numbers: list[int]) -> None:
    """Weights drawn from the parameter's name in the whole model, whichever rank holds it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parts = name.split(".")
            if parts[:2] == ["decoder", "layers"]:
                parts[2] = str(numbers[int(parts[2])])
            if parameter.dim() < 2:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            generator = torch.Generator().manual_seed(zlib.crc32(".".join(parts).encode()))
            parameter.copy_(torch.empty(parameter.shape).normal_(std=0.1, generator=generator))
