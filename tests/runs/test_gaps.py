"""Lines of the metrics that are torn, damaged or missing: told on resume and by `ft runs show`, and put back.

On 0.1 a line that was damaged or missing was left out in silence by a run that went on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitune.runs.gaps import fill, missing, spacing_of, steps_text
from fitune.runs.lines import Line, Metrics, line_of, read_metrics
from support.commands import ft
from support.resuming import go, stop, write_resumed
from support.tiny import metrics

Lines = list[bytes]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after five steps, evaluated before the first and after the third."""
    home = tmp_path_factory.mktemp("gaps")
    stop(write_resumed(home / "recipe"), home / "run", 5)
    return home / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def of(event: str, step: int) -> Callable[[bytes], bool]:
    def found(text: bytes) -> bool:
        line = json.loads(text)
        return bool(line["event"] == event and line["step"] == step)

    return found


def at(lines: Lines, event: str, step: int) -> int:
    return next(number for number, line in enumerate(lines) if of(event, step)(line))


def a_line_is_gone(lines: Lines) -> None:
    del lines[at(lines, "step", 2)]


def several_are_gone(lines: Lines) -> None:
    del lines[at(lines, "step", 2) : at(lines, "step", 4)]


def a_line_is_torn(lines: Lines) -> None:
    number = at(lines, "step", 2)
    lines[number] = lines[number][:30]


def a_digit_is_another(lines: Lines) -> None:
    number = at(lines, "step", 4)
    lines[number] = lines[number].replace(b'"loss": 5.', b'"loss": 4.')


def zeros(lines: Lines) -> None:
    number = at(lines, "evaluation", 3)
    lines[number] = bytes(len(lines[number]))


def the_beginning_is_gone(lines: Lines) -> None:
    del lines[:3]


def the_end_is_torn(lines: Lines) -> None:
    number = at(lines, "step", 5)
    del lines[number + 1 :]
    lines[number] = lines[number][:-20]


def all_is_gone(lines: Lines) -> None:
    lines.clear()


TOLD: dict[Callable[[Lines], None], tuple[str, str]] = {
    a_line_is_gone: ("the line of step 2 is missing", "1 put back, from the checkpoint"),
    several_are_gone: ("the lines of steps 2 to 3 are missing", "3 put back, from the checkpoint"),
    a_line_is_torn: ("1 line of it is damaged, and left out", "1 put back, from the checkpoint"),
    a_digit_is_another: ("1 line of it is not what was written", "1 put back, from the checkpoint"),
    zeros: ("1 line of evaluations is missing", "1 put back, from the checkpoint"),
    the_beginning_is_gone: ("the lines of steps 1 to 2 are missing", "3 put back, from the checkpoint"),
    the_end_is_torn: ("the last line is torn", "1 put back, from the checkpoint"),
    all_is_gone: ("the lines of steps 1 to 5 are missing", "7 put back, from the checkpoint"),
}


def spoilt(run: Path, spoil: Callable[[Lines], None]) -> None:
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines()
    spoil(lines)
    end = b"" if spoil is the_end_is_torn else b"\n" if lines else b""
    file.write_bytes(b"\n".join(lines) + end)


@pytest.mark.parametrize("spoil", TOLD)
def test_it_is_told_and_put_back_by_a_run_that_goes_on(
    run: Path, made: Path, capsys: Capture, spoil: Callable[[Lines], None]
) -> None:
    spoilt(run, spoil)
    capsys.readouterr()
    go(run)
    what, outcome = TOLD[spoil]
    said = capsys.readouterr().err
    assert f"warning: {run / 'metrics.jsonl'}: " in said
    assert what in said
    assert outcome in said
    (notice,) = metrics(run, "notice")
    assert (notice["kind"], notice["step"]) == ("damaged metrics", 5)
    for event in ("step", "evaluation"):
        before = metrics(made, event)
        assert metrics(run, event)[: len(before)] == before
    steps = [line.step for line in read_metrics(run).lines if line.event == "step"]
    assert steps == list(range(1, 9))
    assert "notes" not in ft("runs", "show", str(run), capsys=capsys)


