"""What is deprecated in a recipe: one line with its place until a release, and the error that it names from then on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest
from annotated_types import Ge

from fitune import Deprecation, Formerly, MemoryStrategy, Recipe, RecipeError, Strategy, hookimpl
from fitune.plugin import deprecation
from fitune.plugin.recipe import General, NewTokens, Train, Weight
from fitune.recipe.reader import read_recipe
from fitune.testing import assert_deprecated, open_registry
from support.light import LIGHT, write_light


def formerly(name: str) -> Formerly:
    return Formerly(name=name, since="0.1", removed_in="0.4")


OLD = Deprecation(since="0.1", removed_in="0.4", instead='Write "share"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A table in a table."""

    depth: Annotated[int, Ge(1), formerly("deep")] = 1
    """How deep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options that had other names, and that are deprecated."""

    share: Annotated[float, Ge(0), formerly("amount")]
    """How much."""
    inner: tuple[Inner, ...] = ()
    """More."""
    file: Annotated[Path, formerly("place")] | None = None
    """A file."""
    named: dict[str, Inner] = field(default_factory=dict)
    """By name."""
    ratio: Annotated[float | None, OLD] = None
    """How much, as it was said before."""
    level: Annotated[int, OLD] = 3
    """With a default."""


def record(**fields: Any) -> MemoryStrategy[Any]:
    made = {"name": "new", "summary": "For a test", "options": Options, "make": lambda options: Strategy()}
    return MemoryStrategy(**{**made, **fields})


class Plugin:
    """Offers records."""

    def __init__(self, *records: MemoryStrategy[Any]) -> None:
        self.records = records

    @hookimpl
    def ft_memory_strategies(self) -> Iterator[MemoryStrategy[Any]]:
        """Offer them."""
        yield from self.records


