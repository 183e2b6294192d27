"""What plugins may offer. A plugin is a module (or an object) with functions of these names, each marked `@hookimpl`.

The first six hooks offer things that recipes pick by name, `ft_launchers` what `ft launch` does and `ft_task_suites`
what `ft eval --tasks` measures. Those that extend what there is are in `fitune.plugin.extendspecs`, those that tell
what happens in a run in `fitune.plugin.eventspecs`. An implementation may leave out arguments it does not need.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pluggy

from fitune.plugin.launching import Launcher
from fitune.plugin.records import Adapter, DataStage, Listener, MemoryStrategy, ModelLoader, Objective
from fitune.plugin.tasks import TaskSuite

hookspec = pluggy.HookspecMarker("fitune")

hookimpl = pluggy.HookimplMarker("fitune")
"""Marks a function, or a method, as a plugin's implementation of the hook whose name it has."""


# mypy: disable-error-code="empty-body"
class OfferHooks:
    """The specifications, one method a hook."""

    @hookspec
    def ft_model_loaders(self) -> Iterable[ModelLoader[Any]]:
        """Offer model loaders.

        Example:
            >>> from fitune import ModelLoader, NoOptions, hookimpl
            >>> def load_tokenizer(options):
            ...     from transformers import AutoTokenizer
            ...
            ...     return AutoTokenizer.from_pretrained("my/model")
            >>> def load_model(options, device):
            ...     from transformers import AutoModelForCausalLM
            ...
            ...     return AutoModelForCausalLM.from_pretrained("my/model").to(device)
            >>> @hookimpl
            ... def ft_model_loaders():
            ...     yield ModelLoader(
            ...         name="mine",
            ...         summary="My model",
            ...         options=NoOptions,
            ...         load_tokenizer=load_tokenizer,
            ...         load_model=load_model,
            ...     )

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_adapters(self) -> Iterable[Adapter[Any]]:
        """Offer adapters.

        Example:
            >>> from fitune import Adapter, NoOptions, hookimpl
            >>> def attach(options, model):
            ...     model.requires_grad_(False)
            ...     model.get_input_embeddings().requires_grad_(True)
            ...     return model
            >>> def save(model, directory):
            ...     model.save_pretrained(directory)
            >>> @hookimpl
            ... def ft_adapters():
            ...     yield Adapter(
            ...         name="embeddings",
            ...         summary="Train the embeddings alone",
            ...         options=NoOptions,
            ...         attach=attach,
            ...         save=save,
            ...         directory="model",
            ...     )

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_objectives(self) -> Iterable[Objective[Any]]:
        """Offer objectives: what a run minimises.

        Example:
            >>> from fitune import Criterion, NoOptions, Objective, Outcome, hookimpl
            >>> class Hinge(Criterion):
            ...     measures = ("accuracy",)
            ...
            ...     def units(self, example):
            ...         return example.documents // 2  # pairs
            ...
            ...     def loss(self, model, batch, scores):
            ...         import torch
            ...
            ...         log_probs, role = scores.log_probs(model, batch), batch.extras["role"]
            ...         pairs = (role[:-1] == 1) & (role[1:] == -1)  # chosen, and rejected behind it
            ...         margins = log_probs[:-1] - log_probs[1:]
            ...         losses = torch.where(pairs, torch.relu(1 - margins), 0.0)
            ...         right = (pairs & (margins > 0)).float().sum()
            ...         return Outcome(loss=losses.sum(), measures={"accuracy": (right, pairs.float().sum())})
            >>> @hookimpl
            ... def ft_objectives():
            ...     yield Objective(
            ...         name="hinge",
            ...         summary="The chosen answer's log-probability above the rejected one's, by 1 at least",
            ...         options=NoOptions,
            ...         make=lambda options: Hinge(),
            ...         takes="pairs",
            ...     )

        .. versionadded:: 0.2
        """

    @hookspec
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[Any]]:
        """Offer memory strategies.

        Example:
            >>> from fitune import MemoryStrategy, NoOptions, Strategy, hookimpl
            >>> class Sgd(Strategy):
            ...     def make_optimizer(self, parameters, settings):
            ...         import torch
            ...
            ...         return torch.optim.SGD(parameters, lr=settings.learning_rate)
            >>> @hookimpl
            ... def ft_memory_strategies():
            ...     yield MemoryStrategy(
            ...         name="sgd",
            ...         summary="SGD: no optimizer state at all",
            ...         options=NoOptions,
            ...         make=lambda options: Sgd(),
            ...     )

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_data_stages(self) -> Iterable[DataStage[Any]]:
        """Offer data sources and data stages.

        Example:
            >>> from fitune import DataStage, NoOptions, hookimpl
            >>> def make(options, context):
            ...     def keep_short(documents):
            ...         for document in documents:
            ...             if len(document.text) <= 2000:
            ...                 yield document
            ...             else:
            ...                 context.count("documents left out: over 2000 characters")
            ...
            ...     return keep_short
            >>> @hookimpl
            ... def ft_data_stages():
            ...     yield DataStage(
            ...         name="short",
            ...         summary="Documents of at most 2000 characters",
            ...         options=NoOptions,
            ...         takes="documents",
            ...         gives="documents",
            ...         make=make,
            ...     )

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_listeners(self) -> Iterable[Listener[Any]]:
        """Offer listeners: each gives an object to every run that uses it, which is told of that run's events alone.

        Example:
            >>> from fitune import Listener, NoOptions, hookimpl
            >>> class Tokens:
            ...     def __init__(self):
            ...         self.tokens = 0
            ...
            ...     @hookimpl
            ...     def ft_step_done(self, step):
            ...         self.tokens += step.tokens
            ...
            ...     @hookimpl
            ...     def ft_run_finished(self, run):
            ...         if run is not None:
            ...             print(run.recipe.general.name, "has seen", self.tokens, "tokens")
            ...
            ...     def state(self):
            ...         return {"tokens": self.tokens}
            ...
            ...     def restore(self, state):
            ...         self.tokens = state["tokens"]
            >>> @hookimpl
            ... def ft_listeners():
            ...     yield Listener(
            ...         name="tokens",
            ...         summary="Counts the tokens of a run",
            ...         options=NoOptions,
            ...         make=lambda options: Tokens(),
            ...     )

        .. versionadded:: 0.1
        """

    @hookspec
    def ft_launchers(self) -> Iterable[Launcher[Any]]:
        """Offer launchers, which run a recipe on another machine: `ft launch RECIPE --on NAME`.

        Example:
            >>> import shutil
            >>> import subprocess
            >>> from pathlib import Path
            >>> from fitune import JobStatus, Launcher, Machine, NoOptions, hookimpl
            >>> def home(name):
            ...     return Path("/srv/jobs") / name
            >>> def start(verb, name, *more):
            ...     command = ["python3", home(name) / "bundle/start.py", verb, home(name), *more]
            ...     return subprocess.run(command, capture_output=True, text=True, check=True).stdout
            >>> def submit(options, job):
            ...     if not (home(job.name)).exists():
            ...         shutil.copytree(job.bundle, home(job.name) / "bundle")
            ...         start("begin", job.name)
            >>> def status(options, name):
            ...     if not (home(name)).exists():
            ...         return JobStatus(name=name, state="absent")
            ...     state, _, what = start("status", name).strip().partition(" ")
            ...     return JobStatus(name=name, state=state, what=what)
            >>> def fetch(options, name, into):
            ...     shutil.copytree(home(name) / "run", into, dirs_exist_ok=True)
            >>> @hookimpl
            ... def ft_launchers():
            ...     yield Launcher(
            ...         name="jobs",
            ...         summary="A directory that this machine shares with another",
            ...         options=NoOptions,
            ...         machine=lambda options, instance: Machine(name="the other", gpu="a10g", gpus=1),
            ...         prepare=lambda options, job: [f"{home(job.name)} is made"],
            ...         submit=submit,
            ...         status=status,
            ...         logs=lambda options, name: (home(name) / "log.txt").read_text().splitlines(),
            ...         stop=lambda options, name: start("stop", name),
            ...         fetch=fetch,
            ...     )

        .. versionadded:: 0.2
        """

    @hookspec
    def ft_task_suites(self) -> Iterable[TaskSuite[Any]]:
        """Offer suites of tasks, by which a trained model is measured: `ft eval RUN --tasks TASK --suite NAME`.

        Example:
            >>> from fitune import NoOptions, TaskSuite, hookimpl
            >>> def measure(options, asked):
            ...     vocabulary = asked.model.config.vocab_size
            ...     return {task: {"tokens_known": float(vocabulary)} for task in asked.tasks}
            >>> @hookimpl
            ... def ft_task_suites():
            ...     yield TaskSuite(
            ...         name="known",
            ...         summary="How many tokens a model knows",
            ...         options=NoOptions,
            ...         measure=measure,
            ...     )

        .. versionadded:: 0.2
        """
