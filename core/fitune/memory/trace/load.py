"""The memory of a model's weights as loading them takes it: of one card, or of a card's part."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from fitune.compose.model import Strategies, changed, distributed
from fitune.memory.trace.log import Block
from fitune.memory.trace.meta import tensors_of
from fitune.memory.trace.tracer import Tracer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WARM_UP = "transformers' warm-up of the allocator"
DEQUANTISED = "a weight that is dequantised as it is read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What a base is read as, and what becomes of it before it trains."""

    tensors: list[Tensor] = field(default_factory=list)
    """Its tensors, of which the objective may have let go."""
    outgrown: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Tables of tokens as they are read, each with the larger one that takes its place."""

    def forget(self) -> None:
        """Let go of all of it."""
        self.tensors.clear()
        self.outgrown.clear()


def load(model: PreTrainedModel, tracer: Tracer, reading: float, read: Read) -> None:
    """Take the memory of the weights as loading them does: transformers first takes all of it in one block, and gives
    it back to the caching allocator, which then serves every tensor from it. The largest of those that are dequantised
    as they are read takes `reading` bytes more a weight for a while; here, it comes last. Tables that get rows for more
    tokens are then made anew, one after the other. What was `read` and is no part of the model any more is given back
    behind that.
    """
    of_adapter = {id(p) for p in model.parameters() if p.requires_grad} if adapts(model) else set()
    tensors = list(tensors_of(model))
    known = {id(tensor) for tensor in tensors}
    left = [tensor for tensor in read.tensors if id(tensor) not in known]
    larger, smaller = [new for _, new in read.outgrown], {id(new): old for old, new in read.outgrown}
    read.forget()
    base = [*left, *(tensor for tensor in tensors if id(tensor) not in of_adapter)]
    base = [smaller.get(id(tensor), tensor) for tensor in base]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in base}
    tracer.log.pass_through(Block(sum(storages.values()), "weights", "load", WARM_UP, ""))
    gc.collect()
    for tensor in base:
        tracer.adopt(tensor)
    base.clear()
    for table in larger:
        tracer.adopt(table)
        del smaller[id(table)]
    larger.clear()
    left.clear()
    if reading:
        tracer.log.pass_through(Block(int(reading * _largest(model)), "kernel scratch", "load", DEQUANTISED, ""))
    for tensor in (tensor for tensor in tensors if id(tensor) in of_adapter):
        tracer.adopt(tensor)
    tracer.retag((p for p in model.parameters() if p.requires_grad), "adapter" if adapts(model) else "weights")


def load_in_shards(model: PreTrainedModel, strategies: Strategies, tracer: Tracer) -> PreTrainedModel:
    """Take the memory of weights that lie on the host until a strategy spreads them over processes: a layer comes to
    the card whole, this process' part of it stays.
    """
    tracer.on_host = True
    model = changed(strategies, model)
    tracer.on_host = False
    model = distributed(strategies, model)
    for tensor in tensors_of(model):
        tracer.adopt(tensor)  # what no strategy has moved
    tracer.retag((p for p in model.parameters() if p.requires_grad), "adapter" if adapts(model) else "weights")
    return model


def _largest(model: PreTrainedModel) -> int:
    """Weights of the largest tensor but the embeddings and the head, which no checkpoint has quantised."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    apart = {id(parameter) for end in ends if end is not None for parameter in end.parameters()}
    return max((p.numel() for p in model.parameters() if id(p) not in apart), default=0)


def adapts(model: PreTrainedModel) -> bool:
    """Whether what trains was added to the model, rather than the model itself."""
    return any(not p.requires_grad for p in model.parameters())
