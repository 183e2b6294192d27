"""The command line `ft`. Nothing here imports torch before a run needs it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

import click

from fitune._version import __version__
from fitune.cli.bench import bench_command
from fitune.cli.check import check_command
from fitune.cli.convert import convert_command
from fitune.cli.data import data_command
from fitune.cli.evaluate import eval_command
from fitune.cli.explain_oom import explain_oom_command
from fitune.cli.export import export_command
from fitune.cli.generate import generate_command
from fitune.cli.help import help_command, list_command
from fitune.cli.launch import launch_command
from fitune.cli.merge import merge_command
from fitune.cli.new import new_command
from fitune.cli.plan import plan_command
from fitune.cli.plugins import plugins_command
from fitune.cli.printing import filtered_streams, say
from fitune.cli.recipes import recipes_command
from fitune.cli.report import report_command
from fitune.cli.run import run_command
from fitune.cli.runs import runs_command
from fitune.cli.schema import schema_command
from fitune.cli.sections import write_sections
from fitune.cli.settings import Settings, switches
from fitune.cli.streams import standard_streams
from fitune.compose.processes import PeerLost, StartAgain, is_main_process, process_index, reads_errors, tell_launcher
from fitune.errors import FtError, described, nearest, sentences
from fitune.plugin.own_python import leave_kernels_out

COMMANDS: tuple[click.Command, ...] = (
    check_command,
    data_command,
    plugins_command,
    run_command,
    plan_command,
    bench_command,
    explain_oom_command,
    generate_command,
    eval_command,
    merge_command,
    export_command,
    runs_command,
    report_command,
    recipes_command,
    new_command,
    convert_command,
    schema_command,
    launch_command,
    help_command,
    list_command,
)
"""The built-in commands."""


BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
"""Variables that keep libraries from drawing bars: the hub's and transformers', datasets', and tqdm's own."""


class Commands(click.Group):
    """The built-in commands, and those that plugins add, which are loaded only when they are asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        """All commands, in alphabetical order."""
        self._add_from_plugins(context)
        return sorted(self.commands)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """A command by name; an unknown one is an error that names the nearest."""
        if name not in self.commands:
            self._add_from_plugins(context)
        if name not in self.commands and not context.resilient_parsing:
            raise FtError(sentences(f'no command "{name}"', nearest(name, self.commands), "See: ft --help"))
        return self.commands.get(name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them in the order of work."""
        write_sections(formatter, {name: self.commands[name] for name in self.list_commands(ctx)})

    def _add_from_plugins(self, context: click.Context) -> None:
        """Add them; a plugin that cannot, or that would replace a built-in command, is told of and harms nobody. Those
        that come with fitune add none.
        """
        settings = context.ensure_object(Settings)
        if not settings.has_installed():
            return
        built_in = dict(self.commands)
        for error in settings.registry().call_every("ft_commands", cli=self):
            say(f"warning: {error.message}", err=True)
        for name, command in built_in.items():
            if self.commands[name] is not command:
                self.commands[name] = command
                say(f'warning: a plugin wants to replace the built-in command "{name}"', err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ft")
@switches
def cli() -> None:
    """Fine-tune language models through plugins, on the GPUs that you have."""


for command in COMMANDS:
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `ft`. A user's error is one message on standard error and exit code 2; --debug shows where it was raised."""
    with standard_streams(), filtered_streams():
        _main(arguments)


def _main(arguments: Sequence[str] | None) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    _leave_bars_out()
    leave_kernels_out()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it warns of a kernel not used here
    settings = Settings()
    try:
        given = None if arguments is None else list(arguments)
        settings.arguments = tuple(sys.argv[1:] if given is None else given)
        cli.main(args=given, prog_name="ft", obj=settings, standalone_mode=False)
    except FtError as error:
        main_process = is_main_process()
        # Who has started the processes tells of one that is gone, and of one that the first has not heard of; and of
        # one that asks for another start, when that goes on.
        known = (isinstance(error, PeerLost) or not main_process) and reads_errors()
        known = known or isinstance(error, StartAgain)
        printed = settings.debug or not (known or (error.shared and not main_process))
        tell_launcher(error.message, printed=printed)
        if settings.debug:
            _say_where(error)
        elif printed:
            with contextlib.suppress(OSError):  # the disk under its log may be full: the exit code tells
                whose = "" if main_process else f"process {process_index()}: "
                for line in error.lines:
                    say(f"error: {whose}{line}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show(file=sys.stderr)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted", err=True)
        sys.exit(130)
    except OSError:
        raise  # told by `standard_streams`
    except Exception as error:  # a bug, whose traceback is text too
        tell_launcher(described(error), printed=True)
        _say_where(error)
        sys.exit(1)


def _leave_bars_out() -> None:
    """Have libraries draw no bars where nobody watches: they fill a log with their moves."""
    for name in () if sys.stderr.isatty() else BARS:
        os.environ.setdefault(name, "1")


def _say_where(error: BaseException) -> None:
    """Print a traceback: as a whole, since a secret may have several lines, and without colours."""
    with contextlib.suppress(OSError):
        say("".join(traceback.format_exception(error)).rstrip("\n"), err=True)
