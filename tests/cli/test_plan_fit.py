"""`ft plan --fit`: what is chosen is told, and written as a recipe that says all of it."""

# ruff: noqa: E501 - an error is one line, and is read best as one

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from fitune.cli import asked_plan, show_plan
from fitune.cli.main import main
from fitune.errors import RunError
from fitune.memory.cards.cards import Card, find_card
from fitune.memory.fit.choices import composed
from fitune.memory.fit.report import differences
from fitune.memory.fit.result import Considered, Fitted
from fitune.memory.fit.write import write
from fitune.memory.forecast import forecast
from fitune.memory.levers import levers
from fitune.memory.shapes import Shapes
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe, write_tiny_model

CHECKPOINTED: Mapping[str, object] = {"use": "gradient-checkpointing", "layers": 1}
Plan = Callable[..., str]


def considered(*tables: Mapping[str, object], **changes: Any) -> Considered:
    one = Considered(
        tables=tables,
        micro_batch=2,
        accumulation=1,
        seconds=1.5,
        allocated=3 * 2**30,
        reserved=4 * 2**30,
        margin=2**28,
        fits=True,
        confirmed=True,
    )
    return replace(one, **changes)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, Card]]:
    """What the search is asked for; it is a made-up one, which always takes gradient checkpointing."""
    asked: list[tuple[Recipe, Card]] = []

    def fit(recipe: Recipe, registry: Registry, shapes: Callable[[Recipe], Shapes], card: Card) -> Fitted:
        asked.append((recipe, card))
        made = composed(recipe, registry, [CHECKPOINTED], recipe.train.micro_batch, None)
        return Fitted(
            recipe=made,
            forecast=forecast(made, shapes(made), card),
            chosen=considered(CHECKPOINTED),
            others=(
                considered(seconds=1.0, fits=False),
                considered({"use": "gradient-checkpointing"}, seconds=1.8, confirmed=False),
                *(considered({"use": "chunked-loss", "tokens": 2**at}, seconds=3.0) for at in range(20)),
            ),
            card=card,
            notes=("nothing is real",),
        )

    monkeypatch.setattr(show_plan, "fit", fit)
    return asked


