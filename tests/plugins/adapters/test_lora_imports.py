"""What is imported to put an adapter on a model, which each start waits for."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from fitune_plugins.adapters.lora_imports import without_bitsandbytes

RUN = """
import sys
from fitune.cli.main import main
main(["run", {recipe!r}, "--out", {out!r}])
print("imported:", *(name for name in ("bitsandbytes", "torch._inductor.compile_fx") if name in sys.modules))
"""


def test_a_run_without_quantised_layers_imports_neither_bitsandbytes_nor_the_compiler(
    recipe_path: Path, tmp_path: Path
) -> None:
    code = RUN.format(recipe=str(recipe_path), out=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "imported:"


def test_peft_finds_it_again_afterwards() -> None:
    pytest.importorskip("bitsandbytes")
    code = (
        "import sys\n"
        "from fitune_plugins.adapters.lora_imports import without_bitsandbytes\n"
        "with without_bitsandbytes():\n"
        "    import peft.import_utils as found\n"
        "    assert not found.is_bnb_available() and not found.is_bnb_4bit_available()\n"
        "assert found.is_bnb_available() and found.is_bnb_4bit_available()\n"
        "with without_bitsandbytes():\n"
        "    assert found.is_bnb_available()  # it is imported by now\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    with contextlib.suppress(RuntimeError), without_bitsandbytes():
        assert "bitsandbytes" in sys.modules
        raise RuntimeError("what peft may raise")
    assert "bitsandbytes" not in sys.modules
