"""What a person sees of a run: what it is, how it goes on, what came of it; measured, where not called forecast."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table

from fitune.cli.pace import Pace, in_a_line
from fitune.errors import visible
from fitune.plugin.events import (
    CheckpointReport,
    EvalReport,
    MemoryForecast,
    MemoryReport,
    Notice,
    Recovery,
    RehearsalReport,
    Run,
    StepReport,
)
from fitune.plugin.hookspecs import hookimpl
from fitune.plugin.units import gib
from fitune.runs.answers import Answered, first_answers

PLAIN_LINES = 20
"""Lines of progress that a run prints where there is no terminal to draw on."""


class RunConsole:
    """Draws a run on a terminal, or writes plain lines where there is none."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._first: Answered | None = None
        self._answered: Answered | None = None
        self._start = time.perf_counter()
        self._last: StepReport | None = None
        self._pace = Pace()

    @hookimpl
    def ft_run_started(self, run: Run) -> None:
        """Say what will run."""
        recipe, plan = run.recipe, run.plan
        share = 100 * run.trainable / run.parameters
        batch = f"{recipe.train.micro_batch} row(s) x {plan.accumulation} accumulated x {processes_text(run)}"
        lines = [
            f"[bold]{escape(recipe.general.name)}[/bold]  {run.steps} steps on {run.device}",
            *([] if run.resumed is None else [f"goes on after {run.resumed} steps"]),
            f"model    {escape(recipe.model.record.name)}, {run.parameters:,} parameters",
            f"adapter  {escape(recipe.adapter.record.name)}, {run.trainable:,} parameters train ({share:.2f} %)",
            f"memory   {escape(', '.join(use.record.name for use in recipe.strategies) or 'no strategy')}",
            *(f"         {escape(line)}" for line in (*run.fitted, *run.told)),
            f"data     {run.rows:,} rows; a step takes {batch}",
            *(f"         {escape(what)}: {number:,}" for what, number in run.counts),
            *([] if run.forecast is None else [f"forecast {escape(forecast_text(run.forecast))}"]),
            *(f"[yellow]note[/yellow]     {escape(notice)}" for notice in plan.notices),
            f"files    {escape(str(run.directory))}",
        ]
        self.console.print("\n".join(lines), highlight=False, soft_wrap=True)
        if run.resumed is not None:
            self._first = first_answers(run.directory, run.evaluated)
        if self.console.is_terminal:
            state = TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True))
            columns = (BarColumn(bar_width=None), MofNCompleteColumn(), state)  # the bar has what the text leaves
            self._progress = Progress(*columns, console=self.console, expand=True)
            self._task = self._progress.add_task("", total=run.steps, completed=run.resumed or 0, state="")
            self._progress.start()

    @hookimpl
    def ft_rehearsed(self, report: RehearsalReport) -> None:
        """Say what the run takes at most."""
        line = (
            f"rehearsed the longest batch ({report.rows} x {report.tokens} tokens"
            f"{', and an evaluation' if report.evaluated else ''}): peak {memory_text(report.memory)} measured"
        )
        self.console.print(f"{line}  [{report.seconds:.1f} s]", highlight=False, soft_wrap=True, markup=False)

    @hookimpl
    def ft_recovered(self, recovery: Recovery) -> None:
        """Say what ran out, and what the run goes on with."""
        self.console.print(recovery_text(recovery), style="yellow", highlight=False, soft_wrap=True, markup=False)

    @hookimpl
    def ft_step_done(self, run: Run, step: StepReport) -> None:
        """Show the step."""
        self._last = step
        if step.skipped and step.loss_scale is not None:  # of others there is a notice
            what = (
                f"step {step.step} was skipped: its gradient overflows float16 at a loss scale of {step.loss_scale:g}"
            )
            self.console.print(f"[yellow]note[/yellow]     {what}", highlight=False, soft_wrap=True)
        self._pace.done(step.step)
        left = self._pace.left(run.steps)
        told = f"loss {step.loss:.4f}", metrics_text(step.metrics, "  ").rstrip(), gib(step.memory.peak)
        speed = f"{step.tokens / step.seconds:,.0f} tok/s"
        state = in_a_line(*told, spare=speed, end="" if left is None else f"{left} left")
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step.step, state=state)
        elif step.step in (1, run.steps) or step.step % max(1, run.steps // PLAIN_LINES) == 0:
            self.console.print(f"step {step.step}/{run.steps}  {state}", highlight=False, soft_wrap=True)

    @hookimpl
    def ft_evaluated(self, report: EvalReport) -> None:
        """Show the evaluation."""
        if report.answers:
            self._answered = Answered(step=report.step, answers=report.answers)
            self._first = self._first or self._answered
        self.console.print(evaluation_text(report), highlight=False, soft_wrap=True, markup=False)

    @hookimpl
    def ft_noticed(self, notice: Notice) -> None:
        """Say it."""
        what = escape(f"{notice.kind} after {notice.step} steps: {notice.what}")
        self.console.print(f"[yellow]note[/yellow]     {what}", highlight=False, soft_wrap=True)

    @hookimpl
    def ft_checkpoint_saved(self, report: CheckpointReport) -> None:
        """Say so, in a line."""
        self.console.print(checkpoint_text(report), style="dim", highlight=False, soft_wrap=True, markup=False)

    @hookimpl
    def ft_run_finished(self, run: Run | None, error: BaseException | None) -> None:
        """Say what came of it."""
        if self._progress is not None:
            self._progress.stop()
        if run is None or error is not None:
            return
        self._compare(run.recipe.evaluation.examples)
        adapter = run.directory / run.recipe.adapter.record.directory
        memory = f", {memory_text(self._last.memory)} at most (measured)" if self._last else ""
        if run.forecast is not None and run.forecast.error is None and self._last and self._last.memory.kind == "gpu":
            self._beside(run.forecast, self._last.memory)
        seconds = time.perf_counter() - self._start
        self.console.print(f"done in {seconds:.0f} s{memory}", highlight=False, soft_wrap=True)
        self.console.print(f"saved {escape(str(adapter))}", highlight=False, soft_wrap=True)
        if hint := next_commands(run):
            self.console.print(f"next  {escape(hint)}", highlight=False, soft_wrap=True)

    def _beside(self, forecast: MemoryForecast, measured: MemoryReport) -> None:
        """The forecast beside what was measured."""
        reserved = measured.reserved or 0
        off = 100 * (forecast.allocated / measured.peak - 1), 100 * (forecast.reserved / max(1, reserved) - 1)
        self.console.print(
            f"memory   allocated {gib(measured.peak, 3)} measured, "
            f"{gib(forecast.allocated, 3)} forecast ({off[0]:+.2f} %); "
            f"reserved {gib(reserved, 3)} measured, {gib(forecast.reserved, 3)} forecast ({off[1]:+.2f} %)",
            highlight=False,
            soft_wrap=True,
        )

    def _compare(self, number: int) -> None:
        """Held-out answers before and after training, side by side, and both figures."""
        first, last = self._first, self._answered
        if first is None or last is None or first.step == last.step:
            return
        if [answer.prompt for answer in first.answers] != [answer.prompt for answer in last.answers]:
            return  # the held-out rows were changed while the run stood still
        table = Table(
            "prompt", "right answer", f"after {first.step} steps", f"after {last.step} steps", show_lines=True
        )
        for before, after in list(zip(first.answers, last.answers, strict=True))[:number]:
            cells = (before.prompt, before.expected, before.generated, after.generated)
            table.add_row(*(escape(visible(cell.strip())) for cell in cells))
        if number:
            self.console.print(table)
        when = f"after {first.step} steps" if first.step else "before training"
        shares = f"{_right(first):.1f} % {when}, {_right(last):.1f} % after"
        self.console.print(
            f"held-out exact match: {shares} ({len(last.answers)} rows)", highlight=False, soft_wrap=True
        )


def _right(answered: Answered) -> float:
    """Exact answers, in per cent."""
    return 100 * sum(answer.exact for answer in answered.answers) / len(answered.answers)


def checkpoint_text(report: CheckpointReport) -> str:
    """What was kept, in a line."""
    size = f"{report.bytes / 2**20:,.1f} MiB"
    parts = [f"checkpoint {report.directory.name}", size, f"{report.seconds:.1f} s", *(["best so far"] * report.best)]
    return "  ".join(parts)


def next_commands(run: Run) -> str:
    """What can be done with what was trained; empty where its adapter can be neither asked nor merged."""
    record, place = run.recipe.adapter.record, shlex.quote(str(run.directory))
    writes = record.load is not None and run.recipe.objective.record.writes
    ask = [f"ft generate {place} --interactive"] if writes else []
    merge = [f"ft merge {place} --to DIR"] if record.load is not None and record.merge is not None else []
    return "    ".join([*ask, *merge])


def forecast_text(forecast: MemoryForecast) -> str:
    """What the run will take of the card."""
    if forecast.error is not None:
        return f"none: {forecast.error}"
    return (
        f"{gib(forecast.allocated, 3)} allocated, {gib(forecast.reserved, 3)} reserved, "
        f"{gib(forecast.context, 3)} context; "
        f"{'fits' if forecast.fits else 'does not fit'} on {forecast.card}"
    )


def processes_text(run: Run) -> str:
    """How many processes have rows of their own, and among how many each row is split."""
    shared = run.plan.context_parallel
    if shared == 1:
        return f"{run.processes} process(es)"
    return f"{run.plan.replicas} group(s) of {shared} processes, each of which has a part of every row"


def evaluation_text(report: EvalReport) -> str:
    """What an evaluation found, in a line."""
    found = [] if report.loss is None else [f"loss {report.loss:.4f}"]
    if report.metrics:
        found.append(metrics_text(report.metrics, ", ").removesuffix(", "))
    if report.exact_match is not None:
        right = sum(answer.exact for answer in report.answers)
        found.append(f"exact match {100 * report.exact_match:.1f} % ({right} of {len(report.answers)})")
        found += cut_answers(report)
    return f"held out after {report.step} steps: {', '.join(found)}  [{report.seconds:.1f} s]"


def metrics_text(metrics: Mapping[str, float], end: str) -> str:
    """What an objective measures, each with this behind it; those of one side alone, "rewards/chosen" say, are left to
    files and trackers.
    """
    return "".join(f"{name} {value:.3g}{end}" for name, value in metrics.items() if "/" not in name)


def cut_answers(report: EvalReport) -> list[str]:
    """What is to be known of answers that count as misses whatever the model says."""
    if not report.answers_cut:
        return []
    settings = {"max_new_tokens": "longer than [eval] max_new_tokens", "length": "cut at [train] length"}
    each: Counter[str] = Counter(answer.cut for answer in report.answers if answer.cut)
    why = " and ".join(f"{each[setting]} {said}" for setting, said in settings.items() if each[setting])
    others = len(report.answers) - report.answers_cut
    share = report.exact_match_of_whole
    return [
        f"of which {why} cannot match" + (f": {100 * share:.1f} % of the other {others}" if share is not None else "")
    ]


def recovery_text(recovery: Recovery) -> str:
    """Why and with what a run goes on, in lines."""
    rows = "rows in a forward pass: {} before, {} now".format(*recovery.micro_batch)
    kept = f"the {recovery.step} steps are kept, and the next is made on its own data"
    if recovery.again:
        kept = f"goes on from step {recovery.step}, that of the newest checkpoint: {recovery.again} are made again"
    made = recovery.step + recovery.again
    lines = [
        f"out of GPU memory in the {recovery.phase} after {made} steps: {recovery.error.split(' GPU ')[0]}",
        f"  ran out  {', '.join(recovery.before) or 'no strategy'}",
        f"  goes on  {', '.join(recovery.after) or 'no strategy'}",
        *([f"  {rows}"] if recovery.micro_batch[0] != recovery.micro_batch[1] else []),
        *([] if recovery.forecast is None else [f"  forecast {forecast_text(recovery.forecast)}"]),
        f"  {kept}  [{recovery.seconds:.0f} s]",
    ]
    return "\n".join(lines)


def memory_text(memory: MemoryReport) -> str:
    """The peak in GiB and what it is the peak of."""
    return f"{gib(memory.peak)} of {memory.kind} memory"
