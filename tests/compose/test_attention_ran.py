"""Which attention ran is what torch's dispatcher was asked for: in a run's record, whatever strategies do to layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.nn import attention as torch_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from fitune import Batch
from fitune.compose.attention_ran import AttentionRan
from fitune.runs.history.show import as_json, lines, tell
from fitune.runs.record import read_record
from fitune.testing import write_recipe
from support.packed import documents, packed, tiny
from support.tiny import make_batch, metrics, train

ON_CPU = "flash attention on the CPU"
PACKED = 'data.stage=[{use="chat"}, {use="tokenize"}, {use="pack"}]'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe")


def ran(recipe: Path, place: Path, *overrides: str) -> tuple[str, ...]:
    train(recipe, place, "train.steps=2", *overrides)
    record = read_record(place)
    assert record is not None
    return record.attention


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (PACKED,),
        ('memory.strategy=[{use="gradient-checkpointing"}]',),
        ('memory.strategy=[{use="fused-lora"}, {use="chunked-loss"}, {use="fused-rms-norm"}]',),
    ],
    ids=["plain", "packed", "checkpoints", "fused"],
)
def test_of_a_run(recipe: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    assert ran(recipe, tmp_path / "run", *overrides) == (ON_CPU,)


def test_it_is_what_ran_not_what_is_usual(recipe: Path, tmp_path: Path) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        assert ran(recipe, tmp_path / "run") == ("math",)


def test_it_is_shown(recipe: Path, tmp_path: Path) -> None:
    ran(recipe, tmp_path / "run")
    story = tell(tmp_path / "run")
    assert [line.split(maxsplit=1) for line in lines(story) if line.startswith("attention")] == [["attention", ON_CPU]]
    assert as_json(story)["record"]["attention"] == (ON_CPU,)
    assert all("attention" not in line for line in metrics(tmp_path / "run"))


def watched(model: nn.Module, *batches: Batch) -> list[tuple[str, ...]]:
    """What is known after each forward pass."""
    seen, found = AttentionRan(model), []
    for batch in batches:
        with seen.watch(batch):
            model(**batch.inputs())
        found.append(seen.kernels)
    return found


def test_an_attention_of_transformers_is_called_by_its_name() -> None:
    model: Any = tiny("llama")
    model.set_attn_implementation("eager")
    assert watched(model, make_batch([([1, 2, 3], [1, 2, 3])])) == [("eager",)]


def test_each_form_of_rows_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    enable, times = torch._C._autograd._enable_profiler_legacy, list[Any]()

    def counted(config: Any) -> None:
        times.append(config)
        enable(config)

    monkeypatch.setattr(torch._C._autograd, "_enable_profiler_legacy", counted)
    row = make_batch([([1, 2, 3], [1, 2, 3])])
    longer = make_batch([([1] * 9, [1] * 9)])
    watched(model, row, row, longer, longer, packed(documents((4, 5)), 9), row)
    assert len(times) == 3


def test_a_form_that_takes_another_kernel_is_added() -> None:
    """A window makes a mask of rows that are longer, of which another kernel may have to be taken."""
    model, seen = tiny("llama"), None
    seen = AttentionRan(model)
    for tokens, backend in ((3, SDPBackend.FLASH_ATTENTION), (9, SDPBackend.MATH)):
        batch = make_batch([([1] * tokens, [1] * tokens)])
        with seen.watch(batch), sdpa_kernel(backend):
            model(**batch.inputs())
    assert seen.kernels == (ON_CPU, "math")


@pytest.mark.parametrize("operation", ["aten::_scaled_dot_product_flash_attention", "torch_attn::_varlen_attn"])
def test_the_flash_attention_is_named_that_computes_torchs(operation: str) -> None:
    class Handle:
        def remove(self) -> None:
            """Nothing was put anywhere."""

    batch, model = make_batch([([1, 2, 3], [1, 2, 3])]), nn.Linear(2, 2)
    names: list[str] = []
    torch_attention.register_flash_attention_impl("FA3 of a test", register_fn=Handle)
    for implementation in ("FA3 of a test", None):
        if implementation:
            torch_attention.activate_flash_attention_impl(implementation)
        else:
            torch_attention.restore_flash_attention_impl()
        seen = AttentionRan(model)
        with seen.watch(batch), record_function(operation):
            pass
        names.append(*seen.kernels)
    torch_attention._registry._FLASH_ATTENTION_IMPLS.pop("FA3 of a test")
    assert [name.rpartition(" (")[2] for name in names] == ["FA3 of a test)", "FA2)"]


def test_a_profile_of_somebody_else_is_left_alone() -> None:
    model, batch = tiny("llama"), make_batch([([1, 2, 3], [1, 2, 3])])
    seen = AttentionRan(model)
    with torch.autograd.profiler.profile() as profile, seen.watch(batch):
        model(**batch.inputs())
    assert not seen.kernels
    assert any("scaled_dot_product" in event.name for event in profile.function_events)
    with seen.watch(batch):
        model(**batch.inputs())
    assert seen.kernels == (ON_CPU,)


def test_what_fails_leaves_no_profile() -> None:
    seen = AttentionRan(tiny("llama"))
    with pytest.raises(ZeroDivisionError), seen.watch(make_batch([([1], [1])])):
        raise ZeroDivisionError
    assert not torch._C._autograd._profiler_enabled()


def test_a_torch_that_records_nothing_ends_no_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(config: Any) -> None:
        raise TypeError("incompatible function arguments")

    monkeypatch.setattr(torch._C._autograd, "_enable_profiler_legacy", another)
    assert ran(recipe, tmp_path / "run") == ()
    assert not [line for line in lines(tell(tmp_path / "run")) if line.startswith("attention")]
