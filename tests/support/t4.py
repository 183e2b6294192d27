"""Steps on a Tesla T4, traced: the workload whose memory others have measured and published.

Source of the figures: github.com/Anassbzdd/fitcheck, data/measurements/t4-sweep-2026-09-15.json (torch 2.14,
transformers 5.17, peft 0.20). Not fitune's own step: the float16 base with peft's float32 adapters, transformers' loss
with its mean and its logits kept, non-reentrant checkpointing of all layers, AdamW of the "foreach" kind, no clipping.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from fitune.compose.step import Phase
from fitune.memory.allocator.allocator import CachingAllocator
from fitune.memory.cards.cards import find_card
from fitune.memory.kernels.scratch import cublas_workspace, scratch_table
from fitune.memory.trace.log import MemoryLog
from fitune.memory.trace.meta import DEVICE, tensors_of
from fitune.memory.trace.modules import ModuleTracker
from fitune.memory.trace.patches import as_on_card, as_with_values, replaced
from fitune.memory.trace.tracer import Tracer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A measured run. Sizes are MiB: the most that is allocated in each phase, the most reserved."""

    model: str
    attention: str
    batch: int
    length: int
    forward: float | None
    backward: float
    optimizer: float | None
    reserved: float
    rank: int = 32

    @classmethod
    def of(
        cls,
        model: str,
        attention: str,
        batch: int,
        length: int,
        forward: float | None,
        backward: float,
        optimizer: float | None,
        reserved: float,
        rank: int = 32,
    ) -> Row:
        """A line of a table."""
        return cls(
            model=model,
            attention=attention,
            batch=batch,
            length=length,
            forward=forward,
            backward=backward,
            optimizer=optimizer,
            reserved=reserved,
            rank=rank,
        )

    @property
    def peak(self) -> float:
        """The most that is allocated."""
        return max(self.forward or 0, self.backward, self.optimizer or 0)

    def __str__(self) -> str:
        return f"{self.model}-{self.attention}-{self.batch}x{self.length}"


def _llama(
    hidden: int, inner: int, layers: int, heads: int, key_heads: int, vocabulary: int, tied: bool
) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


def _qwen(hidden: int, inner: int, heads: int, key_heads: int, vocabulary: int, tied: bool) -> Qwen2Config:
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=28,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


def config_of(name: str) -> PreTrainedConfig:
    """The shape of a model that was measured."""
    made: dict[str, PreTrainedConfig] = {
        "SmolLM2-135M": _llama(576, 1536, 30, 9, 3, 49152, True),
        "SmolLM2-360M": _llama(960, 2560, 32, 15, 5, 49152, True),
        "SmolLM2-1.7B": _llama(2048, 8192, 24, 32, 32, 49152, True),
        "TinyLlama-1.1B": _llama(2048, 5632, 22, 32, 4, 32000, False),
        "deepseek-coder-1.3b": _llama(2048, 5504, 24, 16, 16, 32256, False),
        "Mistral-7B": _llama(4096, 14336, 32, 32, 8, 32768, False),
        "Qwen2.5-1.5B": _qwen(1536, 8960, 12, 2, 151936, True),
        "Qwen2.5-7B": _qwen(3584, 18944, 28, 4, 152064, False),
    }
    return made[name]


def trace(row: Row, *, quantized: bool = False) -> MemoryLog:
    """Two steps of a row."""
    card = find_card("t4")
    model = _model(row, quantized=quantized)
    modules = ModuleTracker(model)
    scratch = {**scratch_table(card.capability), "bitsandbytes.gemm_4bit.default": _dequantized}
    tracer = Tracer(modules, scratch=scratch, cublas_workspace=cublas_workspace(card.capability))
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_as_on_card(card.capability))
        stack.enter_context(as_with_values())
        stack.enter_context(modules.watch())
        tracer.enter("load", 0)
        with tracer:
            gc.collect()
            for tensor in tensors_of(model):
                tracer.adopt(tensor)
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=True)
            tokens = torch.zeros(row.batch, row.length, dtype=torch.long, device=DEVICE)
            for number in (1, 2):
                _step(model, optimizer, tokens, tracer, number)
    return tracer.log


