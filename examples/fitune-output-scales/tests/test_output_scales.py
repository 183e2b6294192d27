"""`output-scales` keeps the contract of adapters, on plain and on checkpointed models, and says what it cannot do."""

from pathlib import Path
from typing import Any

import fitune_output_scales
import pytest

from fitune import ModelError, RecipeError, run
from fitune.testing import assert_adapter, open_registry, write_recipe


@pytest.mark.parametrize("options", [{}, {"targets": ["o_proj", "lm_head"]}])
def test_it_keeps_its_contract(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_adapter(fitune_output_scales, "output-scales", tmp_path, options)


def test_preferences_are_learnt_beside_the_model_without_it(tmp_path: Path) -> None:
    rows = (
        '{"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}\n{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n'
    )
    changes: dict[str, object] = {
        "adapter": {"use": "output-scales"},
        "objective": {"use": "dpo", "reference": "adapter-off"},
        "data": {
            "source": [{"use": "jsonl", "path": "pairs.jsonl"}],
            "stage": [{"use": "preferences"}, {"use": "chat"}],
        },
        "train": {"steps": 1},
    }
    recipe = write_recipe(tmp_path / "recipe", changes)
    (recipe.parent / "pairs.jsonl").write_text(rows, encoding="utf-8")
    directory = run(recipe, tmp_path / "run", registry=open_registry(fitune_output_scales))
    assert (directory / "adapter" / fitune_output_scales.FILE).is_file()


@pytest.mark.parametrize(
    ("targets", "error", "told"),
    [(["nothing"], ModelError, "no linear layer called nothing"), ([], RecipeError, '"targets" names no layer')],
)
def test_targets_that_are_not_there_are_said(
    tmp_path: Path, targets: list[str], error: type[Exception], told: str
) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"adapter": {"use": "output-scales", "targets": targets}})
    with pytest.raises(error, match=told):
        run(recipe, tmp_path / "run", registry=open_registry(fitune_output_scales))
