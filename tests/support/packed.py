"""What the tests of packing share: tiny models of every family, and batches of packed documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from fitune import IGNORED, Batch, DataContext, DataStage, Example, MemoryStrategy, Origin
from fitune.compose.loss import plain_loss
from fitune.testing import open_registry
from fitune_plugins.memory.chunked_cross_entropy import chunked_loss
from support.tiny import assert_close, loss_and_gradients

Loss = Callable[[nn.Module, Batch], Tensor]

REGISTRY = open_registry()

LOSSES: dict[str, Loss] = {"plain": plain_loss, "chunked": partial(chunked_loss, chunk=7)}

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 2,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_group": 2,
    "topk_group": 1,
}
WINDOW = 3
"""Tokens of sliding windows: fewer than a document has."""

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": WINDOW, "attn_implementation": "eager"}),
    "gemma3": ("Gemma3", {"head_dim": 8, "sliding_window": WINDOW}),
    "phi3": ("Phi3", {}),
    "deepseek-v2": ("DeepseekV2", LATENT),
    "deepseek-v3": ("DeepseekV3", LATENT),
}
"""Name in the tests, name in transformers, and what differs in the config. Gemma 2 caps its attention scores, which
only eager attention does on a CPU."""


def tiny(family: str, **changes: Any) -> PreTrainedModel:
    """A model with random weights, the same each time, large enough that attention is not uniform."""
    name, config = FAMILIES[family]
    config_class = getattr(transformers, "Gemma3TextConfig" if family == "gemma3" else f"{name}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config_class(**{**SHAPE, **config, **changes}))
    return cast(PreTrainedModel, model.train())


def checkpointed(model: PreTrainedModel) -> PreTrainedModel:
    """The model under the strategy `gradient-checkpointing`."""
    record = REGISTRY.find(MemoryStrategy, "gradient-checkpointing")
    return record.make(record.options()).prepare(model)


def documents(lengths: Sequence[int], *, vocabulary: int = 50, prompt: float = 0.3) -> list[Example]:
    """Examples of random tokens, with labels behind a prompt of a share of each."""
    random = torch.Generator().manual_seed(1)
    found = []
    for row, tokens in enumerate(lengths, 1):
        ids = torch.randint(1, vocabulary, (tokens,), generator=random, dtype=torch.int32)
        labels = ids.clone()
        labels[: int(prompt * tokens)] = IGNORED
        origin = Origin(file="made", row=row)
        found.append(Example(input_ids=ids.numpy(), labels=labels.numpy(), origin=origin))
    return found


def stage(name: str, length: int, **options: object) -> Any:
    """A data stage as a run makes it."""
    record = REGISTRY.find(DataStage, name)
    tokenizer = cast(Any, SimpleNamespace(pad_token_id=0))
    return record.make(record.options(**options), DataContext(tokenizer=tokenizer, length=length, seed=0))


def batch_of(examples: Sequence[Example], length: int) -> Batch:
    """These rows, padded to `length`."""
    return cast(Batch, next(stage("pad", length, to="length")(iter([examples]))))


def packed(examples: Sequence[Example], length: int) -> Batch:
    """All documents in one batch of rows of `length`."""
    return batch_of(list(stage("pack", length)(iter(examples))), length)


def apart(examples: Sequence[Example]) -> list[Batch]:
    """Each document in a batch of its own, without padding."""
    return [batch_of([example], len(example.input_ids)) for example in examples]


def total(loss: Loss, batches: Sequence[Batch]) -> Loss:
    """The loss over these batches, whatever batch is asked for."""
    return lambda model, _: torch.stack([loss(model, batch) for batch in batches]).sum()


DOCUMENTS = apart(documents([9, 5, 13, 8, 6]))
"""The documents of `two_rows`, one by one."""


def two_rows() -> Batch:
    """Two rows of 24 tokens, of two and of three documents, with two and with five tokens of padding."""
    batch = packed(documents([9, 5, 13, 8, 6]), 24)
    assert batch.lengths == (13, 9, 2, 8, 6, 5, 5)
    return batch


def must_equal_one_by_one(model: nn.Module, batch: Batch, loss: str = "plain") -> None:
    """Loss and gradients of `two_rows` are those of its documents, each alone."""
    value, expected = loss_and_gradients(total(LOSSES[loss], DOCUMENTS), model, batch)
    found_value, found = loss_and_gradients(LOSSES[loss], model, batch)
    torch.testing.assert_close(found_value, value, rtol=1e-5, atol=0)
    assert_close(found, expected, relative=1e-5)
    assert any(bool(g.any()) for g in expected)
