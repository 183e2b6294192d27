"""A run that goes on is the run that would have been: the same losses, the same weights, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitune import RunError, hookimpl
from fitune.checkpoint.files import places
from fitune.errors import Interrupted
from fitune.train.keeper import Keeper
from support.resuming import STEPS, Stopper, curve, go, stop, weights, write_resumed
from support.states import assert_same
from support.tiny import adapter, metrics


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_resumed(tmp_path_factory.mktemp("resume") / "recipe")


@pytest.fixture(scope="module")
def plain(recipe: Path) -> Path:
    """A run of it that nothing disturbs."""
    go(recipe, out=recipe.parent / "plain")
    return recipe.parent / "plain"


@pytest.mark.parametrize("after", [1, 3, 5, 6, 7])
def test_a_run_that_was_stopped_goes_on_to_the_same_end(recipe: Path, plain: Path, tmp_path: Path, after: int) -> None:
    """In mid-epoch, at its end, before an evaluation that is due, and in the second epoch."""
    error = stop(recipe, tmp_path / "run", after)
    assert error.exit_code == 3
    place = tmp_path / "run" / "checkpoints" / f"step-{after}"
    assert error.message == (
        f"stopped after {after} of {STEPS} steps: the test. Saved in {place}. Go on with: ft run {tmp_path / 'run'}"
    )
    assert not (tmp_path / "run" / "adapter").exists()
    told = Stopper()
    go(tmp_path / "run", plugins=[told])
    assert [step.step for step in told.steps] == list(range(after + 1, STEPS + 1))
    assert told.notices == []
    assert curve(tmp_path / "run") == curve(plain)
    assert_same(weights(tmp_path / "run"), weights(plain))


VARIANTS = {
    "full": ['adapter={use="none"}'],
    "8 bits": ['memory.strategy=[{use="adamw-8bit"}]', 'adapter={use="none"}', "train.micro_batch=2"],
    "float16": ['model.dtype="float16"', "adapter.dropout=0.0"],
    "bfloat16": ['model.dtype="bfloat16"'],
    "packed": ['data.stage=[{use="chat"}, {use="tokenize"}, {use="truncate"}, {use="pack"}, {use="pad"}]'],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_other_types_and_with_other_optimizers(recipe: Path, tmp_path: Path, variant: str) -> None:
    go(recipe, *VARIANTS[variant], out=tmp_path / "plain")
    stop(recipe, tmp_path / "run", 4, *VARIANTS[variant])
    go(tmp_path / "run")
    assert curve(tmp_path / "run") == curve(tmp_path / "plain")
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "plain"))


def test_again_and_again(recipe: Path, plain: Path, tmp_path: Path) -> None:
    stop(recipe, tmp_path / "run", 2)
    for after in (3, 6):
        with pytest.raises(Interrupted):
            go(tmp_path / "run", plugins=[Stopper(after)])
    go(tmp_path / "run")
    assert curve(tmp_path / "run") == curve(plain)
    assert [line["step"] for line in metrics(tmp_path / "run", "resume")] == [2, 3, 6]
    assert go(tmp_path / "run").done


def test_a_run_that_failed_keeps_what_it_learnt(recipe: Path, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError) as raised:
        go(recipe, plugins=[Stopper(4, RunError("the tracker is lost"))], out=tmp_path / "run")
    place = tmp_path / "run" / "checkpoints" / "step-4"
    assert raised.value.lines == (
        "the tracker is lost",
        f"What was trained in 4 steps is saved in {place}. Go on with: ft run {tmp_path / 'run'}",
    )
    go(tmp_path / "run")
    assert curve(tmp_path / "run") == curve(plain)
    assert_same(weights(tmp_path / "run"), weights(plain))


def test_checkpoints_by_steps_and_which_are_kept(recipe: Path, tmp_path: Path) -> None:
    go(recipe, "checkpoint.steps=1", "checkpoint.keep=2", out=tmp_path / "run")
    lines = metrics(tmp_path / "run", "checkpoint")
    assert [(line["step"], line["why"]) for line in lines] == [(n, "steps") for n in range(1, STEPS)] + [(STEPS, "end")]
    evaluations = {line["step"]: line["loss"] for line in metrics(tmp_path / "run", "evaluation") if line["step"]}
    best = min(evaluations, key=lambda step: evaluations[step])
    assert {step for step, _ in places(tmp_path / "run")} == {STEPS, STEPS - 1, best}
    assert [line["step"] for line in lines if line["best"]][-1] == best


def test_nothing_by_time_and_at_the_end_where_the_recipe_says_so(recipe: Path, tmp_path: Path) -> None:
    quiet = ("checkpoint.minutes=0", "checkpoint.at_end=false", "checkpoint.best=false")
    go(recipe, *quiet, "train.steps=2", out=tmp_path / "run")
    assert places(tmp_path / "run") == []
    assert len(adapter(tmp_path / "run")) > 0
    with pytest.raises(RunError, match="could go on"):
        go(recipe, *quiet, resume=True)


def test_by_minutes(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by ten seconds whenever it is looked at."""
    ticks = iter(range(0, 10**6, 10))
    monkeypatch.setattr(Keeper.__init__, "__defaults__", (None, lambda: next(ticks)))
    go(recipe, "checkpoint.minutes=0.5", "checkpoint.best=false", out=tmp_path / "run")
    lines = metrics(tmp_path / "run", "checkpoint")
    assert [line["why"] for line in lines] == ["minutes"] * (len(lines) - 1) + ["end"]
    assert 2 <= len(lines) < STEPS


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def test_a_damaged_checkpoint_is_named_and_skipped(recipe: Path, plain: Path, tmp_path: Path) -> None:
    stop(recipe, tmp_path / "run", 5, "checkpoint.steps=1")
    _truncate(tmp_path / "run" / "checkpoints" / "step-5" / "state.safetensors")
    told = Stopper()
    go(tmp_path / "run", plugins=[told])
    (notice,) = told.notices
    assert (notice.step, notice.kind) == (4, "damaged checkpoint")
    assert "step-5: state.safetensors has " in notice.what
    assert notice.what.endswith("It is left out, and the run goes on from step 4")
    assert told.steps[0].step == 5
    assert curve(tmp_path / "run") == curve(plain)
    assert_same(weights(tmp_path / "run"), weights(plain))


