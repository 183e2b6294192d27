"""Memory strategy `gradient-checkpointing`: layers keep their input alone and are computed again in the backward pass.

Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174. What costs most may be kept beside the
input (Korthikanti et al., arXiv 2205.05198, who compute attention again; at great lengths it is the rest that is
cheap). Changes no number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from fitune import Fit, MemoryStrategy, ModelError, Problem, Strategy, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "gradient-checkpointing"

Keep = Literal["nothing", "attention", "products"]

Part = Literal["layer", "mlp"]

NO_KERNEL = ("eager", "flex_attention")
"""Ways of transformers to compute attention that `keep` does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientCheckpointingOptions:
    """Options of the strategy `gradient-checkpointing`."""

    layers: Annotated[int, Ge(1)] | None = None
    """Checkpoint the first n layers only: fewer cost less time and save less memory. Without it, all."""
    keep: Keep = "nothing"
    """What a checkpointed layer keeps beside its input: "attention" the results of attention kernels, whose work grows
    with the square of the length; "products" these and the results of products of matrices, so that only what is cheap
    is repeated (`recompute-pointwise` keeps less, in models that it knows)."""
    part: Part = "layer"
    """What of a layer is computed again: all of it, or its MLP alone, whose products keep the most and cost the least
    for what they keep. With `fast-layers` only gate and up are, not what comes behind them."""


@dataclass(frozen=True, slots=True)
class GradientCheckpointing(Strategy):
    """Marks decoder layers; transformers checkpoints those that are marked."""

    options: GradientCheckpointingOptions

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Mark the layers. Raises `ModelError` if the model has none, fewer than asked for, or nothing to keep."""
        from torch.utils.checkpoint import checkpoint
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        wanted = len(layers) if self.options.layers is None else self.options.layers
        if not layers:
            raise ModelError(f"gradient-checkpointing: {type(model).__name__} has no layers that can be checkpointed")
        if wanted > len(layers):
            raise ModelError(f"gradient-checkpointing: layers = {wanted}, but the model has {len(layers)}")
        if self.options.part == "mlp":
            _checkpoint_mlps(layers[:wanted], model)
            return model
        more: dict[str, Any] = {}
        if self.options.keep != "nothing":
            from fitune_plugins.memory.selective_checkpointing import contexts

            _must_keep_attention(model, self.options.keep)
            more["context_fn"] = contexts(self.options.keep)
        for number, layer in enumerate(layers):
            # Set here rather than by transformers' own switch, which has no "first n" and changed its name in 5.x.
            layer.gradient_checkpointing = number < wanted
            layer.__dict__["_gradient_checkpointing_func"] = partial(checkpoint, use_reentrant=False, **more)
        return model


def _checkpoint_mlps(layers: Iterable[Any], model: PreTrainedModel) -> None:
    """Have the MLPs of these layers computed again. Raises `ModelError` if a layer has none by the usual name."""
    from torch.utils.checkpoint import checkpoint

    from fitune import unwrapped

    for layer in layers:
        fast = getattr(layer.__dict__.get("forward"), "recompute_mlp", None)
        if fast is not None and fast():
            continue
        mlp = getattr(layer, "mlp", None)
        if mlp is None:
            name = type(unwrapped(model)).__name__
            raise ModelError(f'{NAME}: part = "mlp", but a layer of {name} has no MLP of that name. Remove it')
        mlp.__dict__["forward"] = _Checkpointed(mlp, partial(checkpoint, use_reentrant=False))


class _Checkpointed:
    """Stands for an MLP's `forward`: in training its results are computed again where they are needed."""

    def __init__(self, mlp: Any, checkpoint: Any) -> None:
        self.mlp, self.forward, self.checkpoint = mlp, mlp.forward, checkpoint

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """What the MLP gives."""
        if not self.mlp.training:
            return self.forward(*inputs, **named)
        return self.checkpoint(partial(self.forward, **named), *inputs)


def _must_keep_attention(model: PreTrainedModel, keep: str) -> None:
    """Raise `ModelError` if attention alone is to be kept, and cannot be."""
    from fitune import unwrapped

    config = model.config.get_text_config()
    kind = config._attn_implementation
    why = ""
    if kind in NO_KERNEL:
        why = f'its attention is computed by "{kind}", which is no kernel of one result'
    elif getattr(config, "attention_dropout", 0.0):
        why = "it drops attention weights (attention_dropout), and has to draw the same ones again"
    if why and keep == "attention":
        name = type(unwrapped(model)).__name__
        raise ModelError(f'{NAME}: keep = "attention" would keep nothing of {name}: {why}. Remove it')


def _check(options: GradientCheckpointingOptions) -> Iterable[Problem]:
    """An MLP has nothing of what `keep` names."""
    if options.part == "mlp" and options.keep != "nothing":
        what = f'"keep" is "{options.keep}", but of an MLP that is computed again nothing is kept'
        yield Problem(key="keep", what=what, fix='Remove it, or part = "mlp"')


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[GradientCheckpointingOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        check=_check,
        summary="Recompute layers in the backward pass instead of keeping their activations (about 1/3 more work)",
        options=GradientCheckpointingOptions,
        make=GradientCheckpointing,
        exact=True,
        fit=Fit(
            settings=({}, {"keep": "attention"}, {"part": "mlp"}),
            compared=({"keep": "products"},),
            layers="layers",
            words={"keep": "layers keep", "part": "of each"},
        ),
    )
