"""Packed documents never see each other: the fastest way that a model and a machine allow, proven before a run.

transformers makes a block-diagonal mask of positions that restart, for models that follow its conventions. Whether a
model does is not taken on trust: one packed row goes through it, and the gradient of a document's outputs with respect
to every other document's embeddings must be zero, exactly. A model that carries a state from token to token (Mamba,
RWKV, linear attention) fails this, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fitune.compose import varlen
from fitune.errors import ModelError, described
from fitune.plugin.dataflow import Batch
from fitune.plugin.model import has_values, known_tokens, unwrapped

if TYPE_CHECKING:
    from fitune.plugin.strategy import Loss

PROBE = (5, 4, 3)
"""Tokens of the documents of the packed row that is tried."""

ASKED = slice(5, 9)
"""The document in the middle: neither the one before it nor the one behind may matter to it."""

SAME = 0.1
"""Logits of two kernels may differ by so much of their norm: the rounding of bfloat16 in many layers, and an expert
chosen otherwise for it, but not another scale, window or order of tokens."""

LAYERS = ("full_attention", "sliding_attention", "attention")
"""Values of a config's `layer_types` whose layers keep to a block-diagonal mask. Chunked attention, say, may not: some
versions of transformers count its chunks from the start of the row instead of the document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How the documents of a packed row are kept apart."""

    by: Literal["variable-length attention", "block mask"]
    reason: str = ""
    """Why there is a mask, which costs memory and time; empty without one."""

    def __str__(self) -> str:
        return f"a {self.by}, as variable-length attention is not to be had: {self.reason}" if self.reason else self.by


def isolate_documents(model: nn.Module, whole: Callable[[Loss], Loss] | None = None) -> Isolation:
    """Make the model, as it will be trained, keep the documents of packed rows apart; call it last, before a run.

    `whole` gives what calls the model, where weights are shared out over processes. Gradients and the state of random
    numbers are left as they were. Raises `ModelError` for a model of which a
    document's outputs depend on another document.
    """
    inner = unwrapped(model)
    _must_be_known(inner)
    was_training = model.training
    model.train()  # as dropout, checkpointing or another path of the code would have it in a run
    prove = partial(_prove, logits_of if whole is None else whole(logits_of), model, inner)
    try:
        by_mask = prove()
        reason = _without_mask(prove, inner, by_mask)
    finally:
        model.train(was_training)
    return Isolation(by="block mask" if reason else "variable-length attention", reason=reason)


def assume_isolated(
    model: nn.Module, capability: tuple[int, int], whole: Callable[[Loss], Loss] | None = None
) -> Isolation:
    """What `isolate_documents` would choose on a card of this compute capability, for a model without values.

    It runs the same small rows, and can prove nothing of them. Raises `ModelError`.
    """
    inner = unwrapped(model)
    _must_be_known(inner)
    prove = partial(_prove, logits_of if whole is None else whole(logits_of), model, inner)
    prove()
    try:
        undo = varlen.switch_on(inner, capability)
    except varlen.UnsupportedError as why:
        return Isolation(by="block mask", reason=str(why))
    try:
        prove()
    except varlen.UnsupportedError as why:
        undo()
        return Isolation(by="block mask", reason=str(why))
    return Isolation(by="variable-length attention")


def _without_mask(prove: Callable[[], Tensor], inner: PreTrainedModel, by_mask: Tensor) -> str:
    """Switch variable-length attention on if it gives these logits; else why it does not."""
    if inner.config._attn_implementation == varlen.NAME:  # from a call before this one
        return ""
    try:
        undo = varlen.switch_on(inner)
    except varlen.UnsupportedError as why:
        return str(why)
    try:
        found = prove()
        if float((found - by_mask).norm()) <= SAME * float(by_mask.norm()):
            return ""
        reason = "its results differ"
    except varlen.UnsupportedError as why:
        reason = str(why)
    except ModelError as error:
        cause = " ".join(str(error.__cause__ or "documents see each other").split())
        reason = f"{type(inner).__name__} does not run with it: {cause}"
    undo()
    return reason


def _must_be_known(inner: PreTrainedModel) -> None:
    """Raise `ModelError` if the config names a kind of layer that is not known to keep documents apart."""
    for number, kind in enumerate(getattr(inner.config.get_text_config(), "layer_types", None) or ()):
        if kind not in LAYERS:
            raise ModelError(_refusal(inner, f'layer {number} ("{kind}")'))


def _refusal(inner: PreTrainedModel, layer: str) -> str:
    return (
        f"pack: {layer} of {type(inner).__name__} is not known to keep packed documents apart: one could learn from "
        "another. Remove the [[data.stage]] that packs rows"
    )


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Of all tokens of a batch; of a model without an output head its hidden states."""
    if unwrapped(model).get_output_embeddings() is None:
        return cast(Tensor, cast(Any, unwrapped(model).base_model)(**batch.inputs())[0])
    return cast(Tensor, cast(Any, model)(**batch.inputs()).logits)