@pytest.mark.parametrize("spoil", [spoil for spoil in TOLD if spoil not in (a_digit_is_another, zeros)])
def test_it_is_told_by_ft_runs_show(run: Path, capsys: Capture, spoil: Callable[[Lines], None]) -> None:
    spoilt(run, spoil)
    said = ft("runs", "show", str(run), capsys=capsys)
    assert TOLD[spoil][0] in said, said
    assert TOLD[spoil][0] in json.loads(ft("runs", "show", str(run), "--json", capsys=capsys))["notes"][0]


def test_a_file_that_is_gone_is_told(run: Path, capsys: Capture) -> None:
    (run / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing, with the numbers of all steps" in ft("runs", "show", str(run), capsys=capsys)
    go(run)
    assert [line["step"] for line in metrics(run)] == list(range(1, 9))


def test_nothing_is_told_where_nothing_is_wrong(run: Path, capsys: Capture) -> None:
    assert "notes" not in ft("runs", "show", str(run), capsys=capsys)
    go(run, 'listener=[{use="metrics", every=3}]')  # from here on, another distance between lines
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6, 8]
    assert metrics(run, "resume") == [{"event": "resume", "step": 5, "every": 3, "before": 1}]
    assert "warning" not in capsys.readouterr().err
    assert "notes" not in ft("runs", "show", str(run), capsys=capsys)


def line(event: str, step: int, **values: object) -> Line:
    found = line_of(json.dumps({"event": event, "step": step, **values}))
    assert found is not None
    return found


@settings(deadline=None)
@given(
    st.integers(0, 60),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(0, 60),
    st.sets(st.integers(1, 60), max_size=9),
)
def test_what_is_missing_is_what_was_taken(made: int, first: int, then: int, change: int, taken: set[int]) -> None:
    """Whatever the distances between lines were, before and after a start that changed them."""
    change = min(change, made)
    written = [step for step in range(1, made + 1) if step % (first if step <= change else then) == 0]
    lines = [line("step", step) for step in written if step not in taken]
    spacing = {0: first, change: then} if change else {0: then}
    assert missing(lines, made, spacing) == [step for step in written if step in taken]


@settings(deadline=None)
@given(st.permutations(range(1, 9)), st.integers(0, 8), st.sets(st.sampled_from((0, 3, 6)), max_size=3))
def test_all_that_a_checkpoint_knows_is_put_back_in_order(order: list[int], gone: int, evaluations: set[int]) -> None:
    steps = {step: line("step", step, loss=step / 8) for step in range(1, 9)}
    evaluated = {step: line("evaluation", step, loss=step / 3) for step in (0, 3, 6)}
    whole = [evaluated[0], *(one for step in steps for one in (steps[step], evaluated.get(step)) if one is not None)]
    lost = {("step", step) for step in order[:gone]} | {("evaluation", step) for step in evaluations}
    kept = [one for one in whole if (one.event, one.step) not in lost]
    found = fill(Metrics(lines=kept), kept, whole, 8, {0: 1})
    assert [one.text for one in found.lines] == [one.text for one in whole]
    assert (found.filled, list(found.missing), bool(found.wrong)) == (len(lost), [], bool(lost))


def test_an_older_start_that_did_not_say_is_not_complained_of() -> None:
    assert spacing_of(Metrics(lines=[line("resume", 4)]), 2) is None
    assert spacing_of(Metrics(lines=[line("resume", 4, every=0)]), 2) is None
    assert spacing_of(Metrics(lines=[line("resume", 4, every="x")]), 2) is None
    assert spacing_of(Metrics(lines=[line("resume", 4, every=3, before=2)]), 3) == {0: 2, 4: 3}
    assert spacing_of(Metrics(), 2) == {0: 2}


def test_steps_are_named_in_stretches() -> None:
    assert steps_text([4]) == "the line of step 4 is"
    assert steps_text([4, 5, 6, 9]) == "the lines of steps 4 to 6 and 9 are"
    assert steps_text([3, 6, 9, 1200]) == "the lines of steps 3 to 9 and 1,200 are"
    assert steps_text([1, 2, 5, 6, 9, 10, 20]) == "the lines of steps 1 to 2, 5 to 6, 9 to 10 and others are"
