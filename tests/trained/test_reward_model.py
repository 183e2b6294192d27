"""A reward model from end to end: trained, gone on with, evaluated, saved, merged; transformers gives its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fitune import Adapter, FtError, PluginError, Run
from fitune.testing import open_registry
from fitune.trained.evaluate import evaluate, find_to_evaluate
from fitune.trained.open import find, open_run
from support.after_runs import ft, refused
from support.resuming import curve, go, stop, weights
from support.states import assert_same
from support.tiny import metrics, train

PAIRS = [
    {"prompt": "ab" * (n % 3 + 1), "chosen": "yes " * (1 + n % 2), "rejected": "no " * (1 + n % 3)} for n in range(12)
]
SETTINGS = (
    'objective={use="reward"}', "train.length=128", "train.steps=8", "train.learning_rate=1e-2", "eval.fraction=0.25",
)  # fmt: skip
WHOLE = ('adapter={use="none"}', "train.learning_rate=3e-3")
TEXTS = ("<|user|>ab<|end|>yes yes", "<|user|>abab<|end|>no")
KINDS = {
    "lora": (),
    "dora": ("adapter.dora=true", "adapter.dropout=0.2"),
    "nf4": ('memory.strategy=[{use="nf4"}]', 'model.dtype="bfloat16"'),
    "whole": WHOLE,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe, with pairs for its data."""
    from fitune.testing import write_recipe

    path = write_recipe(tmp_path_factory.mktemp("reward"))
    (path.parent / "data.jsonl").write_text("\n".join(map(json.dumps, PAIRS)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(recipe: Path) -> dict[str, Run]:
    """A run of each kind, which the tests share."""
    return {kind: train(recipe, recipe.parent / kind, *SETTINGS, *more) for kind, more in KINDS.items()}


def scores(model: Any, tokenizer: Any) -> Tensor:
    """Of texts, a batch with padding."""
    given = tokenizer(list(TEXTS), return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        found: Tensor = model.eval()(**given).logits.float()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_is_evaluated_as_it_was_trained(kind: str, runs: dict[str, Run]) -> None:
    directory = runs[kind].directory
    before, after = metrics(directory, "evaluation")
    assert after["loss"] < before["loss"]
    assert after["accuracy"] == 1
    assert after["margin"] > before["margin"]
    assert "log_probs/chosen" not in after
    for base, line in ((False, after), (True, before)):
        again = evaluate(find_to_evaluate(directory, open_registry()), base=base)
        assert again.loss == pytest.approx(line["loss"], rel=1e-5)
        assert again.metrics["accuracy"] == line["accuracy"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own question
def test_plain_peft_loads_the_adapter(runs: dict[str, Run], recipe: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(runs["lora"].directory / "adapter")
    load: Any = AutoModelForSequenceClassification.from_pretrained
    base = load(recipe.parent / "model", num_labels=1, pad_token_id=tokenizer.pad_token_id)
    plain = PeftModel.from_pretrained(base, str(runs["lora"].directory / "adapter"))
    ours = open_run(find(runs["lora"].directory, open_registry())).model
    found = scores(plain, tokenizer)
    torch.testing.assert_close(found, scores(ours, tokenizer), rtol=1e-5, atol=1e-6)
    assert found.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_loads_what_is_merged(kind: str, runs: dict[str, Run], tmp_path: Path) -> None:
    directory = runs[kind].directory
    out, _ = ft("merge", directory, "--to", tmp_path / "merged", "--dtype", "float32")
    assert "scores   differ by" in out
    figures = json.loads((tmp_path / "merged" / "parity.json").read_text(encoding="utf-8"))
    assert figures["wrong"] is None
    assert figures["of_texts"]
    assert figures["positions"] == 2 * figures["rows"]
    after = metrics(directory, "evaluation")[-1]
    assert figures["loss_merged"] == pytest.approx(
        after["loss"], rel=1e-4 if kind in ("lora", "dora", "whole") else 0.05
    )
    load: Any = AutoModelForSequenceClassification.from_pretrained
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "merged")
    plain = load(tmp_path / "merged")
    assert plain.config.num_labels == 1
    ours = open_run(find(directory, open_registry())).model
    close = 1e-4 if kind != "nf4" else 0.05
    torch.testing.assert_close(scores(plain, tokenizer), scores(ours, tokenizer), rtol=close, atol=close)
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForSequenceClassification.from_pretrained(" in card
    assert "ft generate" not in card


def test_what_is_trained_whole_is_a_plain_model_at_once(runs: dict[str, Run]) -> None:
    directory = runs["whole"].directory / "model"
    load: Any = AutoModelForSequenceClassification.from_pretrained
    plain, tokenizer = load(directory), AutoTokenizer.from_pretrained(directory)
    ours = open_run(find(runs["whole"].directory, open_registry())).model
    torch.testing.assert_close(scores(plain, tokenizer), scores(ours, tokenizer))


def test_trained_whole_it_goes_on_to_the_bit(recipe: Path, tmp_path: Path) -> None:
    asked = (*SETTINGS, *WHOLE)
    go(recipe, *asked, out=tmp_path / "whole")
    stop(recipe, tmp_path / "parted", 3, *asked)
    go(tmp_path / "parted")
    assert curve(tmp_path / "parted") == curve(tmp_path / "whole")
    assert_same(weights(tmp_path / "parted"), weights(tmp_path / "whole"))


def test_another_run_goes_on_with_its_adapter_and_head(runs: dict[str, Run], recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "more", *SETTINGS, f"adapter.from={runs['lora'].directory}")
    begun = metrics(tmp_path / "more", "evaluation")[0]
    assert begun["loss"] == pytest.approx(metrics(runs["lora"].directory, "evaluation")[-1]["loss"], rel=1e-5)


def test_what_writes_no_text_is_asked_for_none(runs: dict[str, Run], recipe: Path, tmp_path: Path) -> None:
    directory = runs["lora"].directory
    for command in (
        ("generate", directory, "--prompt", "a"),
        ("export", directory, "--to", "gguf", "--out", tmp_path / "gguf"),
    ):
        assert "writes no text" in refused(*command), command
    with pytest.raises(FtError, match='"exact_match" is true'):
        train(recipe, tmp_path / "run", *SETTINGS, "eval.exact_match=true")


def test_the_head_is_no_target_of_low_rank_adapters(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(FtError, match='"score" is new, and trains whole'):
        train(recipe, tmp_path / "run", *SETTINGS, 'adapter.targets=["q_proj", "score"]')


def test_sft_cannot_go_on_with_a_head(runs: dict[str, Run], recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(FtError, match="is not of this recipe's"):
        train(recipe, tmp_path / "run", "objective={use='simpo'}", f"adapter.from={runs['lora'].directory}")


def test_an_adapter_that_leaves_the_head_alone_is_refused(recipe: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from fitune.compose.model import begun, built, converted
    from fitune.recipe.reader import read_recipe

    read = read_recipe(recipe, open_registry(), SETTINGS)
    record: Adapter[Any] = read.adapter.record

    def attach(options: Any, model: Any) -> Any:
        return record.attach(options, model).requires_grad_(False)

    changed = replace(read, adapter=replace(read.adapter, record=replace(record, attach=attach)))
    with pytest.raises(PluginError, match='the adapter "lora" does not train "score"'):
        begun(changed, converted(changed, built(changed)), None)