@pytest.fixture
def plan(recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    """What `ft plan` prints of the tiny recipe."""

    def plan(*arguments: str) -> str:
        main(["plan", str(recipe_path), *arguments])
        return capsys.readouterr().out

    return plan


def test_a_person_reads_what_is_chosen_and_what_else_there_is(plan: Plan, searched: list[tuple[Recipe, Card]]) -> None:
    text = plan("--fit", "--gpu", "a10g")
    assert [card.name for _, card in searched] == ["A10G"]
    assert text.splitlines()[0].startswith("tiny on A10G, 22.300 GiB: fits, ")
    chosen = text[text.index("Chosen") : text.index("Looked at")]
    assert "\n  gradient-checkpointing (layers = 1): recompute layers in the backward pass" in chosen
    assert "time of a step 1.50 times that of the fastest that was looked at, which does not fit; estimated" in chosen
    table = text[text.index("Looked at") :].splitlines()[2:]
    assert table[0].split() == ["0.67", "4.000", "GiB", "does", "not", "fit", "traced", "without", "gradient-checkpointing"]  # fmt: skip
    assert table[1].split()[:5] == ["1.20", "4.000", "GiB", "fits", "estimated"]
    assert len(table) == 11
    assert table[-1] == "  and 12 more: --json has all"
    assert "  note       nothing is real" in text
    assert "forecast" in text
    assert "timeline" not in text


def test_a_program_reads_all_of_it(plan: Plan, searched: list[tuple[Recipe, Card]]) -> None:
    found = json.loads(plan("--fit", "--budget", "2GiB", "--json"))
    assert searched[0][1].memory == 2 * 2**30
    assert found["fits"] is True
    assert found["fit"]["chosen"]["strategies"] == [CHECKPOINTED]
    assert found["fit"]["strategies"][0]["layers"] == 1
    assert len(found["fit"]["others"]) == 22
    assert found["fit"]["others"][0]["relative_time"] == pytest.approx(1 / 1.5)
    assert [one["traced"] for one in found["fit"]["others"][:2]] == [True, False]
    assert found["fit"]["notes"] == ["nothing is real"]


def test_a_recipe_that_asks_for_it_is_planned_as_ft_run_would_take_it(
    plan: Plan, searched: list[tuple[Recipe, Card]]
) -> None:
    text = plan("--set", 'memory.fit="l4"')
    assert searched[0][1] == find_card("l4")
    assert text.startswith("tiny on L4, ")
    assert "What it is for, at the peak" in text
    said = text.splitlines()[-1]
    assert said.startswith("[memory] fit: planned is what it chooses for L4, ")
    assert said.endswith(": gradient-checkpointing (layers = 1)")
    plan("--set", 'memory.fit="l4"', "--gpu", "t4")
    assert searched[1][1] == find_card("t4")


def test_without_either_nothing_is_searched(plan: Plan, searched: list[tuple[Recipe, Card]]) -> None:
    assert "[memory] fit" not in plan("--gpu", "a10g")
    assert searched == []


def test_levers_are_those_of_the_chosen_recipe(
    plan: Plan, searched: list[tuple[Recipe, Card]], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("chunked-loss", "gradient-checkpointing")
    monkeypatch.setattr(show_plan, "levers", lambda *given: [one for one in levers(*given) if one.name in few])
    names = {one["name"] for one in json.loads(plan("--fit", "--gpu", "a10g", "--levers", "--json"))["levers"]}
    assert names == {"chunked-loss"}
    assert len(searched) == 1


def test_it_is_written_as_a_recipe_that_reads_the_same(
    plan: Plan, searched: list[tuple[Recipe, Card]], tmp_path: Path
) -> None:
    file = tmp_path / "fitted.toml"
    arguments = ("--fit", "--gpu", "a10g", "--set", "train.micro_batch=3", "--write", str(file))
    assert plan(*arguments).endswith(f"written: {file}\n")
    head = file.read_text(encoding="utf-8").splitlines()[:3]
    assert head[0].startswith("# Written by: ft plan ")
    assert head[0].endswith(f"recipe.toml --set train.micro_batch=3 --gpu a10g --fit --write {file}")
    assert head[1] == "# For A10G, 22.300 GiB, of which a run can have 21.800 GiB"
    assert head[2].startswith("# Forecast: ")
    again = read_recipe(file, open_registry())
    asked = searched[0][0]
    assert again.to_toml() == composed(asked, open_registry(), [CHECKPOINTED], 3, None).to_toml()
    assert again.memory.fit is False
    before = file.stat()
    plan(*arguments)
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert sorted(path.name for path in tmp_path.glob("*fitted*")) == ["fitted.toml"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "a10g", "--write", "f.toml"], "--write writes what --fit chooses, so it needs that. Give --fit, too"),
        (["--gpu", "a10g", "--fit", "--write", "no/f.toml"], "no/f.toml cannot be written: there is no directory no."),
        (["--gpu", "a10g", "--fit", "--write", "."], ". is a directory. Give the path of a file, e.g. fitted.toml"),
        (["--gpu", "a10g", "--fit", "--write", "taken.toml"], "taken.toml is there, with another content: nothing is overwritten. Give another --write"),
        (["--gpu", "a10g", "--budget", "1GiB", "--fit"], "--gpu and --budget say two things"),
    ],
)  # fmt: skip
def test_what_cannot_be_done(
    recipe_path: Path,
    searched: list[tuple[Recipe, Card]],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    Path("taken.toml").write_text("mine\n", encoding="utf-8")
    with pytest.raises(SystemExit) as exit_:
        main(["plan", str(recipe_path), *arguments])
    told = capsys.readouterr()
    assert (exit_.value.code, told.out) == (2, "")
    assert says in told.err
    assert len(told.err.splitlines()) == 1
    assert Path("taken.toml").read_text(encoding="utf-8") == "mine\n"
    assert len(searched) == (1 if "taken.toml" in arguments else 0)


@pytest.mark.parametrize("asks", [["--fit"], ["--set", "memory.fit=true"]])
def test_without_a_gpu_a_card_must_be_named(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asks: list[str]
) -> None:
    monkeypatch.setattr(asked_plan, "local_card", lambda: None)
    with pytest.raises(SystemExit):
        main(["plan", str(recipe_path), *asks])
    assert "this machine has no GPU, so a card must be named" in capsys.readouterr().err


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f.toml"

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(RunError, match="cannot be written: No space left on device"):
            write("a = 1\n", file)
    assert list(tmp_path.iterdir()) == []
    write("a = 1\n", file)
    assert file.read_bytes() == b"a = 1\n"
    other = tmp_path / "other"
    other.touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_a_difference_is_what_another_composition_does_otherwise() -> None:
    chosen = considered({"use": "a", "n": 1}, {"use": "b"})
    assert (
        differences(considered({"use": "a", "n": 1}, {"use": "c", "x": "y"}), chosen) == 'with c (x = "y"); without b'
    )
    assert differences(considered({"use": "a", "n": 2}, {"use": "b"}), chosen) == "a (n = 2)"
    assert differences(considered({"use": "a"}, {"use": "b"}), chosen) == "a, its settings left out"
    smaller = considered({"use": "a", "n": 1}, {"use": "b"}, micro_batch=1, accumulation=2)
    assert differences(smaller, chosen) == "micro_batch 1, 2 to a step"


def test_the_search_itself_finds_a_recipe_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"train": {"micro_batch": 16, "length": 512, "steps": 1}})
    write_tiny_model(recipe.parent / "model", layers=4)
    few = 'memory.strategy=[{use="recompute-pointwise"}, {use="fused-lora"}]'  # the less is left, the faster
    plain = planned(capsys, recipe, "--set", few, "--gpu", "a10g")
    tight = f"{plain['reserved'] * 3 // 4 + plain['margin']}B"
    written = tmp_path / "tight.toml"
    found = planned(capsys, recipe, "--set", few, "--budget", tight, "--fit", "--write", str(written))
    assert (plain["reserved"] > found["reserved"], found["fits"]) == (True, True)
    assert found["fit"]["chosen"]["strategies"]
    assert found["fit"]["chosen"]["traced"] is True
    again = planned(capsys, written, "--budget", tight)
    assert (again["allocated"], again["reserved"]) == (found["allocated"], found["reserved"])


def planned(capsys: pytest.CaptureFixture[str], recipe: Path, *arguments: str) -> dict[str, Any]:
    """What `ft plan --json` prints."""
    main(["plan", str(recipe), "--json", *arguments])
    return cast("dict[str, Any]", json.loads(capsys.readouterr().out))
