"""What plugins give and what flows between them: frozen records, each a small contract.

A provider record (`ModelLoader`, `Adapter`, `Objective`, `MemoryStrategy`, `DataStage`, `Listener`) has a name that
recipes use, a one-line summary, an options dataclass and a callable that takes the options read from the recipe. None
of these records needs torch to be imported, so that listing plugins stays instant: import it inside the callables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from fitune.errors import Problem
from fitune.plugin.dataflow import DataContext, Flow, Stage, Takes
from fitune.plugin.launching import Launcher
from fitune.plugin.nothing import no_files, no_packages, no_problems, nothing_told
from fitune.plugin.objective import Criterion, no_reference
from fitune.plugin.relations import Related, Role
from fitune.plugin.strategy import StoredQuantization, Strategy
from fitune.plugin.tasks import TaskSuite

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.quantization_config import QuantizationConfigMixin


O = TypeVar("O")  # noqa: E741 - options, as in every provider's docstring


# --------------------------------------------------------------------------------------------------------- providers
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoader(Related, Generic[O]):
    """Loads a tokenizer and a causal language model: `[model] use = "NAME"`."""

    name: str
    summary: str
    options: type[O]
    load_tokenizer: Callable[[O], PreTrainedTokenizerBase]
    """Gives a fast tokenizer with a pad token; reads no weight. Raises `ModelError`."""
    load_model: Callable[[O, torch.device], PreTrainedModel]
    """Gives the model on the device, in evaluation mode. Raises `ModelError`."""
    build_model: Callable[[O], PreTrainedModel] | None = None
    """Gives the model on the meta device, from its configuration alone and in the dtype it would be loaded in: what a
    forecast traces. Raises `ModelError`."""
    load_quantized: Callable[[O, torch.device, QuantizationConfigMixin], PreTrainedModel] | None = None
    """As `load_model`, with linear layers quantised as they are read (transformers' quantisers)."""
    load_plain: Callable[[O, torch.device], PreTrainedModel] | None = None
    """As `load_model`, of a checkpoint that says that it `unpacks`: with plain weights, of the numbers that its layers
    compute with, in a type that holds them. What a merge begins with. Raises `ModelError`."""
    stored: Callable[[O], StoredQuantization | None] | None = None
    """Says how the checkpoint is quantised already, None for a plain one; reads no weight. `load_model` and
    `build_model` give such a model as it is trained on."""
    fingerprint: Callable[[O], str | None] | None = None
    """Says which weights would be loaded now, in a second at most: the commit, all 40 digits, of a model of the hub,
    or else a digest, e.g. "sha256:...", that is the same wherever the files lie. None where that cannot be told. A run
    goes on, and is opened, with the base alone that it was trained on. Raises `ModelError`."""
    carriers: Callable[[O], Iterable[str]] = no_packages
    """Packages, by the names that they are imported by, in whose files the model lies: `ft launch` sends these along,
    and installs none of them."""
    files: Callable[[O], Iterable[Path]] = no_files
    """Names the files of the weights that are on this machine already, in the order in which they are read; fetches
    none. They are brought into the system's cache while a run is prepared. Raises `ModelError`."""
    check: Callable[[O], Iterable[Problem]] = no_problems
    """Looks at what can be known before a weight is read, e.g. whether a file is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter(Related, Generic[O]):
    """Decides which parameters train: `[adapter] use = "NAME"`."""

    name: str
    summary: str
    options: type[O]
    attach: Callable[[O, PreTrainedModel], PreTrainedModel]
    """Gives the model with its trainable parameters, all others frozen. Raises `ModelError`."""
    save: Callable[[PreTrainedModel, Path], None]
    """Writes what was trained into an empty directory, as safetensors."""
    directory: str = "adapter"
    """Name of that directory within the run's."""
    load: Callable[[O, PreTrainedModel, Path], PreTrainedModel] | None = None
    """Gives the base model with what `save` wrote into a directory, frozen; None for an adapter that cannot be asked,
    evaluated or merged after its run. It may change the model. Raises `ModelError`, for a part that is missing too."""
    load_whole: Callable[[O, Path, torch.device], PreTrainedModel] | None = None
    """Gives what `save` wrote as a model on the device, frozen and in evaluation mode, with no need of the base: of an
    adapter that trains every weight. Raises `ModelError`."""
    told: Callable[[O, PreTrainedModel], Iterable[str]] = nothing_told
    """Says what it did to a model that it was put on, beside what was asked of it: lines that a run and a forecast
    show. In a forecast the model has shapes alone."""
    merge: Callable[[PreTrainedModel, torch.dtype], PreTrainedModel] | None = None
    """Gives a loaded model as a plain one of transformers: what the adapter adds becomes part of the weights, in
    float32, and these are cast once, to the type. The weights that it does not touch may keep theirs. The base is
    never quantised here. Raises `ModelError`."""
    fill: Callable[[O, PreTrainedModel, Path], None] | None = None
    """Puts what `save` wrote into a directory where an attached model trains, for a run that goes on from another's
    (`[adapter] from`); None for an adapter that cannot. Raises `ModelError`, for a part that is missing too."""
    off: Callable[[PreTrainedModel], AbstractContextManager[object]] | None = None
    """A context in which an attached model is its base, as if nothing had been attached; what trains stays as it is.
    None for an adapter that changes the base's own weights."""
    check: Callable[[O], Iterable[Problem]] = no_problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective(Related, Generic[O]):
    """What is minimised, and what it is measured by: `[objective] use = "NAME"`."""

    name: str
    summary: str
    options: type[O]
    make: Callable[[O], Criterion]
    """Gives the objective of one run."""
    takes: Takes = "documents"
    """The examples that it is made for: what data stages have to give."""
    needs_reference: Callable[[O], bool] = no_reference
    """Whether it compares the model with what it was before training (`Scores.reference`): the recipe then has the key
    `reference`, "adapter-off" or "prepared"."""
    convert: Callable[[O, PreTrainedModel], PreTrainedModel] | None = None
    """Gives the language model that was loaded in the form that is trained, before it gets its adapter: e.g. with a
    head of its own. What is new in it trains whole, and is saved with the adapter; numbers that are drawn for it must
    come from torch's generator of the host. In a forecast the model is on meta. Raises `ModelError`."""
    writes: bool = True
    """Whether what was trained writes text: False where `convert` takes away what it would write with, so that nothing
    is generated."""
    check: Callable[[O], Iterable[Problem]] = no_problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a memory strategy may be chosen: by `[memory] fit` where the recipe does not name it, and as levers of
    `ft plan --levers`, which also change it where it is named.
    """

    settings: tuple[Mapping[str, object], ...] = ({},)
    """Options to try, a table each; those that are left out have their defaults."""
    compared: tuple[Mapping[str, object], ...] = ()
    """More of these, which `ft plan` tries beside them where the recipe names the strategy, and `[memory] fit` does
    not."""
    layers: str = ""
    """Name of the option that says in how many of the first layers it works, from 1 to all: the search looks for the
    smallest number that fits, and `ft plan` tries half of them, all and none. Left out of the table, the option must
    mean all of them."""
    halves: tuple[str, ...] = ()
    """Names of options that are numbers of tokens, the smaller the less memory: `ft plan` tries half of what the recipe
    says."""
    words: Mapping[str, str] = field(default_factory=dict)
    """What `ft plan` writes before the value of an option, e.g. `{"tokens": "tiles of"}`; its name where nothing is
    said."""
    needs: str = ""
    """Name of the strategy without which this one does nothing; it stands before this one in the recipe."""
    asked: bool = False
    """Whether a recipe must allow it by name (`[memory] allow`): always so for one that is not exact, and for one that
    moves bytes off the card."""
    free: bool = False
    """Whether it costs no time and takes no memory, so that it is always taken; if it is exact, with recipes that have
    no `fit` as well (`[memory] fast`)."""
    suits: Callable[[PreTrainedConfig], bool] | None = None
    """Whether it works with a model of this configuration, where that can be told; None for every model."""
    unsuited: str = ""
    """Why not, where it does not, as a part of a sentence: told where a free one is not added to a recipe without
    `fit`. Nothing is told where it is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStrategy(Related, Generic[O]):
    """Changes what a run keeps in memory, and where: `[[memory.strategy]] use = "NAME"`."""

    name: str
    summary: str
    options: type[O]
    make: Callable[[O], Strategy]
    check: Callable[[O], Iterable[Problem]] = no_problems
    exact: bool | None = None
    """Whether a run learns the same with it, but for rounding; None where that is not known."""
    fit: Fit | None = None
    """How `[memory] fit` may choose it; None if it may not."""
    makes: tuple[Role, ...] = ()
    """What of a run it makes, of which there is one alone: "optimizer" (`make_optimizer`), "loss" (`Plan.loss`,
    `Plan.log_probs`), "quantization" (`Plan.quantization`) or "gradients" (`own_gradients`). Two that make the same
    are refused."""
    before: tuple[str, ...] = ()
    """Names of strategies that work behind this one wherever a run has both, in whatever order the recipe, or a fit,
    names them: say so where the other order would change what is computed, or kept."""
    accumulates: str = ""
    """Name of the option that is the number of micro-batches to a step, of a strategy that is there to set it: where
    `[train] batch_tokens` leaves that to be chosen, it is set by this. Empty for all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTwin:
    """What a custom kernel takes of the card, for forecasts, which cannot run it (`ft_memory_twins`).

    `fitune.testing.assert_twin` proves it equal to the kernel. Give `replaces` and `twin` for a kernel that is called
    as a function; `operation` for one that is a custom operation of torch with a fake implementation, which shows its
    results already.
    """

    name: str
    replaces: str = ""
    """Where the kernel is looked up when it is called, as `package.module:attribute`."""
    twin: Callable[..., Any] | None = None
    """Called in its place with the same arguments: operations of torch alone, that give results of the same shapes and
    types and keep the same tensors for the backward pass."""
    operation: str = ""
    """The custom operation's name as `str` shows it, e.g. `mylib.fused_norm.default`."""
    scratch: Callable[[Sequence[Any], Any], Iterable[int]] | None = None
    """Bytes that the kernel takes beside its results: `(arguments, results) -> sizes`, all alive at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """How a data stage writes conversations, for a trained model that is to answer."""

    prompt: Callable[[Sequence[Mapping[str, Any]]], str]
    """Messages as text with its special tokens, up to where the assistant's next answer begins. Raises `DataError`."""
    end: str
    """What the model writes behind an answer, e.g. "<|im_end|>"; empty where that cannot be told."""
    template: str
    """The chat template, as Jinja."""
    ends: tuple[str, ...] = ()
    """All that may end an answer, `end` among them: a template may end the last in another way than those before, and
    one that calls a tool in yet another. A text that holds no special token ends it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataStage(Related, Generic[O]):
    """One step from files to batches: `[[data.source]]` (takes nothing) or `[[data.stage]] use = "NAME"`."""

    name: str
    summary: str
    options: type[O]
    takes: Flow
    gives: Flow
    make: Callable[[O, DataContext], Stage]
    """Gives the stage; a source ignores the (empty) iterator it is called with. Raises `DataError`."""
    check: Callable[[O], Iterable[Problem]] = no_problems
    closes: Literal["nothing", "gap", "end"] = "nothing"
    """Where it is put into a recipe that does not name it: into the "gap" between what comes to a stage and what that
    stage takes, or at the "end", wherever the chain takes it. Of several that take and give the same, that of the first
    plugin is."""
    packs: bool = False
    """Whether it joins several documents in a row; such stages are left out for held-out data."""
    suffixes: tuple[str, ...] = ()
    """Of a source: the file names that it reads end so, e.g. `(".jsonl",)`; `[data] path` finds it by them."""
    fingerprint: Callable[[O], str | None] | None = None
    """Of a source: a digest of the content that it would read now, or None where nobody can know it. Prepared data are
    cached only if every source has one. Other stages are known by their name, options and plugin version."""
    for_preferences: DataStage[O] | None = None
    """What works in its place, under its name and with its options, where the recipe's objective learns from pairs or
    from judged answers (`Objective.takes`); None for a stage that is the same for all of them."""
    dialogue: Callable[[O, DataContext], Dialogue | None] | None = None
    """Of a stage that takes conversations: how it writes them, for `ft generate` and `ft merge`; None where it trains
    on them as plain text. Raises `DataError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener(Related, Generic[O]):
    """Is told what happens in a run: `[[listener]] use = "NAME"`. It is at work in the main process alone."""

    name: str
    summary: str
    options: type[O]
    make: Callable[[O], object]
    """Gives the listener of one run: an object with methods named as the events (`ft_run_started`, `ft_step_done` ...),
    each marked `@hookimpl`.

    It may have two methods more. `state()` gives what it needs to go on, as a mapping that JSON can hold, which each
    checkpoint keeps. `restore(state)` is given that mapping, before `ft_run_started`, where a run goes on from the
    checkpoint; not where the checkpoint holds none of it."""
    packages: Callable[[O], Iterable[str]] = no_packages
    """Packages, by the names that they are imported by, that it uses beside what its own distribution needs: `ft
    launch` has them installed, in the versions that are here."""
    check: Callable[[O], Iterable[Problem]] = no_problems
    default: bool = False
    """Whether a run has it, with its default options, where the recipe does not name it."""


Provider: TypeAlias = (
    "ModelLoader[Any] | Adapter[Any] | Objective[Any] | MemoryStrategy[Any] | DataStage[Any] | Listener[Any]"
    " | Launcher[Any] | TaskSuite[Any]"
)


def must_be_asked(record: MemoryStrategy[Any]) -> bool:
    """Whether a recipe must allow it by name."""
    return record.fit is not None and (record.fit.asked or record.exact is not True)
