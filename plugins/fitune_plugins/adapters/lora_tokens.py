"""Rows of tokens that a recipe adds (`[model] add_tokens`), which train beside a low-rank adapter: peft's trainable
tokens, computed without its copies of the embeddings and of the output head.

peft makes the whole table anew at each call, the trained rows put in, and has the gradient of all of it: for a
vocabulary of 100,000 tokens of 4096 numbers in bfloat16 0.8 GiB each, for the embeddings and for the head, and for each
chunk of a loss in chunks. Here rows are looked up and multiplied by themselves. Files, merging and what a model says
are peft's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor, nn

from fitune import ModelError, added_tokens
from fitune_plugins.adapters.lora_places import plain_modules
from fitune_plugins.adapters.lora_whole import Whole
from fitune_plugins.adapters.peft_files import ADAPTER

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WHOLE = 'Train it whole: [adapter] modules_to_save = ["embed_tokens", "lm_head"], or what these two are called here'


def trained_rows(model: PreTrainedModel, targets: Sequence[str], whole: Whole) -> dict[str, list[int]]:
    """The modules whose rows of new tokens train, by full names, with the tokens' ids; none of those that train whole.
    Of tied ones the embeddings alone. Raises `ModelError` for what peft cannot do.
    """
    ids = list(added_tokens(model))
    if not ids:
        return {}
    names = {id(module): name for name, module in plain_modules(model).items()}
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and cast(Any, head).weight is cast(Any, embeddings).weight
    found = {}
    for module in (embeddings, None if tied else head):
        name = None if module is None else names[id(module)]
        if name is None or name in whole.modules or (tied and whole.tied):
            continue
        if name in targets:
            raise ModelError(
                f'[adapter] targets: the rows of new tokens train in "{name}", which can have no adapter beside. Leave '
                f"it out of targets. Or: {WHOLE}"
            )
        if getattr(module, "bias", None) is not None:
            raise ModelError(f'[model] add_tokens: "{name}" has a bias, which peft leaves out of such rows. {WHOLE}')
        found[name] = ids
    return found


def look_up_rows(model: nn.Module) -> None:
    """Have the rows computed by themselves in a model that peft has put them on."""
    for module in model.modules():
        if isinstance(module, TrainableTokensLayer):
            module.__class__ = NewRows
            table = cast("Tensor", module.get_base_layer().weight)
            ids = torch.tensor(module.token_indices[ADAPTER], device=table.device)
            module.register_buffer("new_ids", ids, persistent=False)


def must_be_these(model: PreTrainedModel, saved: Mapping[str, Any], file: Path) -> None:
    """Raise `ModelError` if an adapter was saved with rows of tokens that have other ids here."""
    told = saved.get("trainable_token_indices") or {}
    ids = sorted({int(one) for of in (told.values() if isinstance(told, Mapping) else [told]) for one in of})
    here = list(added_tokens(model))
    if ids and ids != here:
        raise ModelError(
            f"{file}: it has the rows of tokens {_shown(ids)}, and [model] add_tokens adds {_shown(here)}. Add the "
            "tokens that it was trained with"
        )


def _shown(ids: Sequence[int]) -> str:
    return "none" if not ids else str(ids[0]) if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"


class NewRows(TrainableTokensLayer):
    """Embeddings, or an output head, some rows of which train."""

    new_ids: Tensor
    """Ids of these rows, ascending."""

    def forward_adapters(self, x: Tensor, active_adapters: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """Token ids `[...]` to `[..., hidden]`; of a head, `[..., hidden]` to `[..., vocabulary]`."""
        base = self.get_base_layer()
        if self.disable_adapters or self.merged or list(active_adapters) != [ADAPTER]:
            found: Tensor = super().forward_adapters(x, active_adapters, *args, **kwargs)
            return found
        rows = self.trainable_tokens_delta[ADAPTER]
        if isinstance(base, nn.Embedding):
            return self._look_up(x, base(x), rows)
        more = (rows - self.trainable_tokens_original[ADAPTER].to(rows)).to(x.dtype)
        add: Any = _AddColumns.apply
        columns: Tensor = add(base(x), F.linear(x, more), _runs(self.token_indices[ADAPTER]))
        return columns

    def _look_up(self, ids: Tensor, found: Tensor, rows: Tensor) -> Tensor:
        """What the embeddings give, with these rows in the places of their tokens."""
        rows, scale = rows.to(found.dtype), cast(Any, self)._get_embed_scale()
        if scale is not None:
            rows = rows * scale.to(found.dtype)
        nearest = torch.searchsorted(self.new_ids, ids).clamp_(max=len(rows) - 1)
        is_new = self.new_ids[nearest] == ids
        return torch.where(is_new.unsqueeze(-1), F.embedding(nearest, rows), found)


class _AddColumns(torch.autograd.Function):
    """Logits `[..., vocabulary]`, in place, with more at some tokens; neither they nor their gradient are copied."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, more: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
        ctx.mark_dirty(logits)
        ctx.runs = runs
        at = 0
        for begin, end in runs:
            logits[..., begin:end] += more[..., at : at + end - begin]
            at += end - begin
        return logits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        parts = [grads[0][..., begin:end] for begin, end in ctx.runs]
        return grads[0], torch.cat(parts, dim=-1), None


def _runs(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges, half-open."""
    found: list[tuple[int, int]] = []
    for one in ids:
        if found and found[-1][1] == one:
            found[-1] = (found[-1][0], one + 1)
        else:
            found.append((one, one + 1))
    return found