RENAMED = Plugin(record(formerly=(formerly("old"),)))
WHOLE = Plugin(record(deprecated=Deprecation(since="0.1", removed_in="0.4", instead="Write [train] accumulation")))
AGED = "is deprecated since fitune 0.1 and gone in 0.4"
GONE = "is gone since fitune 0.4"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Release 0.4."""
    monkeypatch.setattr(deprecation, "__version__", "0.4.0")


def read(table: str, *sets: str, plugin: object = RENAMED) -> Recipe:
    """A recipe with this table of a strategy, whose first line is the 11th."""
    if not Path("model").exists():
        write_light(Path(), LIGHT.replace('use = "accumulation"\nsteps = 2', table))
    return read_recipe(Path("r.toml"), open_registry(plugin), sets)


def refused(table: str, *sets: str, plugin: object = RENAMED) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as error:
        read(table, *sets, plugin=plugin)
    return error.value.lines


def options_of(recipe: Recipe) -> Any:
    return recipe.strategies[0].options


def test_an_old_name_of_an_option_is_read_as_the_new_one_and_told_with_its_line() -> None:
    recipe = read('use = "new"\namount = 0.5')
    assert options_of(recipe).share == 0.5
    assert recipe.notices == (f'r.toml:12: [memory.strategy] amount: "amount" {AGED}. Write "share"',)


def test_it_is_an_error_from_its_release_on(later: None) -> None:
    assert refused('use = "new"\namount = 0.5') == (
        f'r.toml:12: [memory.strategy] amount: "amount" {GONE}. Write "share"',
    )


def test_a_recipe_that_says_nothing_old_is_told_nothing(later: None) -> None:
    assert read('use = "new"\nshare = 0.5\ninner = [{depth = 2}]').notices == ()


def test_a_wrong_value_is_told_at_the_name_that_was_given() -> None:
    (line,) = refused('use = "new"\namount = -1.0')
    assert line == 'r.toml:12: [memory.strategy] amount: "share" is -1.0. It takes: number >= 0'


def test_both_names_are_one_too_many() -> None:
    (line,) = refused('use = "new"\namount = 0.5\nshare = 0.5')
    assert line.startswith('r.toml:12: [memory.strategy] amount: "amount" is what "share" was called before')


@pytest.mark.parametrize(
    ("table", "override", "share"),
    [
        ('use = "new"\namount = 0.5', "memory.strategy.0.share=0.25", 0.25),
        ('use = "new"\nshare = 0.5', "memory.strategy.0.amount=0.25", 0.25),
    ],
)
def test_an_override_counts_whichever_name_it_gives(table: str, override: str, share: float) -> None:
    recipe = read(table, override)
    assert options_of(recipe).share == share
    assert len(recipe.notices) == 1


def test_an_override_is_told_as_it_was_given() -> None:
    recipe = read('use = "new"\nshare = 0.5', "memory.strategy.0.amount=0.25")
    assert recipe.notices == (f'--set memory.strategy.0.amount=0.25: "amount" {AGED}. Write "share"',)


def test_a_path_under_an_old_name_is_seen_from_where_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write_light(tmp_path / "elsewhere", LIGHT.replace('use = "accumulation"\nsteps = 2', 'use = "new"\nshare = 1.0'))
    place = tmp_path / "elsewhere" / "r.toml"
    overridden = read_recipe(place, open_registry(RENAMED), ['memory.strategy.0.place="a.txt"'])
    assert options_of(overridden).file == tmp_path / "a.txt"
    place.write_text(place.read_text(encoding="utf-8").replace("share = 1.0", 'share = 1.0\nplace = "a.txt"'))
    assert options_of(read_recipe(place, open_registry(RENAMED))).file == tmp_path / "elsewhere" / "a.txt"


def test_names_within_tables_of_tables_are_read_too() -> None:
    recipe = read('use = "new"\nshare = 0.5\n[[memory.strategy.inner]]\ndeep = 3\n[[memory.strategy.inner]]\ndepth = 4')
    assert [one.depth for one in options_of(recipe).inner] == [3, 4]
    assert recipe.notices == (f'r.toml:14: [memory.strategy.inner] deep: "deep" {AGED}. Write "depth"',)


def test_names_that_a_user_gives_are_nobodys() -> None:
    recipe = read('use = "new"\nshare = 0.5\nnamed = {deep = {deep = 2}, amount = {depth = 3}}')
    assert options_of(recipe).named == {"deep": Inner(depth=2), "amount": Inner(depth=3)}
    assert recipe.notices == (f'r.toml:13: [memory.strategy.named.deep] deep: "deep" {AGED}. Write "depth"',)


def test_a_deprecated_option_works_until_its_release() -> None:
    recipe = read('use = "new"\nshare = 0.5\nratio = 0.1')
    assert options_of(recipe).ratio == 0.1
    assert recipe.notices == (f'r.toml:13: [memory.strategy] ratio: "ratio" {AGED}. Write "share"',)


def test_and_is_refused_from_then_on(later: None) -> None:
    assert refused('use = "new"\nshare = 0.5\nratio = 0.1') == (
        f'r.toml:13: [memory.strategy] ratio: "ratio" {GONE}. Write "share"',
    )


def test_an_old_name_of_a_provider_picks_it_and_is_not_kept() -> None:
    recipe = read('use = "old"\nshare = 0.5')
    assert recipe.notices == (f'r.toml:11: [memory.strategy] use: the memory strategy "old" {AGED}. Write "new"',)
    assert (
        recipe.to_toml()
        == read_recipe(Path("r.toml"), open_registry(RENAMED), ['memory.strategy.0.use="new"']).to_toml()
    )


def test_the_old_name_of_a_provider_is_an_error_later(later: None) -> None:
    assert refused('use = "old"\nshare = 0.5') == (
        f'r.toml:11: [memory.strategy] use: the memory strategy "old" {GONE}. Write "new"',
    )


def test_an_old_name_that_somebody_has_now_means_that_one() -> None:
    both = Plugin(record(formerly=(formerly("old"),)), record(name="old", summary="Another"))
    recipe = read('use = "old"\nshare = 0.5', plugin=both)
    assert (recipe.strategies[0].record.summary, recipe.notices) == ("Another", ())


def test_a_provider_that_is_deprecated_as_a_whole() -> None:
    recipe = read('use = "new"\nshare = 0.5', plugin=WHOLE)
    assert recipe.notices == (
        f'r.toml:11: [memory.strategy] use: the memory strategy "new" {AGED}. Write [train] accumulation',
    )


def test_it_is_not_there_from_its_release_on(later: None) -> None:
    assert refused('use = "new"\nshare = 0.5', plugin=WHOLE) == (
        f'r.toml:11: [memory.strategy] use: the memory strategy "new" {GONE}. Write [train] accumulation',
    )
    registry = open_registry(WHOLE)
    assert [one.record.name for one in registry.gone] == ["new"]
    assert not any(one.record.name == "new" for one in registry.provided)


def test_names_in_allow_and_in_other_records_may_be_old() -> None:
    from fitune import Fit

    asked = record(formerly=(formerly("old"),), fit=Fit(asked=True), options=Inner)
    at_odds = record(name="other", options=Inner, conflicts_with={"old": "both are one"})
    plugin = Plugin(asked, at_odds)
    recipe = read('use = "accumulation"\nsteps = 2', "memory.fit=a10g", 'memory.allow=["old"]', plugin=plugin)
    assert recipe.memory.allow == ("new",)
    assert recipe.notices == (f'--set memory.allow=["old"]: the memory strategy "old" {AGED}. Write "new"',)
    (line,) = refused("", 'memory.strategy=[{use="new"},{use="other"}]', plugin=plugin)
    assert '"other" cannot be used with "new": both are one' in line


def of_a_run(text: str) -> Recipe:
    """The recipe that a run of an older release has kept."""
    write_light(Path("run"), LIGHT.replace('use = "accumulation"\nsteps = 2', text))
    Path("run/identity.json").write_text("{}", encoding="utf-8")
    return read_recipe(Path("run/r.toml"), open_registry(RENAMED))


def test_a_runs_own_recipe_is_understood_for_ever(later: None) -> None:
    recipe = of_a_run('use = "old"\namount = 0.5\nlevel = 3')
    assert options_of(recipe) == Options(share=0.5)
    assert recipe.notices == ()


def test_but_for_what_it_asked_for_and_nobody_can_do_any_more(later: None) -> None:
    with pytest.raises(RecipeError, match=f'"level" {GONE}'):
        of_a_run('use = "new"\nshare = 0.5\nlevel = 4')


def test_what_a_run_keeps_does_not_hold_what_is_deprecated_and_was_not_asked_for() -> None:
    kept = read('use = "new"\nshare = 0.5').strategies[0].table()
    assert kept == {"use": "new", "share": 0.5, "inner": [], "named": {}}
    (asked,) = read_recipe(Path("r.toml"), open_registry(RENAMED), ["memory.strategy.0.level=4"]).strategies
    assert asked.table()["level"] == 4


def test_notices_are_no_part_of_what_a_recipe_is() -> None:
    old = read('use = "new"\namount = 0.5')
    Path("r.toml").write_text(Path("r.toml").read_text(encoding="utf-8").replace("amount", "share"), encoding="utf-8")
    new = read("")
    assert (len(old.notices), len(new.notices)) == (1, 0)
    assert old.to_toml() == new.to_toml()


@pytest.mark.parametrize(
    ("key", "value", "listener"),
    [
        ("log.every", "10", {"use": "metrics", "every": 10}),
        ("log.tracker", '"tensorboard"', {"use": "tracker", "name": "tensorboard"}),
        ("checkpoint.spot", '"aws"', {"use": "spot-notice", "cloud": "aws"}),
    ],
)
def test_keys_of_0_1_are_the_listeners_that_they_became(key: str, value: str, listener: dict[str, object]) -> None:
    table, _, name = key.partition(".")
    write_light(Path(), f"{LIGHT}\n[{table}]\n{name} = {value}\n")
    recipe = read_recipe(Path("r.toml"), open_registry())
    found: Any = recipe.to_toml()["listener"]
    assert any(listener.items() <= one.items() for one in found)
    (notice,) = recipe.notices
    assert notice.startswith(
        f'r.toml:25: [{table}] {name}: "{name}" of [{table}] is deprecated since fitune 0.2 and gone'
    )
    assert f'It is an option of the listener "{listener["use"]}" now: remove it, and add these lines' in notice


def test_and_are_refused_by_0_4(later: None) -> None:
    write_light(Path(), f"{LIGHT}\n[log]\nevery = 10\n")
    with pytest.raises(RecipeError) as error:
        read_recipe(Path("r.toml"), open_registry(), ["checkpoint.spot=aws"])
    assert error.value.lines == (
        '--set checkpoint.spot=aws: "spot" of [checkpoint] is gone since fitune 0.4. It is an option of the listener '
        """"spot-notice" now: give in its place --set 'listener=[{use = "spot-notice", cloud = "aws"}]'""",
        'r.toml:25: [log] every: "every" of [log] is gone since fitune 0.4. It is an option of the listener "metrics" '
        'now: remove it, and add these lines at the end: [[listener]] | use = "metrics" | every = 10',
    )


@pytest.mark.parametrize(
    ("table", "key", "old", "line"),
    [
        (Train, "steps", "[train]\nrounds = 3", "r.toml:22: [train] rounds"),
        (General, "seed", 'rounds = 7\nname = "light"', "r.toml:1: rounds"),
        (Weight, "weight", 'use = "jsonl"\nrounds = 2.0', "r.toml:16: [data.source] rounds"),
        (NewTokens, "add_tokens", 'path = "model"\nrounds = ["<x>"]', "r.toml:6: [model] rounds"),
    ],
)
def test_every_key_of_the_core_may_have_had_another_name(
    table: type, key: str, old: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint = get_type_hints(table, include_extras=True)[key]
    monkeypatch.setitem(table.__annotations__, key, Annotated[hint, formerly("rounds")])
    new = old.replace("rounds", key)
    before = {"Train": "[train]\nsteps = 3", "General": 'name = "light"', "Weight": 'use = "jsonl"',
              "NewTokens": 'path = "model"'}[table.__name__]  # fmt: skip
    write_light(Path(), LIGHT.replace(before, old, 1))
    recipe = read_recipe(Path("r.toml"), open_registry())
    assert recipe.notices == (f'{line}: "rounds" {AGED}. Write "{key}"',)
    Path("r.toml").write_text(LIGHT.replace(before, new, 1), encoding="utf-8")
    assert recipe.to_toml() == read_recipe(Path("r.toml"), open_registry()).to_toml()


def test_the_kit_asserts_it(tmp_path: Path) -> None:
    tables = {"memory": {"strategy": [{"use": "new", "amount": 0.5}]}}
    assert_deprecated(RENAMED, tmp_path / "1", tables, says='Write "share"', removed_in="0.4")
    with pytest.raises(AssertionError, match=r"it is not gone in 0\.5"):
        assert_deprecated(RENAMED, tmp_path / "2", tables, says='Write "share"', removed_in="0.5")
    fine = {"memory": {"strategy": [{"use": "new", "share": 0.5}]}}
    with pytest.raises(AssertionError, match='0 lines have "Write'):
        assert_deprecated(RENAMED, tmp_path / "3", fine, says='Write "share"', removed_in="0.4")
