"""FlashAttention 3 and 4 by torch's registry, which is given ones of this test's: when they are taken, and proven."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import attention as registry
from torch.nn.attention import _fa4 as untyped_fa4

from fitune import ModelError, Plan
from fitune.compose import flash_attention, model, varlen
from fitune.compose.flash_attention import current, switch, taken
from fitune.memory.allocator.replay import replay
from fitune.memory.cards import cards
from fitune.memory.cards.cards import find_card
from fitune.memory.kernels.scratch import scratch_table
from fitune.memory.trace import run
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune_plugins.speed import flash_attention as plugin
from fitune_plugins.speed.flash_attention import FlashAttention, FlashAttentionOptions
from support.packed import tiny
from support.tiny import parts_of
from support.traces import shapes

torch_fa4: Any = untyped_fa4

PACKED = 'data.stage=[{use="chat"}, {use="tokenize"}, {use="pack"}]'


@dataclass
class Handle:
    """What torch keeps of an implementation that is at work."""

    said: list[str]

    def remove(self) -> None:
        """Say so."""
        self.said.append("removed")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What becomes of an "FA3" that can be activated, and an "FA4" whose package is broken."""
    heard: list[str] = []

    def whole() -> Handle:
        heard.append("activated")
        return Handle(heard)

    def broken() -> None:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    inner: Any = registry._registry
    monkeypatch.setattr(inner, "_FLASH_ATTENTION_IMPLS", {"FA3": whole, "FA4": broken})
    yield heard
    switch("FA2")


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flash-attn-4 that gives more than torch takes, as it does since 2026."""
    package = ModuleType("flash_attn.cute.interface")
    vars(package)["_flash_attn_fwd"] = lambda *given, **named: ("output", "sums", None, None)
    vars(package)["_flash_attn_bwd"] = lambda *given, **named: ("dq", "dk", "dv", None)
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", package)
    monkeypatch.delitem(sys.modules, "fitune.compose.flash_attention_4", raising=False)
    torch_fa4._fa4_import_module.cache_clear()


def test_torch_is_handed_what_it_takes_of_flash_attn_4(newer: None) -> None:
    try:
        assert not switch("FA4")
        taken_by_torch = torch_fa4._fa4_import_module(torch_fa4._FA4_MODULE_PATH)
        assert taken_by_torch._flash_attn_fwd() == ("output", "sums")
        assert taken_by_torch._flash_attn_bwd() == ("dq", "dk", "dv")
    finally:
        switch("FA2")
        sys.modules.pop("fitune.compose.flash_attention_4", None)
        torch_fa4._fa4_import_module.cache_clear()


def test_without_flash_attn_4_it_is_said() -> None:
    assert "flash_attn" in switch("FA4")
    assert current() == "FA2"


@pytest.mark.parametrize(
    ("wanted", "capability", "deterministic", "found"),
    [
        (("FA3", "FA4"), (9, 0), False, "FA3"),
        (("FA3", "FA4"), (10, 0), False, "FA4"),
        (("FA4",), (9, 0), False, "FA4"),
        (("FA3",), (10, 0), False, "FA2"),
        (("FA3", "FA4"), (8, 0), False, "FA2"),
        (("FA3", "FA4"), (12, 0), False, "FA2"),
        (("FA3", "FA4"), (9, 0), True, "FA2"),
        ((), (9, 0), False, "FA2"),
    ],
)
def test_which_is_taken(wanted: tuple[str, ...], capability: tuple[int, int], deterministic: bool, found: str) -> None:
    assert taken(wanted, capability, deterministic=deterministic) == found


def test_it_is_put_in_place_and_taken_out(said: list[str]) -> None:
    assert switch("FA3") == switch("FA3") == ""
    assert (current(), said) == ("FA3", ["activated"])
    assert switch("FA2") == ""
    assert (current(), said) == ("FA2", ["activated", "removed"])


def test_a_broken_package_leaves_torchs_own(said: list[str]) -> None:
    switch("FA3")
    assert "libcudart.so.12" in switch("FA4")
    assert (current(), said) == ("FA2", ["activated", "removed"])


def _plan(
    monkeypatch: pytest.MonkeyPatch, *, wanted: tuple[str, ...], capability: tuple[int, int] = (9, 0), **changes: Any
) -> Plan:
    """What the plan becomes for a model on a card."""
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**changes))
    on_card = SimpleNamespace(device=torch.device("cuda"), config=config)
    monkeypatch.setattr(flash_attention, "unwrapped", lambda given: on_card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    recipe: Any = SimpleNamespace(general=SimpleNamespace(deterministic=changes.pop("deterministic", False)))
    given: Any = on_card
    return flash_attention.put(Plan(flash_attention=wanted), recipe, given)


def test_a_run_takes_what_its_plan_wants(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _plan(monkeypatch, wanted=("FA3",)).notices == ()
    assert current() == "FA3"
    assert _plan(monkeypatch, wanted=()).notices == ()  # the next composition does not
    assert current() == "FA2"
    assert "FA4 is not used: " in _plan(monkeypatch, wanted=("FA4",)).notices[0]
    for refused in ({"deterministic": True}, {"attention_dropout": 0.1}, {"capability": (8, 0)}):
        assert _plan(monkeypatch, wanted=("FA3",), **refused).notices == ()
        assert current() == "FA2"


def test_one_that_is_wrong_on_packed_rows_is_taken_out(
    said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is proven as torch's own is, on a packed row before the run."""
    parts = parts_of(write_recipe(tmp_path / "recipe"), PACKED)
    seen: list[str] = []

    def isolated(inner: Any, whole: Any) -> Any:
        seen.append(current())
        reason = "its results differ" if current() == "FA3" else ""
        return SimpleNamespace(reason=reason)

    monkeypatch.setattr(model, "isolate_documents", isolated)
    monkeypatch.setattr(flash_attention, "put", lambda plan, recipe, model: plan)
    switch("FA3")
    made = parts.run
    plan = model.with_documents_apart(Plan(), made.recipe, (), made.model, parts.run_data.data)
    assert seen == ["FA3", "FA2"]
    assert plan.notices[0] == "FA3 is not used, but torch's own: its results differ"


