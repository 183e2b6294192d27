"""The commands `ft generate`, `ft eval` and `ft merge`, made for the command line to add.

What they need is imported when they run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fitune.errors import DataError, RunError

if TYPE_CHECKING:
    from fitune.after.generation import Generator
    from fitune.after.opening import Opened, Trained
    from fitune.cli import Settings
    from fitune.events import EvalReport
    from fitune.prepare import Watch

Decorator = Callable[[Any], Any]

DTYPES = ("bfloat16", "float16", "float32")

run_argument = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
checkpoint_option = click.option(
    "--checkpoint",
    metavar="NAME",
    help='A checkpoint of the run, e.g. step-120, "last" or "best".  [default: what the run ended with, else the last]',
)
base_option = click.option("--base", is_flag=True, help="The model as it was before training, to compare.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of `ft generate`."""

    prompts: tuple[str, ...]
    system: str | None
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    raw: bool
    base: bool
    interactive: bool


def generate_command(switches: Decorator) -> click.Command:
    """The command, with the switches that every command has."""

    @click.command("generate")
    @run_argument
    @checkpoint_option
    @click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A question; may be repeated.")
    @click.option("--system", metavar="TEXT", help="A system message.")
    @click.option("--interactive", is_flag=True, help="Hold a conversation: /clear begins anew, /exit or Ctrl-D ends.")
    @click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, metavar="N")
    @click.option(
        "--temperature",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        help="0 takes the likeliest token; higher is more random.",
    )
    @click.option(
        "--top-p",
        type=click.FloatRange(min=0, max=1, min_open=True),
        default=1.0,
        show_default=True,
        help="Draw from the likeliest tokens that together have this probability.",
    )
    @click.option("--seed", type=int, help="Draw the same each time.")
    @click.option("--raw", is_flag=True, help="Give the prompt as it is, without the chat template.")
    @base_option
    @switches
    @click.pass_obj
    def generate(settings: Settings, /, run: Path, checkpoint: str | None, **asked: Any) -> None:
        """Answer prompts with the model that RUN trained, in the chat template that it was trained with.

        Without --prompt, the prompt is read from standard input.
        """
        _generate(settings, run, checkpoint, Asked(**asked))

    return generate


def eval_command(switches: Decorator) -> click.Command:
    """The command, with the switches that every command has."""

    @click.command("eval")
    @run_argument
    @checkpoint_option
    @click.option("--data", metavar="FILE", type=click.Path(path_type=Path), help="Evaluate on this file.")
    @click.option("--set", "overrides", multiple=True, metavar="eval.KEY=VALUE", help="Override a key of [eval].")
    @base_option
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @switches
    @click.pass_obj
    def evaluate(
        settings: Settings,
        /,
        run: Path,
        checkpoint: str | None,
        data: Path | None,
        overrides: Sequence[str],
        base: bool,
        as_json: bool,
    ) -> None:
        """Measure loss and exact match of what RUN trained on its held-out data, as its recipe says."""
        from fitune.after.evaluation import evaluate, find_to_evaluate

        trained = find_to_evaluate(run, settings.registry(), checkpoint, overrides, data)
        _tell_of(trained)
        report = evaluate(trained, base=base, watch=_watch())
        _print_evaluation(trained, report, base, as_json)

    return evaluate


def merge_command(switches: Decorator) -> click.Command:
    """The command, with the switches that every command has."""

    @click.command("merge")
    @run_argument
    @click.option(
        "--to", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Directory to write: new, or empty."
    )
    @checkpoint_option
    @click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True, help="Of the weights.")
    @click.option(
        "--limit",
        type=click.FloatRange(min=0, min_open=True),
        metavar="X",
        help="Largest relative difference, and distance of the share from 1.  [default: by type]",
    )
    @click.option(
        "--rows", type=click.IntRange(min=1), default=16, show_default=True, metavar="N", help="Rows to compare on."
    )
    @click.option("--data", metavar="FILE", type=click.Path(path_type=Path), help="Compare on rows of this file.")
    @click.option("--shard-size", default="5GB", show_default=True, metavar="SIZE", help="Largest file of weights.")
    @switches
    @click.pass_obj
    def merge(
        settings: Settings,
        /,
        run: Path,
        to: Path,
        checkpoint: str | None,
        dtype: str,
        data: Path | None,
        **asked: Any,
    ) -> None:
        """Write what RUN trained as a plain model of transformers, and prove that it is the same.

        The merged model is read back and compared with the base and its adapter, on held-out rows or else on rows that
        were trained on. If they differ by more than rounding, nothing is written.
        """
        _merge(settings, run, to, checkpoint, dtype, data, asked)

    return merge