def _prove(forward: Loss, model: nn.Module, inner: PreTrainedModel) -> Tensor:
    """Raise `ModelError` if a document depends on another; gives the logits of one, `[tokens, vocabulary]`, float32."""
    batch = _probe(inner)
    with watched_embeddings(inner) as seen, torch.enable_grad(), same_random(inner.device):
        try:
            logits = forward(model, batch)[0, ASKED].float()
            own = torch.autograd.grad(weighed(logits), seen[0])[0]
        except varlen.UnsupportedError:
            raise
        except Exception as error:  # whatever a model of any make may raise
            raise ModelError(
                f"pack: {type(inner).__name__} cannot be run on a packed row: {described(error)}"
            ) from error
    if not has_values(inner):
        return logits.detach()
    if not own[:, ASKED].any():
        raise ModelError(_refusal(inner, "the embedding"))  # what it gives is not used: nothing would be proven
    if _others(own).any():
        raise ModelError(_refusal(inner, _first_leak(forward, model, inner, batch)))
    return logits.detach()


def _probe(inner: PreTrainedModel) -> Batch:
    """One row of several documents, `[1, 12]`."""
    tokens = sum(PROBE)
    ids = torch.arange(1, tokens + 1, device=inner.device)[None] % known_tokens(inner)
    positions = torch.cat([torch.arange(n, device=inner.device) for n in PROBE])[None]
    return Batch(input_ids=ids, labels=ids, targets=tokens, tokens=tokens, positions=positions, lengths=PROBE)


def weighed(outputs: Tensor) -> Tensor:
    """A scalar that depends on every output: a plain sum is constant behind a norm."""
    return (outputs.float() * torch.linspace(-1, 2, outputs.numel(), device=outputs.device).view_as(outputs)).sum()


def _others(gradient: Tensor) -> Tensor:
    """The part `[1, tokens, ...]` of the documents that were not asked for."""
    return torch.cat([gradient[:, : ASKED.start], gradient[:, ASKED.stop :]], dim=1)


@contextmanager
def watched_embeddings(inner: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collects what the embedding gives, as the leaf of all that follows, even where no weight trains."""
    seen: list[Tensor] = []

    def watch(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1].clone()  # a model may change it in place (CTRL), which a leaf may not be

    handle = inner.get_input_embeddings().register_forward_hook(watch)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def same_random(device: torch.device) -> Iterator[None]:
    """The same random numbers each time, and those of the run untouched."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _first_leak(forward: Loss, model: nn.Module, inner: PreTrainedModel, batch: Batch) -> str:
    """The first and innermost module whose output for a document depends on its input for another."""
    leaks: list[str] = []
    shape = batch.input_ids.shape

    def tokens_of(values: Any) -> Tensor | None:
        values = values if isinstance(values, (tuple, list)) else [values]
        found = (v for v in values if isinstance(v, Tensor) and v.shape[:2] == shape and v.requires_grad)
        return next(found, None)

    def look(module: nn.Module, args: Any, named: dict[str, Any], output: Any) -> None:
        given, made = tokens_of([*args, *named.values()]), tokens_of(output)
        if leaks or given is None or made is None:
            return
        gradient = torch.autograd.grad(weighed(made[:, ASKED]), given, retain_graph=True, allow_unused=True)[0]
        if gradient is not None and _others(gradient).any():
            leaks.append(f"{names[module]} ({type(module).__name__})")

    names = {module: name for name, module in inner.named_modules()}
    handles = [module.register_forward_hook(look, with_kwargs=True) for module in names]
    model.eval()  # checkpointed layers would be run again inside the hooks
    try:
        with watched_embeddings(inner), torch.enable_grad():
            forward(model, batch)
    finally:
        model.train()
        for handle in handles:
            handle.remove()
    return leaks[0] if leaks else "a layer"
