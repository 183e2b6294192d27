"""docs/preference.md names every objective and what it has; keys of TRL that it translates are TRL's."""

from __future__ import annotations

import dataclasses
import importlib
import re

import pytest

from fitune import Objective
from fitune.testing import open_registry
from support.paths import ROOT

TEXT = (ROOT / "docs" / "preference.md").read_text(encoding="utf-8")
OBJECTIVES = [p.record for p in open_registry().provided if isinstance(p.record, Objective)]
COMPARING = [record for record in OBJECTIVES if record.takes != "documents"]

CONFIGS = {
    "trl.trainer.dpo_config:DPOConfig": (
        "loss_type", "loss_weights", "beta", "label_smoothing", "precompute_ref_log_probs", "max_length",
        "truncation_mode", "padding_free", "disable_dropout", "sync_ref_model", "f_divergence_type", "use_weighting",
        "ld_alpha", "per_device_train_batch_size", "gradient_accumulation_steps",
    ),
    "trl.trainer.kto_config:KTOConfig": ("desirable_weight", "undesirable_weight"),
    "trl.experimental.orpo:ORPOConfig": ("beta",),
    "trl.experimental.cpo:CPOConfig": ("cpo_alpha", "loss_type", "simpo_gamma", "label_smoothing"),
}  # fmt: skip
"""Keys that the page translates, by the configuration that has them."""


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("record", COMPARING, ids=lambda record: record.name)
def test_when_to_use_each_objective(record: Objective[object]) -> None:
    assert f"`{record.name}`" in section("Which method when")


@pytest.mark.parametrize("record", COMPARING, ids=lambda record: record.name)
def test_every_option_of_an_objective_has_its_key_elsewhere(record: Objective[object]) -> None:
    told = section("From TRL")
    for field in dataclasses.fields(record.options):  # type: ignore[arg-type]
        assert re.search(rf"`{field.name}\b", told), (record.name, field.name)


@pytest.mark.parametrize("title", ["From TRL", "From axolotl"])
def test_what_a_table_says_of_this_side_is_there(title: str) -> None:
    options = {field.name for record in OBJECTIVES for field in dataclasses.fields(record.options)}
    names = {record.name for record in OBJECTIVES}
    used = set(re.findall(r'use = "(\w+)"', section(title)))
    assert used <= {*names, "preferences", "chat", "..."}
    rows = [line.split("|")[2] for line in section(title).splitlines() if line.startswith("| `")]
    keys = {key for row in rows for key in re.findall(r"`([a-z_]+)(?: = [^`]+)?`", row)}
    beside = {"use", "reference", "dropout", "lora", "truncate", "policy", "accumulation", "cpo_alpha"}
    columns = {"prompt", "chosen", "rejected", "completion", "label"}
    assert keys <= options | names | beside | columns
    assert len(keys & options) >= 5


@pytest.mark.parametrize("place", CONFIGS)
def test_keys_of_trl_are_its_own(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    pytest.importorskip("trl")
    module, _, name = place.partition(":")
    config = getattr(importlib.import_module(module), name)
    known = {field.name for field in dataclasses.fields(config)}
    told = section("From TRL")
    for key in CONFIGS[place]:
        assert key in known
        assert key in told