def test_its_sums_are_not_shared_out(said: list[str]) -> None:
    """Splits would take memory that a forecast does not know, and add in another order."""
    given: list[dict[str, Any]] = []

    def varlen_attn(query: Any, *others: Any, num_splits: int | None = None, **named: Any) -> Any:
        given.append({"num_splits": num_splits})
        return query

    kernel = varlen.kernel_of(varlen_attn)
    heads = torch.empty(4, 2, 8)
    for name in ("FA2", "FA3"):
        switch(name)
        kernel(heads, heads, heads, torch.tensor([0, 4]), 4, scale=1.0, window=None)
    assert given == [{"num_splits": None}, {"num_splits": 1}]


def test_the_strategy_wants_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = FlashAttention(FlashAttentionOptions())
    assert "neither" in strategy.plan(Plan(gpu=True)).notices[0]
    assert "NVIDIA" in strategy.plan(Plan()).notices[0]
    there = ["flash_attn.cute"]
    monkeypatch.setattr(plugin, "_is_there", lambda module: module in there)
    config: Any = tiny("llama").config
    assert strategy.plan(Plan(gpu=True)).flash_attention == ("FA4",)
    assert plugin._suits(config)
    there.append("flash_attn_interface")
    assert strategy.plan(Plan(gpu=True)).flash_attention == ("FA3", "FA4")
    config.attention_dropout = 0.1
    assert not plugin._suits(config)


