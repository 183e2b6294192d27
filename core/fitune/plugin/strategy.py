"""What a memory strategy is and does: its methods in a run, the plan that it changes, and what it may ask a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from fitune.plugin.dataflow import Batch
    from fitune.plugin.gradients import GradientOwner

    Loss: TypeAlias = Callable[[nn.Module, Batch], Tensor]

P = ParamSpec("P")
T = TypeVar("T")

MicroBatch: TypeAlias = "Callable[[Batch], Tensor]"
"""Makes the forward and the backward pass of a batch, on the host or the device, and adds its gradients to those of the
step; gives the sum of its loss, a float32 scalar on the device, to be used before the next call."""


# ------------------------------------------------------------------------------------------- what weights are stored as
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredQuantization:
    """How the weights of a checkpoint are quantised before anything is done to it (`ModelLoader.stored`)."""

    name: str
    """What quantised them, as users call it, e.g. "GPTQ"."""
    kept: bool = True
    """Whether the model keeps them so; otherwise they are plain ones once they are read."""
    dequantizes: bool = False
    """Whether a loaded model is plain already, or becomes so by `PreTrainedModel.dequantize`, or by its loader's
    `load_plain`: what a merge needs."""
    unpacks: bool = False
    """Whether it is `ModelLoader.load_plain` that gives it as a plain one."""
    missing: str = ""
    """What pip installs the packages by that its layers need and that are not there. Without them it can be merged
    where it `unpacks`."""
    rounds_inputs: bool = False
    """Whether its layers round their inputs to 8 bits, so that the same weights, dequantised, say something else."""
    reading: float = 0.0
    """Bytes a weight that reading the largest of its tensors takes of the card beside that tensor, where its weights
    become plain ones as they are read."""
    notice: str = ""
    """What the user should know, printed before the run."""


# -------------------------------------------------------------------------------------------------- memory strategies
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What memory strategies decide before a weight is read; each returns it changed by `dataclasses.replace`."""

    gpu: bool = False
    """Whether the run is on an NVIDIA GPU: of this machine, or the one that a forecast is made for."""
    capability: tuple[int, int] | None = None
    """In a forecast the compute capability of its card, major and minor: its models are on no device that could be
    asked. None in a run."""
    processes: int = 1
    """Processes that train together, each on a GPU of its own."""
    accumulation: int = 1
    """Micro-batches to a step, in each process."""
    sharded: bool = False
    """Whether each process is to hold a part of the model's weights only, by a strategy's `distribute`. Then the first
    process alone reads the base model, on the host; in others the weights are zeros there."""
    context_parallel: int = 1
    """Processes that have the same rows, each a part of every one of them, by a strategy's `part` and `split_rows`: so
    many after another, by their numbers. `processes` is a multiple of it."""
    pin_memory: bool = False
    """Whether batches are copied to page-locked host memory before they go to the GPU."""
    allocator: tuple[tuple[str, str], ...] = ()
    """Settings of torch's CUDA caching allocator (PYTORCH_ALLOC_CONF), as (key, value)."""
    loss: Loss | None = None
    """Sum of the loss over a batch's target tokens, a scalar; None for the plain one (`fitune.compose.loss`)."""
    log_probs: Loss | None = None
    """The log-probability of each target token, given all before it, float32, `[batch, length]`, 0 for other tokens,
    with a gradient: what objectives other than `sft` are made of. None for the plain one, over the full logits."""
    more_targets: bool = False
    """Whether `loss` and `log_probs` also take a batch that says more `targets` than it has, so that batches of
    somewhat different numbers have one shape. The plain ones do."""
    replaced: tuple[tuple[str, str], ...] = ()
    """Which strategies have given `loss` or `log_probs`: the name of each, and what. Kept by what calls them."""
    flash_attention: tuple[str, ...] = ()
    """The FlashAttention that is to stand in for torch's own, by torch's names ("FA3", "FA4"): of several the first
    that the card takes. Packed rows are computed by it. A run that is to be deterministic keeps torch's own, and so
    does one whose attention it does not compute rightly."""
    unrecorded: str = ""
    """Why a micro-batch cannot be recorded to be replayed (`Recorder`), e.g. "offload-checkpoints waits for copies"; a
    strategy says it of itself. Empty where nothing is known against it."""
    quantization: QuantizationConfigMixin | None = None
    """How the base model's linear layers are quantised as they are loaded; None for not at all."""
    stored: StoredQuantization | None = None
    """How the checkpoint is quantised already; None for a plain one. Set before the first strategy is asked."""
    notices: tuple[str, ...] = ()
    """What the user should know, e.g. that a setting has no effect on this machine; printed before the run."""

    @property
    def expandable(self) -> bool:
        """Whether the allocator's segments grow; of several settings the last one counts."""
        return dict(self.allocator).get("expandable_segments") == "True"

    @property
    def replicas(self) -> int:
        """How often the model is trained at the same time, each time on other rows."""
        return self.processes // self.context_parallel

    @property
    def interlocked(self) -> bool:
        """Whether processes wait for each other in the midst of a layer."""
        return self.sharded or self.context_parallel > 1

    @property
    def quantized(self) -> bool:
        """Whether the base model is: as it is loaded, or because its checkpoint was and stays so."""
        return self.quantization is not None or (self.stored is not None and self.stored.kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """What a recipe's `[train]` says about AdamW, for strategies that make the optimizer themselves."""

    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    fused: bool
    """Whether every parameter is on a device for which torch has a fused AdamW kernel that pays (CUDA)."""


class CannotRecord(Exception):
    """A micro-batch that cannot be recorded; says why, as a part of a sentence. Nothing of it was computed."""


class Recorder(Protocol):
    """What a run lends to strategies that record micro-batches as CUDA graphs, and replay them.

    Memory that is taken within `apart` and `record` comes from a pool that nothing else uses, so that a replay finds
    its addresses free. The forecast has one of its own, and so knows the pool.
    """

    refused: str
    """Why nothing can be recorded in this run; empty where it can. The other methods are not called then."""
    device: torch.device
    pin_memory: bool
    """Whether batches are copied by way of page-locked memory."""
    length: int
    """Most tokens of a row (`[train] length`)."""
    more_targets: bool
    """Whether the run's loss takes a batch that says more `targets` than it has."""
    step: int
    """Steps that were begun: what is computed belongs to this one."""
    against: str
    """What `apart` has found against recording what it computed last, as a part of a sentence; may be empty."""
    said: list[str]
    """What the user is to be told, and was not yet: lines, to which a strategy may add."""

    def apart(self, compute: Callable[[], Tensor]) -> Tensor:
        """Compute in the pool."""

    def record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Record what was computed in the pool before, without computing it; gives what replays it. Raises
        `CannotRecord`.
        """

    def make_room(self) -> None:
        """Give back to the device what the allocator keeps: of the pool's own requests none would do so."""

    def is_as_recorded(self) -> bool:
        """Whether the model's tensors are those that were there as the last micro-batch was recorded."""

    def close(self) -> None:
        """Give up the pool; what was recorded must be let go before."""


class Strategy:
    """A memory strategy at work in one run; every method may be left as it is.

    Strategies are called in the order in which they stand in the recipe.
    """

    def plan(self, plan: Plan) -> Plan:
        """Change the plan. Called first, before torch touches a device."""
        return plan

    def loaded(self, model: PreTrainedModel) -> PreTrainedModel:
        """Change the base model, before it gets its adapter. In a forecast it is on meta, and not quantised yet."""
        return model

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """Change the model, which has its adapter by now. Called once, before the optimizer is made."""
        return model

    def distribute(self, model: PreTrainedModel) -> PreTrainedModel:
        """Share the model out over the processes. Called once, when every strategy has prepared it.

        With `Plan.sharded` the weights are on the host by then, right in the first process, and zeros in others; give
        them to the devices. In a forecast they are on meta, and torch's process group is the "fake" one.
        """
        return model

    def split_rows(self, model: PreTrainedModel) -> None:
        """Have the model compute its part of each row together with other processes, where a batch is a part
        (`Batch.begin`). Called last, with `Plan.context_parallel` above 1: packed documents are kept apart by then.
        """

    def part(self, batch: Batch) -> Batch:
        """This process' part of a batch, on the host: its loss is the sum over the part's targets. Other processes of
        its group compute the other parts at the same time.
        """
        return batch

    def whole(self, compute: Callable[P, T]) -> Callable[P, T]:
        """Change how the model is called: what is given is called in place of `compute`, a loss or the generation of an
        answer, with the arguments of `compute`. Every process calls it as often as the others.
        """
        return compute

    def told(self, model: PreTrainedModel) -> Iterable[str]:
        """Say what the user should know of the prepared model: lines that a run and a forecast show."""
        return ()

    def make_optimizer(
        self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings
    ) -> torch.optim.Optimizer | None:
        """Make the optimizer of these float32 parameters, or None to leave it to others. At most one may."""
        return None

    def make_master(self, parameter: nn.Parameter) -> nn.Parameter | None:
        """Make what is trained in the place of a parameter: one of its shape, which the loop copies to it behind each
        step; the parameter itself, where it shall have none; or None for what the recipe says (`[train]
        master_weights`). Of a strategy that owns gradients alone, called before the optimizer is made.
        """
        return None

    def own_gradients(self, masters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> GradientOwner | None:
        """Take gradients of these masters as the backward pass gives them, by what is returned; None to leave them to
        the loop. Called once, when the run's optimizer is made. One strategy may, whose record `makes` "gradients".

        A step is one micro-batch of one process then, without clipping by the norm of all, and not in float16.
        """
        return None

    def averaged(self) -> contextlib.AbstractContextManager[None] | None:
        """A context within which the masters hold the weights that are evaluated and saved, of an optimizer that trains
        at others, or None. Within it the model has them too; behind it the masters must be as before, to the bit.

        It is entered between steps, once for each evaluation, checkpoint and save, in every process.
        """
        return None

    def around_step(self) -> contextlib.AbstractContextManager[None]:
        """A context around the forward and backward passes of each step."""
        return contextlib.nullcontext()

    def micro_batch(self, compute: MicroBatch, recorder: Recorder) -> MicroBatch:
        """Change how a micro-batch is computed: what is given is called in its place, in each step.

        Called once, when all else is made; the first strategy's is the outermost. Where any strategy gives another
        one, gradients of masters, and of parameters without one, are the same tensors from step to step.
        """
        return compute


_times: ContextVar[int] = ContextVar("times", default=1)

_module: ContextVar[nn.Module | None] = ContextVar("module", default=None)


@contextlib.contextmanager
def standing_for(times: int, module: nn.Module | None = None) -> Iterator[None]:
    """A context for forecasts: what is computed in it, with tensors without values, stands for `times` of its kind.

    Its memory counts as it is and its time `times` over; contexts nest, and their numbers multiply. In a backward pass
    it is `module`'s, also where gradients are taken anew, of which nobody else would know.
    """
    tokens = _times.set(times * _times.get()), _module.set(module)
    try:
        yield
    finally:
        _times.reset(tokens[0])
        _module.reset(tokens[1])


def module() -> nn.Module | None:
    """Whose piece is computed now, if somebody has said."""
    return _module.get()


def times() -> int:
    """How many what is computed now stands for."""
    return _times.get()
