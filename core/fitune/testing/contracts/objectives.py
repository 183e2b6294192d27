"""What every objective must keep to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fitune.plugin.dataflow import Takes
from fitune.plugin.records import Objective
from fitune.testing.contracts.trial import Options, Trial, losses, must_go_on_to_the_bit

ROUNDING = 1e-4
"""By how much losses may differ, relative, where a step is cut into other micro-batches."""

ROWS = 12


def _pair(number: int) -> Mapping[str, object]:
    return {
        "prompt": "ab" * (number % 3 + 1),
        "chosen": "yes " * (1 + number % 4),
        "rejected": "no " * (1 + number % 3),
    }


def _judged(number: int) -> Mapping[str, object]:
    row = _pair(number)
    return {
        "prompt": row["prompt"],
        "completion": row["rejected" if number % 2 else "chosen"],
        "label": number % 2 == 0,
    }


ROW = {"pairs": _pair, "labelled": _judged}
STAGE: Mapping[Takes, str] = {"documents": "chat", "pairs": "preferences", "labelled": "preferences"}


def objective_keeps_its_contract(
    plugin: object, name: str, directory: Path, options: Options, *, by_batch: bool = False
) -> None:
    """Raise `AssertionError`, which says what of the contract is broken."""
    record = Trial(plugin=plugin, directory=directory).find(Objective, name)
    changes: dict[str, object] = {"objective": {"use": name, **options}}
    if record.takes in ROW:
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"{record.takes}.jsonl"
        file.write_text("".join(json.dumps(ROW[record.takes](n)) + "\n" for n in range(ROWS)), encoding="utf-8")
        stages = [{"use": STAGE[record.takes]}, {"use": "chat"}]
        changes["data"] = {"source": [{"use": "jsonl", "path": str(file)}], "stage": stages}
    trial = Trial(plugin=plugin, directory=directory, changes=changes)
    whole = must_go_on_to_the_bit(trial)
    _measures_what_it_names(record, trial, whole)
    if not by_batch:
        _is_a_sum_over_units(trial)
    trial.forecast()


def _is_a_sum_over_units(trial: Trial) -> None:
    """Cut a step's rows into micro-batches in two ways."""
    cut, uncut = ({"steps": 4, "micro_batch": n, "accumulation": 2 // n, "length": 128} for n in (1, 2))
    found, wanted = losses(trial.ran("cut", {"train": cut})), losses(trial.ran("uncut", {"train": uncut}))
    off = max(abs(one - other) / max(abs(other), 1e-6) for one, other in zip(found, wanted, strict=True))
    assert off <= ROUNDING, (
        f"losses depend on how a step is cut into micro-batches, by {off:.2g}: {found} in place of {wanted}. The loss "
        "must be a sum over `units`. If rows of a micro-batch share something by intent, test with by_batch=True"
    )


def _measures_what_it_names(record: Objective[object], trial: Trial, run: Path) -> None:
    named = set(record.make(trial.read("read").objective.options).measures)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    told = {key for line in lines if line["event"] == "step" for key in line}
    assert named <= told, f"it names a measure that no step tells: {', '.join(sorted(named - told))}"
