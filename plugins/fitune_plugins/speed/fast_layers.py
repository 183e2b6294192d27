"""Memory strategy `fast-layers`: decoder layers of Llama's relations with their LoRA, in few kernels.

transformers and peft compute a layer by a hundred operations, and write what each gives. Here norms, rotary embeddings,
gated activations and the additions of adapters are one kernel each (`kernels/`), adapters with one input are multiplied
together, and what is pointwise is computed again in the backward pass in place of being kept. What is kept of a layer
is what `fused-lora`, `fused-rms-norm` and `recompute-pointwise` together keep of it, in less time; the last norm,
behind the layers, is left to `fused-rms-norm`. Differs from the plain run by rounding, as those do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fitune import Fit, MemoryStrategy, NoOptions, Plan, Strategy, hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

NAME = "fast-layers"

MODELS = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "phi3", "granite", "olmo2",
    "smollm3",
)  # fmt: skip
"""Types of models (`config.model_type`) whose layers are known."""

LEAST, BFLOAT16 = (7, 0), (8, 0)
"""Compute capabilities from which Triton has kernels, and has them in bfloat16."""


@dataclass(slots=True)
class FastLayers(Strategy):
    """Takes over what decoder layers compute."""

    options: NoOptions
    gpu: bool = field(default=False, init=False)
    capability: tuple[int, int] | None = field(default=None, init=False)
    """Of a forecast's card."""
    said: list[str] = field(default_factory=list, init=False)

    def plan(self, plan: Plan) -> Plan:
        """Say where it does nothing."""
        self.gpu, self.capability = plan.gpu, plan.capability
        if plan.gpu:
            return plan
        return replace(plan, notices=(*plan.notices, f"{NAME} has no effect: its kernels are for NVIDIA GPUs"))

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Take the layers over; those that are not known are left as they are, and `told` says so."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        from fitune_plugins.speed.decoder import FastLayer
        from fitune_plugins.speed.grouping import CannotGroup

        if not self.gpu:
            return model
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        why_not = _why_not(model, self.capability)
        if why_not:
            self.said = [f"{NAME}: no decoder layer: {why_not}"]
            return model
        made, reasons = [], dict[str, int]()
        for layer in layers:
            try:
                made.append(FastLayer(layer))
            except CannotGroup as error:
                reasons[str(error)] = reasons.get(str(error), 0) + 1
        for fast in made:
            fast.join()
        whole = f"{NAME}: {len(made)} of {len(layers)} decoder layers"
        because = [f"{number} are computed by transformers, since {why}" for why, number in reasons.items()]
        self.said = ["; ".join([whole, *because])] if because or not layers else []
        return model

    def told(self, model: PreTrainedModel) -> Iterable[str]:
        """Say which layers were left to transformers, and why."""
        return tuple(self.said)


def _why_not(model: PreTrainedModel, capability: tuple[int, int] | None) -> str:
    """Why the card, or this installation, cannot run the kernels; empty where it can. In a forecast the card is one of
    this compute capability.
    """
    import torch

    from fitune_plugins.speed.kernels.library import launches_on

    if not launches_on(model.device):
        return "its kernels need triton, which is not installed"
    on_card = model.device.type == "cuda"
    capability = torch.cuda.get_device_capability(model.device) if on_card else capability
    if capability is None or capability >= (BFLOAT16 if model.dtype == torch.bfloat16 else LEAST):
        return ""
    kind = f"a card of compute capability {capability[0]}.{capability[1]}"
    card = torch.cuda.get_device_name(model.device) if on_card else kind
    return f"{card} cannot run its kernels in {str(model.dtype)[6:]}"


def _suits(config: PreTrainedConfig) -> bool:
    """Whether the model's layers are known, as far as its configuration tells."""
    return config.get_text_config().model_type in MODELS


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[NoOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name=NAME,
        summary="Decoder layers of Llama's relations with their LoRA in few kernels: faster, keeps less",
        options=NoOptions,
        make=FastLayers,
        before=("fused-lora", "recompute-pointwise", "gradient-checkpointing"),
        exact=True,
        fit=Fit(free=True, suits=_suits, unsuited="it does not know layers of this kind of model"),
    )
