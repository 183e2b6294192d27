"""The plain loop of `benchmarks/speed.py`: peft, adapters in bf16, each layer compiled by torch, the loss in parts."""

from __future__ import annotations

from typing import Any

import torch
from peft import get_peft_model
from speed_clock import Clock
from torch.utils.checkpoint import checkpoint

Json = dict[str, Any]
CHUNK = 1024
"""Tokens of the loss at a time."""


def train(case: Json, clock: Clock, base: Any, lora: Any, rows: list[Json]) -> None:
    """Train LoRA on `base`; `rows` hold one row of tensors each."""
    model: Any = get_peft_model(base, lora, autocast_adapter_dtype=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    if case["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    inner = model.get_base_model()
    for layer in inner.model.layers:
        layer.compile()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)

    def part(hidden: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(inner.lm_head(hidden).float(), labels, reduction="sum")

    for step in range(case["timed"] + 1):
        total = torch.zeros((), device=inner.device)
        tokens = 0
        for at in range(case["accumulation"]):
            row = rows[(step * case["accumulation"] + at) % len(rows)]
            inputs = {name: values.to(inner.device) for name, values in row.items()}
            labels = inputs.pop("labels")[0, 1:]
            tokens += labels.numel() + 1
            hidden = inner.model(**inputs, use_cache=False).last_hidden_state[0, :-1]
            parts = zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True)
            loss = sum(checkpoint(part, one, other, use_reentrant=False) for one, other in parts)
            (loss / labels.numel() / case["accumulation"]).backward()
            total += loss.detach() / labels.numel() / case["accumulation"]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step_done(tokens, float(total))
