"""What every data source and data stage must keep to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fitune.data.streams import KINDS
from fitune.errors import FtError
from fitune.plugin.dataflow import Flow, Origin
from fitune.plugin.records import DataStage
from fitune.testing.contracts.trial import Options, Trial, must_not_fail

WITH_ORIGIN = KINDS.keys() - {"batches"}
"""Streams whose items know where they come from."""

BEFORE: Mapping[Flow, tuple[str, ...]] = {"documents": ("chat",), "examples": ("chat", "tokenize")}
"""Stages of a tiny recipe in front of one that takes this; the others are put in by themselves."""

BEHIND: Mapping[Flow, tuple[str, ...]] = {"conversations": ("chat",), "preferences": ("chat",)}
"""Those behind one that gives this."""


def source_keeps_its_contract(
    plugin: object, name: str, directory: Path, options: Options, damaged: Options | None
) -> None:
    """Raise `AssertionError`, which says what of the contract is broken."""
    trial = _trial(plugin, name, directory, options, source=True)
    record = trial.find(DataStage, name)
    assert record.takes == "nothing", f'a source takes "nothing", this one takes "{record.takes}"'
    rows = _twice(trial, _use(trial, name, source=True), ())
    assert rows, "it gives no row"
    places = [str(row.origin) for row in rows]
    assert len(set(places)) == len(places), f"two rows have the same origin: {_first_twice(places)}"
    for row in rows:
        assert isinstance(row.values, Mapping), f"{row.origin}: the values of a row are no mapping: {row.values!r}"
        assert all(isinstance(key, str) for key in row.values), f"{row.origin}: its columns have no names"
    if record.fingerprint is not None:
        given, tell = _use(trial, name, source=True).options, record.fingerprint
        assert must_not_fail("fingerprint fails", lambda: tell(given)) == tell(given), "its fingerprint changes"
    if damaged is not None:
        _refuses(_trial(plugin, name, directory, damaged, source=True), name)


def stage_keeps_its_contract(
    plugin: object, name: str, directory: Path, options: Options, given: Iterable[object] | None
) -> None:
    """Raise `AssertionError`, which says what of the contract is broken."""
    trial = _trial(plugin, name, directory, options, source=False)
    record = trial.find(DataStage, name)
    assert record.takes != "nothing", "it takes nothing: it is a source"
    stream = list(_sample(trial, record.takes, name) if given is None else given)
    assert stream, "there is nothing to try it on"
    made = _twice(trial, _use(trial, name, source=False), stream)
    assert made, "it gives nothing"
    empty = _make(trial, _use(trial, name, source=False), ())
    assert not empty, f"of nothing it makes {len(empty)}"
    if given is None:
        trial.ran("run")


def _trial(plugin: object, name: str, directory: Path, options: Options, *, source: bool) -> Trial:
    table = {"use": name, **options}
    if source:
        return Trial(plugin=plugin, directory=directory, changes={"data": {"source": [table]}})
    record = Trial(plugin=plugin, directory=directory).find(DataStage, name)
    before, behind = (
        [{"use": use} for use in uses] for uses in (BEFORE.get(record.takes, ()), BEHIND.get(record.gives, ()))
    )
    return Trial(plugin=plugin, directory=directory, changes={"data": {"stage": [*before, table, *behind]}})


def _use(trial: Trial, name: str, *, source: bool) -> Any:
    recipe = trial.read("read")
    return next(use for use in (recipe.sources if source else recipe.stages) if use.record.name == name)


def _make(trial: Trial, use: Any, stream: Iterable[object]) -> list[Any]:
    """All that it gives, each of what it says that it gives."""
    context = _context(trial)
    kind, has_origin = KINDS[use.record.gives], use.record.gives in WITH_ORIGIN

    def made() -> list[Any]:
        return list(use.record.make(use.options, context)(_fed(use, stream)))

    found: list[Any] = must_not_fail("it fails", made)
    for item in found:
        assert isinstance(item, kind), f'it says that it gives "{use.record.gives}", and gives a {type(item).__name__}'
        origin = getattr(item, "origin", None)
        assert not has_origin or (isinstance(origin, Origin) and origin.file), f"what it gives has no origin: {item!r}"
    return found


def _fed(use: Any, stream: Iterable[Any]) -> Iterator[Any]:
    """The stream as it comes to a stage: where batches are made of it, the examples of each in a list."""
    items = list(stream)
    return iter([items] if use.record.gives == "batches" and items else items)


def _twice(trial: Trial, use: Any, stream: Iterable[object]) -> list[Any]:
    found, again = _make(trial, use, stream), _make(trial, use, stream)
    assert list(map(_words, found)) == list(map(_words, again)), "it gives something else at each reading"
    return found


def _context(trial: Trial) -> Any:
    from fitune.data.prepare import context_of
    from fitune.data.tokenizer import tokenizer_of

    recipe = trial.read("context", {"data": {}})
    return context_of(recipe, tokenizer_of(recipe))


def _sample(trial: Trial, takes: Flow, name: str) -> Iterable[object]:
    """What comes to it in a tiny recipe, by way of the stages in front of it."""
    recipe = trial.read("sample")
    stream: Iterable[Any] = ()
    for use in (*recipe.sources[:1], *recipe.stages):
        if use.record.name == name and use.record.takes == takes:
            return list(stream)
        stream = list(use.record.make(use.options, _context(trial))(_fed(use, stream)))
    raise AssertionError(f'nothing in a tiny recipe gives what it takes, "{takes}": give some of it (`given`)')


def _refuses(trial: Trial, name: str) -> None:
    try:
        use = _use(trial, name, source=True)
        rows = list(use.record.make(use.options, _context(trial))(iter(())))
    except FtError:
        return
    except AssertionError as error:
        if isinstance(error.__cause__, FtError):  # its check found it
            return
        raise
    except Exception as error:
        raise AssertionError(f"damaged data are a {type(error).__name__}, not a DataError: {error}") from error
    raise AssertionError(f"damaged data pass as {len(rows)} rows, without an error")


def _words(item: Any) -> str:
    return repr(dataclasses.asdict(item) if dataclasses.is_dataclass(item) and not isinstance(item, type) else item)


def _first_twice(places: list[str]) -> str:
    return next(place for number, place in enumerate(places) if place in places[:number])