@contextlib.contextmanager
def _as_on_card(capability: tuple[int, int]) -> Iterator[None]:
    """With the attention of torch 2.14, whose memory-efficient kernel takes grouped heads too, and repeats them."""
    with as_on_card(capability):
        attention = F.scaled_dot_product_attention

        def of_groups(
            query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool = False, **named: Any
        ) -> Tensor:
            groups = query.shape[1] // key.shape[1] if enable_gqa else 1
            if groups > 1:
                key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            return attention(query, key, value, *args, **named)

        with replaced(F, "scaled_dot_product_attention", of_groups):
            yield


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, tracer: Tracer, number: int
) -> None:
    optimizer.zero_grad(set_to_none=True)
    tracer.enter("forward", number)
    results = cast(Any, model)(input_ids=tokens, labels=tokens)
    tracer.enter("backward")
    results.loss.backward()
    tracer.enter("optimizer")
    optimizer.step()


def _model(row: Row, *, quantized: bool) -> PreTrainedModel:
    config = config_of(row.model)
    config.use_cache = False
    with torch.device(DEVICE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16, attn_implementation=row.attention)
        if quantized:
            _quantize(model)
        lora = LoraConfig(r=row.rank, lora_alpha=2 * row.rank, task_type="CAUSAL_LM", target_modules=TARGETS)
        adapted = cast(Any, get_peft_model(model, lora))
        _pack(adapted)
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        adapted.enable_input_require_grads()
    adapted.train()
    return cast(PreTrainedModel, adapted)


def _quantize(model: PreTrainedModel) -> None:
    """As bitsandbytes' nf4 without double quantisation, after peft's `prepare_model_for_kbit_training`."""
    from bitsandbytes.nn.modules import Linear4bit

    make = cast(Any, Linear4bit)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "lm_head":
                bias = child.bias is not None
                linear = make(
                    child.in_features,
                    child.out_features,
                    bias=bias,
                    compute_dtype=torch.float16,
                    compress_statistics=False,
                    quant_type="nf4",
                    device=DEVICE,
                )
                setattr(module, name, linear)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    model.quantization_method = "bitsandbytes"  # type: ignore[assignment]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dtype == torch.float16:
            parameter.data = parameter.data.float()


def _pack(model: nn.Module) -> None:
    """Weights of 4 bits and their scales, as they lie on the card once quantised."""
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn.modules import Linear4bit

    for linear in model.modules():
        if isinstance(linear, Linear4bit):
            size = linear.in_features * linear.out_features
            weight: Any = nn.Parameter(torch.empty(size // 2, 1, dtype=torch.uint8), requires_grad=False)
            weight.quant_state = cast(Any, QuantState)(
                absmax=torch.empty(-(-size // 64)),
                shape=torch.Size((linear.out_features, linear.in_features)),
                dtype=torch.float16,
                blocksize=64,
                code=torch.empty(16),
                quant_type="nf4",
            )
            linear._parameters["weight"] = weight


def _dequantized(args: Sequence[Any], results: Any) -> list[int]:
    """The float16 copy of the weight that bitsandbytes multiplies with, where there are many tokens."""
    rows, columns = args[2]
    return [2 * rows * columns]


def phase_peaks(log: MemoryLog) -> dict[Phase, float]:
    """MiB that are allocated at the most in each phase of the second step, the loss as a part of the forward pass."""
    allocator = CachingAllocator()
    peaks = dict[Phase, float]()
    starts = {start: (phase, step) for start, phase, step in log.phases}  # of phases without events, the last
    phase, step = log.phases[0][1:]
    for index, (block, size) in enumerate(log.sized()):
        phase, step = starts.get(index, (phase, step))
        if block > 0:
            allocator.allocate(block, size)
        else:
            allocator.free(-block)
        if step == 2:
            merged: Phase = "forward" if phase == "loss" else phase
            peaks[merged] = max(peaks.get(merged, 0), allocator.allocated / 2**20)
    return peaks