def test_without_a_whole_checkpoint_it_begins_anew(recipe: Path, plain: Path, tmp_path: Path) -> None:
    stop(recipe, tmp_path / "run", 2)
    (tmp_path / "run" / "checkpoints" / "step-2" / "manifest.json").unlink()
    told = Stopper()
    go(tmp_path / "run", plugins=[told])
    assert told.notices[0].what.endswith(
        "manifest.json is missing. It is left out, and the run goes on from the beginning"
    )
    assert curve(tmp_path / "run") == curve(plain)


def test_a_run_that_ended_before_its_first_step_begins(recipe: Path, plain: Path, tmp_path: Path) -> None:
    class Failing:
        @hookimpl
        def ft_run_started(self) -> None:
            raise RunError("not now")

    with pytest.raises(RunError, match="not now"):
        go(recipe, plugins=[Failing()], out=tmp_path / "run")
    go(tmp_path / "run")
    assert curve(tmp_path / "run") == curve(plain)


def test_resume_with_a_recipe_finds_its_run(recipe: Path, tmp_path: Path) -> None:
    stop(recipe, Path("runs") / "tiny-1", 2)
    told = Stopper()
    assert go(recipe, resume=True, plugins=[told]).directory == Path("runs") / "tiny-1"
    assert told.steps[0].step == 3
    with pytest.raises(RunError, match=r'no run of "tiny" in runs could go on\. Name its directory with --out'):
        go(recipe, resume=True)
    # With --out it begins where there is nothing yet: the same command may be given again and again.
    told = Stopper(1)
    for _ in range(2):
        with pytest.raises(Interrupted):
            go(recipe, resume=True, out=tmp_path / "spot", plugins=[told])
        told.after = 2
    assert [step.step for step in told.steps] == [1, 2]