def _generate(settings: Settings, run: Path, checkpoint: str | None, asked: Asked) -> None:
    from fitune.after.opening import find, open_run

    prompts = _prompts(asked)
    trained = find(run, settings.registry(), checkpoint)
    _tell_of(trained)
    opened = open_run(trained, base=asked.base)
    generator = _generator(opened, asked)
    if asked.seed is not None:
        from accelerate.utils import set_seed

        set_seed(asked.seed)
    if asked.interactive:
        from fitune.after.conversation import converse

        converse(generator, asked.system, _read_line, _write, lambda what: click.echo(f"note: {what}", err=True))
        return
    system = [] if asked.system is None else [{"role": "system", "content": asked.system}]
    for number, prompt in enumerate(prompts):
        _write("\n" if number else "")
        generator.answer([*system, {"role": "user", "content": prompt}], _write)
        _write("\n")


def _prompts(asked: Asked) -> tuple[str, ...]:
    """What is to be answered. Raises `RunError` where nothing is."""
    if asked.interactive and asked.prompts:
        raise RunError("--interactive reads its questions line by line, and takes no --prompt. Leave one of them out")
    if asked.interactive or asked.prompts:
        return asked.prompts
    if sys.stdin.isatty():
        raise RunError("nothing to answer. Give --prompt TEXT, --interactive, or the prompt on standard input")
    try:
        text = sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError:
        raise DataError("standard input is not UTF-8. Save the prompt as UTF-8") from None
    if not text:
        raise RunError("standard input is empty: nothing to answer. Give --prompt TEXT")
    return (text,)


def _generator(opened: Opened, asked: Asked) -> Generator:
    """What answers. Raises `RunError` for a system message that has no place."""
    from fitune.after.generation import Generator, Sampling
    from fitune.after.opening import dialogue_of

    dialogue = None if asked.raw else dialogue_of(opened.trained.recipe, opened.context)
    if dialogue is None and asked.system is not None:
        why = "--raw gives the prompt as it is" if asked.raw else "the run was trained on text without a chat template"
        raise RunError(f"--system has no place: {why}. Put it into the prompt")
    sampling = Sampling(max_new_tokens=asked.max_new_tokens, temperature=asked.temperature, top_p=asked.top_p)
    return Generator(model=opened.model, tokenizer=opened.tokenizer, dialogue=dialogue, sampling=sampling)


def _read_line() -> str | None:
    """A line that somebody typed, or None at the end."""
    try:
        if sys.stdin.isatty():
            return input("> ")
    except EOFError:
        return None
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _write(text: str) -> None:
    """Text to standard output, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_evaluation(trained: Trained, report: EvalReport, base: bool, as_json: bool) -> None:
    from fitune.console import evaluation_text
    from fitune.listeners import eval_values

    if as_json:
        which = {"run": str(trained.directory), "checkpoint": trained.checkpoint, "base": base, "step": report.step}
        click.echo(json.dumps({**which, **eval_values(report)}, indent=2))
    else:
        click.echo(evaluation_text(report))


def _merge(
    settings: Settings, run: Path, to: Path, checkpoint: str | None, dtype: str, data: Path | None, asked: Any
) -> None:
    from fitune.after.evaluation import find_to_evaluate
    from fitune.after.opening import find

    registry = settings.registry()
    trained = find(run, registry, checkpoint) if data is None else find_to_evaluate(run, registry, checkpoint, (), data)
    _tell_of(trained)
    import torch

    from fitune.after.merging import Merge, merge

    to = to if to.name not in ("", "..") else to.resolve()  # what is written needs a name to stand beside
    found = merge(trained, Merge(to=to, dtype=getattr(torch, dtype), file=data is not None, **asked), _watch())
    for line in found.lines:
        click.echo(line)
    click.echo(f"merged {to}")


def _tell_of(trained: Trained) -> None:
    """Say what is to be known of the checkpoint that was opened."""
    for notice in trained.notices:
        click.echo(f"note: {notice}", err=True)


def _watch() -> Watch:
    from rich.console import Console

    from fitune.progress import Progress

    return Progress(Console(stderr=True))
