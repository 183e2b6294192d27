"""docs/records.md: every public class with all of its fields, as the code has them."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fitune
from support.paths import ROOT
from support.scripts import loaded

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def make() -> ModuleType:
    """docs/make_records.py, as a module."""
    return loaded(DOCS / "make_records.py")


def sections() -> dict[str, str]:
    """The page's parts, by the name that each is of."""
    _, *parts = (DOCS / "records.md").read_text(encoding="utf-8").split("\n### `")
    return dict(part.split("`\n", 1) for part in parts)


def test_it_is_up_to_date(make: ModuleType) -> None:
    assert (DOCS / "records.md").read_text(encoding="utf-8") == make.page(), "run docs/make_records.py"


def test_its_check_sees_a_change(make: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "make_records.py").write_text((DOCS / "make_records.py").read_text(encoding="utf-8"))
    (tmp_path / "records.md").write_text(make.page().replace("`r", "`s", 1))
    command = [sys.executable, str(tmp_path / "make_records.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "out of date" in done.stderr


def test_every_public_dataclass_has_all_of_its_own_fields() -> None:
    found, seen = sections(), 0
    for name in fitune.__all__:
        value = getattr(fitune, name)
        if not inspect.isclass(value) or not dataclasses.is_dataclass(value) or name == "NoOptions":
            continue
        own = [field for field in inspect.get_annotations(value) if not field.startswith("_")]
        missing = [field for field in own if f"\n- `{field}: " not in found[name]]
        assert missing == [], name
        seen += len(own)
    assert seen > 150


def test_a_public_name_that_stands_nowhere_is_an_error(make: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "GROUPS", {heading: names[1:] for heading, names in make.GROUPS.items()})
    with pytest.raises(ValueError, match="ModelLoader"):
        make.page()


def test_methods_properties_and_types_are_there() -> None:
    found = sections()
    assert (
        "- `merge: Callable[[PreTrainedModel, torch.dtype], PreTrainedModel] | None = None`: Gives" in found["Adapter"]
    )
    assert "- `around_step() -> contextlib.AbstractContextManager[None]`: A context" in found["Strategy"]
    assert "- `exact_match: float | None`: Share of exact answers" in found["EvalReport"]
    assert found["Takes"].startswith("\n`Literal['documents', 'pairs', 'labelled']`\n\nWhat an objective learns from")