def test_what_is_installed_is_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """FlashAttention 4 lies in the package of FlashAttention 2, whose import takes seconds."""
    outer = tmp_path / "flash_attn"
    outer.mkdir()
    (outer / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert plugin.installed() == ()
    (outer / "cute").mkdir()
    assert plugin.installed() == ("FA4",)
    (tmp_path / "flash_attn_interface.py").write_text("raise RuntimeError('imported')")
    importlib.invalidate_caches()
    assert plugin.installed() == ("FA3", "FA4")


def test_one_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = FlashAttention(FlashAttentionOptions(implementation="FA3"))
    assert strategy.plan(Plan(gpu=True)).flash_attention == ("FA3",)
    on_card: Any = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(plugin, "unwrapped", lambda given: on_card)
    monkeypatch.setattr(plugin, "has_values", lambda given: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A10G")
    with pytest.raises(ModelError, match="FA3 is not installed"):
        strategy.prepare(on_card)
    monkeypatch.setattr(plugin, "_is_there", lambda module: True)
    with pytest.raises(ModelError, match="NVIDIA A10G does not take FA3"):
        strategy.prepare(on_card)


def test_cards_are_those_of_torchs_registry() -> None:
    assert plugin.MAJORS == flash_attention.MAJORS
    assert set(registry.list_flash_attention_impls()) <= set(plugin.MODULES)


def _scratch(flash: str, size: int, keys: int) -> int:
    """Bytes beside a backward pass, of 1,000 tokens in three documents under eight heads."""
    query, key = (torch.empty(1000, heads, size, device="meta", dtype=torch.bfloat16) for heads in (8, keys))
    ends = torch.empty(4, device="meta", dtype=torch.int32)
    scratch = scratch_table((9, 0), flash=flash.split())["torch_attn._varlen_attn_backward.default"]
    arguments = (query, query, key, key, query, query, ends, ends, 500, 500, True)
    return sum(size for size in scratch(arguments, None) if size > 0)


def test_scratch_by_their_sources() -> None:
    """Two numbers a row and a float32 sum, of rows padded by a block each (64 at heads of 128, 128 at heads of 64)."""
    rows = 4 * 8 * (1024 + 192)
    assert _scratch("FA3", 128, 8) == 2 * rows + 128 * rows + 4 * 8 * 3 * 8
    assert _scratch("FA4", 128, 8) == 2 * rows + 128 * rows
    more = 2 * 4 * 2 * (1024 + 384) * 128
    assert _scratch("FA3", 128, 2) == 2 * rows + 128 * rows + more + 4 * 8 * 3 * 8
    rows = 4 * 8 * (1024 + 384)
    assert _scratch("FA3", 64, 8) == 2 * rows + 64 * rows + 4 * 4 * 3 * 8


@pytest.mark.parametrize(("size", "keys"), [(32, 8), (64, 8), (128, 8), (128, 2), (256, 1)])
def test_where_any_may_be_at_work_the_most_is_taken(size: int, keys: int) -> None:
    each = [_scratch(name, size, keys) for name in ("FA2", "FA3", "FA4")]
    assert len(set(each)) > 1
    assert _scratch("FA2 FA3 FA4", size, keys) == max(each)


def test_a_forecast_for_another_machine_says_what_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [PACKED, 'model.dtype="bfloat16"']
    recipe = read_recipe(write_recipe(tmp_path / "recipe"), open_registry(), asked)
    elsewhere = run.trace(recipe, shapes(recipe), find_card("h100"))
    assert run.ANY_FLASH in elsewhere.notices
    assert run.ANY_FLASH not in run.trace(recipe, shapes(recipe), find_card("a10g")).notices
    monkeypatch.setattr(cards, "local_card", lambda: find_card("h100"))
    here = run.trace(recipe, shapes(recipe), find_card("h100"))
    assert run.ANY_FLASH not in here.notices
    most, known = (replay(one.log.sized(), expandable=False).peak_allocated for one in (elsewhere, here))
    assert most >= known


class _Seen(Exception):
    """What was asked of the scratch of kernels."""


@pytest.mark.parametrize(
    ("card", "more", "flash"),
    [
        ("h100", (), "FA3"),
        ("h100", ("deterministic=true",), "FA2"),
        ("a100-80gb", (), "FA2"),
    ],
)
@pytest.mark.parametrize("here", [True, False])
def test_a_forecast_knows_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, card: str, more: tuple[str, ...], flash: str, here: bool
) -> None:
    """On another machine's card any may be at work that it takes, unless the run is deterministic."""

    def asked(capability: tuple[int, int], **named: Any) -> None:
        raise _Seen(" ".join(named["flash"]))

    monkeypatch.setattr(run, "scratch_table", asked)
    monkeypatch.setattr(cards, "local_card", lambda: find_card(card) if here else None)
    flash = flash if here or flash == "FA2" else "FA2 FA3 FA4"
    strategy = 'memory.strategy=[{use="flash-attention", implementation="FA3"}]'
    recipe = read_recipe(write_recipe(tmp_path / "recipe"), open_registry(), [PACKED, strategy, *more])
    with pytest.raises(_Seen, match=f"^{flash}$"):
        run.trace(recipe, shapes(recipe), find_card(card))
