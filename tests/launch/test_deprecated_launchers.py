"""A launcher and its options under names that they had: told where they are given, understood where a run kept them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from fitune import Formerly, JobStatus, Launcher, Machine, PluginError, RecipeError, hookimpl
from fitune.launch.settings import again, choose
from fitune.plugin import deprecation
from fitune.plugin.registry import Registry
from fitune.testing import open_registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where it is."""

    place: Annotated[str, Formerly(name="host", since="0.1", removed_in="0.4")]
    """The machine."""


class Plugin:
    """Offers a launcher that sends nothing."""

    @hookimpl
    def ft_launchers(self) -> Iterator[Launcher[Options]]:
        """Offer it."""
        yield Launcher(
            name="there",
            summary="For a test",
            options=Options,
            machine=lambda options, name: Machine(name="there"),
            prepare=lambda options, job: (),
            submit=lambda options, job: None,
            status=lambda options, name: JobStatus(name=name, state="absent"),
            logs=lambda options, name: (),
            stop=lambda options, name: None,
            fetch=lambda options, name, directory: None,
            formerly=(Formerly(name="yonder", since="0.1", removed_in="0.4"),),
        )


AGED = "is deprecated since fitune 0.1 and gone in 0.4"


@pytest.fixture
def ours() -> Registry:
    return open_registry(Plugin())


def test_it_is_told_by_what_was_typed(ours: Registry) -> None:
    chosen = choose(ours, "yonder", ("host=a",))
    assert (chosen.launcher.name, chosen.options.place) == ("there", "a")
    assert chosen.notices == (
        f'--on yonder: the launcher "yonder" {AGED}. Write "there"',
        f'--option: there.host: "host" {AGED}. Write "place"',
    )
    assert choose(ours, "there", ("place=a",)).notices == ()


def test_settings_may_have_its_old_name(ours: Registry, tmp_path: Path) -> None:
    file = tmp_path / "launch.toml"
    file.write_text('[yonder]\nhost = "a"\n', encoding="utf-8")
    chosen = choose(ours, "there", (), file)
    assert chosen.options.place == "a"
    assert chosen.notices == (
        f'{file}: [yonder]: the launcher "yonder" {AGED}. Write "there"',
        f'{file}: there.host: "host" {AGED}. Write "place"',
    )


def test_a_later_release_refuses_both(ours: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecation, "__version__", "0.4")
    with pytest.raises(PluginError, match=r'the launcher "yonder" is gone since fitune 0\.4\. Write "there"'):
        choose(ours, "yonder", ("place=a",))
    with pytest.raises(RecipeError, match=r'--option: there\.host: "host" is gone since fitune 0\.4\. Write "place"'):
        choose(ours, "there", ("host=a",))


@pytest.mark.parametrize("version", ["0.1", "0.4"])
def test_what_a_run_has_kept_is_understood_for_ever(
    ours: Registry, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deprecation, "__version__", version)
    kept: dict[str, Any] = {"host": "a"}
    chosen = again(ours, "yonder", kept)
    assert (chosen.launcher.name, chosen.options.place, chosen.notices) == ("there", "a", ())
