"""`ft generate`: its options. What it does is in `fitune.trained.generate`, which is imported when it runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fitune.cli.numbers import Finite
from fitune.cli.places import model_option
from fitune.cli.printing import say
from fitune.cli.settings import (
    Settings,
    base_option,
    changed_plugins_option,
    checkpoint_option,
    loading_switches,
    run_argument,
    tell_of,
)
from fitune.cli.streams import argument_text, read_line, read_text
from fitune.cli.threads import let_threads_sleep
from fitune.errors import DataError, RunError

if TYPE_CHECKING:
    from fitune.trained.generate import Generator
    from fitune.trained.open import Opened


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


@click.command("generate")
@run_argument
@checkpoint_option
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="A question; may be repeated.")
@click.option("--system", metavar="TEXT", help="A system message.")
@click.option("--interactive", is_flag=True, help="Hold a conversation: /clear begins anew, /exit or Ctrl-D ends.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, metavar="N")
@click.option(
    "--temperature",
    type=Finite(min=0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token; higher is more random.",
)
@click.option(
    "--top-p",
    type=Finite(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw from the likeliest tokens that together have this probability.",
)
@click.option("--seed", type=int, help="Draw the same each time.")
@click.option("--raw", is_flag=True, help="Give the prompt as it is, without the chat template.")
@base_option
@model_option
@changed_plugins_option
@loading_switches
@click.pass_obj
def generate_command(
    settings: Settings, /, run: Path, checkpoint: str | None, model: Path | None, **asked: Any
) -> None:
    """Answer prompts with the model that RUN trained, in the chat template that it was trained with.

    Without --prompt, the prompt is read from standard input.
    """
    _generate(settings, run, checkpoint, model, Asked(**asked))


def _generate(settings: Settings, run: Path, checkpoint: str | None, model: Path | None, asked: Asked) -> None:
    let_threads_sleep()
    from fitune.trained.open import find, must_write, open_run

    prompts = _prompts(asked)
    trained = find(run, settings.registry(), checkpoint, model=model)
    must_write(trained, "ft generate")
    tell_of(trained)
    opened = open_run(trained, base=asked.base)
    generator = _generator(opened, asked)
    if asked.seed is not None:
        from accelerate.utils import set_seed

        set_seed(asked.seed)
    if asked.interactive:
        from fitune.trained.chat import converse

        converse(generator, asked.system, _read_line, _write, _tell_note)
        return
    system = [] if asked.system is None else [{"role": "system", "content": argument_text(asked.system, "--system")}]
    for number, prompt in enumerate(prompts):
        _write("\n" if number else "")
        generator.answer([*system, {"role": "user", "content": prompt}], _write)
        _write("\n")


def _prompts(asked: Asked) -> tuple[str, ...]:
    """What is to be answered. Raises `RunError` where nothing is."""
    if asked.interactive and asked.prompts:
        raise RunError("--interactive reads its questions line by line, and takes no --prompt. Leave one of them out")
    if asked.interactive or asked.prompts:
        return tuple(argument_text(prompt, "--prompt") for prompt in asked.prompts)
    if sys.stdin.isatty():
        raise RunError("nothing to answer. Give --prompt TEXT, --interactive, or the prompt on standard input")
    text = read_text().rstrip("\n")
    if not text:
        raise RunError("standard input is empty: nothing to answer. Give --prompt TEXT")
    return (text,)


def _generator(opened: Opened, asked: Asked) -> Generator:
    """What answers. Raises `RunError` for a system message that has no place."""
    from fitune.compose.dialogue import dialogue_of
    from fitune.trained.generate import Generator, Sampling

    dialogue = None if asked.raw else dialogue_of(opened.trained.recipe, opened.context)
    if dialogue is None and asked.system is not None:
        why = "--raw gives the prompt as it is" if asked.raw else "the run was trained on text without a chat template"
        raise RunError(f"--system has no place: {why}. Put it into the prompt")
    sampling = Sampling(max_new_tokens=asked.max_new_tokens, temperature=asked.temperature, top_p=asked.top_p)
    return Generator(
        model=opened.model, tokenizer=opened.tokenizer, dialogue=dialogue, sampling=sampling, note=_tell_note
    )


def _tell_note(what: str) -> None:
    """What a person should know, beside the answers."""
    say(f"note: {what}", err=True)


def _read_line() -> str | None:
    """A line that somebody typed, or None at the end."""
    try:
        if sys.stdin.isatty():
            return input("> ")
    except EOFError:
        return None
    except UnicodeDecodeError:
        raise DataError("what was typed is not UTF-8. Set the terminal to UTF-8") from None
    return read_line()


def _write(text: str) -> None:
    """Text to standard output, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
