"""Memory strategy `host-embeddings`: a frozen table of input embeddings stands in host memory.

The card reads the rows that it needs through the bus, from page-locked memory that is mapped into its address space, so
that no copy has to be waited for: [batch, length, hidden] in place of the whole table, which takes 0.8 GiB of a model
with 102,400 tokens of 4096 numbers in bfloat16. The table remains a parameter of the model, on the card's device.
Changes no number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fitune import Fit, MemoryStrategy, ModelError, NoOptions, Plan, Strategy, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "host-embeddings"

REMOVE = f'Remove the [[memory.strategy]] with use = "{NAME}"'


class HostEmbeddings(Strategy):
    """Moves the table."""

    def plan(self, plan: Plan) -> Plan:
        """Say so where there is no GPU to move it from."""
        if not plan.gpu:
            return replace(plan, notices=(*plan.notices, f"{NAME}: no GPU here, so it has no effect"))
        return plan

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Move it. Raises `ModelError` if it trains, or if the output head is the same one."""
        from torch import nn

        from fitune import unwrapped

        inner = unwrapped(model)
        embedding: Any = inner.get_input_embeddings()
        head: Any = inner.get_output_embeddings()
        _must_be_frozen(embedding)
        if head is not None and getattr(head, "weight", None) is embedding.weight:
            raise ModelError(
                f"{NAME}: the output head of {type(inner).__name__} is the table of its input embeddings (tied), which "
                f"the card needs whole. {REMOVE}"
            )
        weight: Tensor = embedding.weight
        if weight.is_cuda:
            embedding.weight = nn.Parameter(_mapped(weight.detach()), requires_grad=False)
        elif weight.is_meta:
            _leave_shape(embedding)
        return model


def _must_be_frozen(embedding: nn.Module) -> None:
    if type(embedding).__module__.startswith("peft.") or any(p.requires_grad for p in embedding.parameters()):
        raise ModelError(
            f"{NAME}: the input embeddings train, so that they and their gradients must be on the card. {REMOVE}, or "
            "do not train them"
        )


def _mapped(table: Tensor) -> Tensor:
    """The same numbers in host memory, as a tensor of the card. Raises `RunError` if the host has no room for them."""
    import torch

    from fitune_plugins.memory.host_memory import HostMemory

    table = table.contiguous()
    block = HostMemory(table.device, NAME).take(table.nbytes)
    block.copy_(table.view(torch.uint8).flatten())
    seen = torch.as_tensor(_Interface(block), device=table.device)
    return seen.view(table.dtype).view(table.shape)


class _Interface:
    """Host memory as CUDA array interfaces describe memory of a card: page-locked memory has one address for both."""

    def __init__(self, block: Tensor) -> None:
        self._block = block  # lives as long as what is made of this
        self.__cuda_array_interface__ = {
            "shape": (block.nbytes,),
            "typestr": "|u1",
            "data": (block.data_ptr(), False),
            "version": 3,
        }


def _leave_shape(embedding: nn.Module) -> None:
    """Without values: a table of the same shape that takes no memory, and rows that come over the bus."""
    import torch
    from torch import nn

    table: Tensor = embedding.weight  # type: ignore[assignment]
    nothing = torch.empty((1, 1), dtype=table.dtype, device=table.device).expand(table.shape)
    embedding.weight = nn.Parameter(nothing, requires_grad=False)
    look_up = embedding.forward

    def forward(ids: Tensor) -> Tensor:
        rows: Tensor = look_up(ids)
        return rows.copy_(torch.zeros((), dtype=rows.dtype, device="cpu").expand(rows.shape))

    embedding.__dict__["forward"] = forward


def _untied(config: PreTrainedConfig) -> bool:
    return not getattr(config.get_text_config(), "tie_word_embeddings", False)


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[NoOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="Frozen input embeddings in host memory, from which the card reads the rows that it needs",
        options=NoOptions,
        make=lambda options: HostEmbeddings(),
        exact=True,
        conflicts_with={"none": "it trains every weight, and the input embeddings would not be on the card"},
        fit=Fit(asked=True, suits=_untied),
    )
