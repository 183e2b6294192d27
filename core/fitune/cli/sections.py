"""The commands as `ft help` lists them: in the order of work, each with a few words that fit a line of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping

import click

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "To begin with": {
        "new": "Write a recipe for a model, data and a card.",
        "recipes": "List the recipes that come with ft, show or copy one.",
        "convert": "Turn a configuration of another tool into a recipe.",
        "check": "Check a recipe and all that it names.",
        "data": "Show what a recipe trains on.",
    },
    "What it takes": {
        "plan": "Forecast a run's memory and time, and whether it fits.",
        "explain-oom": "Explain why a run was out of GPU memory, and what would fit.",
        "bench": "Measure this machine's GPU, for forecasts of time.",
    },
    "Train": {
        "run": "Train as a recipe says, or go on with a run.",
        "launch": "Run a recipe on another machine, and bring it back.",
        "runs": "List runs, show one, or compare some.",
        "report": "Write what became of runs as a page of HTML.",
    },
    "Use what was trained": {
        "generate": "Answer prompts.",
        "eval": "Measure it on held-out data, or by tasks.",
        "merge": "Write it as a plain model of transformers.",
        "export": "Write it for other programs, llama.cpp or Ollama.",
    },
    "Plugins and help": {
        "plugins": "List what is installed; begin and check one of your own.",
        "list": "List the plugins that are installed.",
        "schema": "Print a JSON Schema of a recipe, for an editor.",
        "help": "Show this, or what a command takes.",
    },
}
"""The built-in commands by what they are for."""

OTHERS = "Of plugins"
"""Heading of commands that plugins add."""


def write_sections(formatter: click.HelpFormatter, commands: Mapping[str, click.Command]) -> None:
    """Write the list of commands; those that are hidden are left out."""
    listed = {name for names in SECTIONS.values() for name in names}
    shown = {name: command for name, command in commands.items() if not command.hidden}
    others = {name: shown[name].get_short_help_str(60) for name in sorted(shown.keys() - listed)}
    width = max(map(len, shown), default=0)
    for heading, texts in (*SECTIONS.items(), (OTHERS, others)):
        if rows := [(name.ljust(width), text) for name, text in texts.items() if name in shown]:
            with formatter.section(heading):
                formatter.write_dl(rows)
