"""Tokens that a recipe adds: in rows and templates, in the model's tables, trained, kept, merged, and forecast."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import PeftModel
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from fitune import ModelError, RecipeError, RunError, StepReport, added_tokens
from fitune.checkpoint.begin import begun_from
from fitune.compose.parts import Parts, compose
from fitune.compose.step import Step
from fitune.memory.cards.cards import find_card
from fitune.memory.shapes import shapes_of_recipe
from fitune.memory.trace.log import MemoryLog
from fitune.memory.trace.run import trace
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from fitune.testing.tiny import write_tiny_tokenizer
from fitune.train.loop import train
from fitune.train.save import save
from fitune.trained.export.gguf_tokenizer import CONTROL, USER_DEFINED
from fitune.trained.open import find, open_run
from fitune_plugins.adapters.lora import ft_adapters
from fitune_plugins.adapters.lora_tokens import NewRows
from support.after_runs import finished, ft
from support.architectures import recipe_of
from support.gguf_models import bytewise, write
from support.objectives import write_preference_recipe
from support.real_steps import both_logs, events
from support.resuming import go, stop, weights
from support.tiny import losses, parts_of
from support.tiny import train as train_run

ADDED: dict[str, Any] = {"add_tokens": ["Count", "<tool>"], "add_special_tokens": ["<|mark|>"]}
IDS = torch.tensor([[5, 259, 7, 260, 261, 9, 258, 259]])
(LORA,) = ft_adapters()
HOW = 'model={use="hf", path="model", dtype="float32", add_tokens=["Count", "<tool>"], add_special_tokens=["<|mark|>"]}'


def _logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids).logits
    return found


def _is_tied(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.fixture(params=[False, True], ids=["apart", "tied"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A recipe that adds three tokens; its model has 260 rows, of which the tokenizer has 259."""
    path = write_recipe(tmp_path / "recipe", {"model": ADDED})
    if request.param:
        place = path.parent / "model"
        model: Any = AutoModelForCausalLM.from_pretrained(place)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        model.save_pretrained(place)
    return path


def _base(recipe: Path, tokens: int) -> Any:
    """The base as plain transformers has it, with rows for so many tokens."""
    model: Any = AutoModelForCausalLM.from_pretrained(recipe.parent / "model")
    model.resize_token_embeddings(tokens, pad_to_multiple_of=4)
    return model


def test_rows_hold_them_and_the_model_begins_with_means(recipe: Path) -> None:
    parts = parts_of(recipe)
    base: Any = AutoModelForCausalLM.from_pretrained(recipe.parent / "model")
    tokenizer: Any = parts.run.tokenizer
    assert tokenizer.convert_tokens_to_ids(["Count", "<tool>", "<|mark|>"]) == [259, 260, 261]
    text = "a<tool>b Count<|mark|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == "a<tool>b Count"
    assert (parts.examples[0].input_ids == 259).sum() == 1
    assert any(
        "tokens: 3 added (259 to 261): embeddings and head grow from 260 to 264 rows" in t for t in parts.run.told
    )
    inner: Any = parts.run.model.get_base_model()  # type: ignore[operator]
    assert added_tokens(parts.run.model) == (259, 260, 261)
    assert inner.config.vocab_size == 264
    for name in ("embed_tokens", "lm_head"):
        (mine,) = (m for n, m in inner.named_modules() if n.endswith(name))
        (weight,) = (m.weight for n, m in base.named_modules() if n.endswith(name))
        mean = weight[:259].double().mean(0).float()
        torch.testing.assert_close(mine.original_module.weight[259:], mean.expand(5, -1), rtol=0, atol=0)
    known = IDS[:, [0, 2, 5, 6]]
    torch.testing.assert_close(_logits(parts.run.model, known)[..., :259], _logits(base, known)[..., :259])


def test_they_train_and_plain_peft_loads_them(recipe: Path) -> None:
    parts = parts_of(recipe, "train.learning_rate=0.02")
    inner: Any = parts.run.model.get_base_model()  # type: ignore[operator]
    tied = _is_tied(AutoModelForCausalLM.from_pretrained(recipe.parent / "model"))
    trained = [n for n, p in parts.run.model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert len(trained) == (1 if tied else 2)
    before = {n: p.detach().clone() for n, p in inner.named_parameters() if "lora_" not in n and not p.requires_grad}
    first = _logits(parts.run.model)
    list(train(parts))
    after = _logits(parts.run.model)
    assert (after - first).abs().max() > 0.1
    assert all(torch.equal(value, dict(inner.named_parameters())[name]) for name, value in before.items())
    directory = save(parts)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        loaded = PeftModel.from_pretrained(_base(recipe, len(tokenizer)), str(directory))
    torch.testing.assert_close(_logits(loaded)[..., :262], after[..., :262])  # what is beyond belongs to no token
    assert [m for m in loaded.modules() if isinstance(m, TrainableTokensLayer)]
    rows = {n: t for n, t in load_file(directory / "adapter_model.safetensors").items() if "lora_" not in n}
    assert [tuple(t.shape) for t in rows.values()] == [(3, 32)] * len(trained)
    assert LORA.off is not None
    with LORA.off(parts.run.model):
        torch.testing.assert_close(_logits(parts.run.model), first)


@pytest.mark.parametrize("loss", ["", '{use="chunked-loss", tokens=7}'])
def test_their_gradients_are_those_of_pefts(recipe: Path, loss: str) -> None:
    """Which makes the whole tables anew."""
    found = []
    kinds: tuple[type[TrainableTokensLayer], ...] = (NewRows, TrainableTokensLayer)
    for kind in kinds:
        parts = parts_of(recipe, f"memory.strategy=[{loss}]", 'adapter.targets="all-linear"')
        for module in parts.run.model.modules():
            if isinstance(module, TrainableTokensLayer):
                module.__class__ = kind
        found.append(_gradients(parts.step, parts.run.model, parts.make_batches, parts.examples))
    own, pefts = found
    assert own.keys() == pefts.keys()
    assert any("trainable_tokens" in name and value.abs().max() > 1e-3 for name, value in own.items())
    for name, value in own.items():
        torch.testing.assert_close(value, pefts[name], rtol=1e-4, atol=1e-5)


def _gradients(step: Step, model: nn.Module, make: Any, examples: Any) -> dict[str, Tensor]:
    """Of a batch with rows that hold the tokens, at weights that are not the first."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.05 * torch.randn_like(parameter))
    (batch,) = make([[examples[0], examples[3]]])
    step.loss(model, batch).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def test_ids_that_are_not_in_a_row(tmp_path: Path) -> None:
    """As a tokenizer may give them: each is found, and no other is changed."""
    parts = parts_of(write_recipe(tmp_path, {"model": ADDED}))
    layers: list[Any] = [m for m in parts.run.model.modules() if isinstance(m, NewRows)]
    for layer in layers:
        layer.token_indices["default"] = [3, 100, 101]
        layer.new_ids = torch.tensor([3, 100, 101])
        layer.trainable_tokens_original["default"] = layer.get_base_layer().weight[[3, 100, 101]].detach()
        nn.init.normal_(layer.trainable_tokens_delta["default"], std=0.1)
    ids = torch.tensor([[3, 99, 100, 101, 102, 2, 200]])
    own = _logits(parts.run.model, ids)
    for layer in layers:
        layer.__class__ = TrainableTokensLayer
    torch.testing.assert_close(own, _logits(parts.run.model, ids))


@pytest.mark.parametrize(
    "adapter",
    [
        '{use="lora", modules_to_save=["embed_tokens"]}',
        '{use="lora", init="pissa", r=2}',
        '{use="lora", dora=true, dtype="float32"}',
        '{use="none"}',
    ],
)
def test_a_run_is_opened_merged_and_gone_on_from(recipe: Path, tmp_path: Path, adapter: str) -> None:
    run = tmp_path / "run"
    done = train_run(recipe, run, f"adapter={adapter}", "train.learning_rate=0.01")
    after = _logits(done.model)
    torch.testing.assert_close(_logits(open_run(find(run, open_registry())).model), after, rtol=1e-4, atol=1e-4)
    ft("merge", run, "--to", tmp_path / "merged", "--dtype", "float32")  # which compares logits
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert _is_tied(merged) == _is_tied(AutoModelForCausalLM.from_pretrained(recipe.parent / "model"))
    torch.testing.assert_close(_logits(merged), after, rtol=1e-4, atol=1e-4)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == 262
    again = _logits(parts_of_from(recipe, run, adapter).run.model)
    torch.testing.assert_close(again, after, rtol=1e-4, atol=1e-4)


def parts_of_from(recipe: Path, run: Path, adapter: str) -> Parts:
    """A run that begins with what another has trained."""
    asked = read_recipe(recipe, open_registry(), [f"adapter={adapter[:-1]}, from='{run}'}}"])
    return compose(asked, recipe.parent / "run", start=begun_from(asked))


def test_it_goes_on_from_the_same_tokens_alone(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"model": ADDED})
    train_run(recipe, tmp_path / "run")
    turned = ['model.add_tokens=["<tool>", "Count"]', f"adapter.from='{tmp_path / 'run'}'"]
    said = r'with \[model\] add_tokens = \["Count", "<tool>"\], and here it is \["<tool>", "Count"\]. Give it the same'
    with pytest.raises(RunError, match=said):
        begun_from(read_recipe(recipe, open_registry(), turned))
    with pytest.raises(
        ModelError, match=r"it has the rows of tokens 259 to 261, and \[model\] add_tokens adds 259 to 260"
    ):
        open_run(find(tmp_path / "run", open_registry(), overrides=["model.add_special_tokens=[]"]))


def test_a_run_that_is_stopped_goes_on_to_the_bit(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"model": ADDED, "deterministic": True, "adapter": {"dropout": 0.2}})
    how = ("train.steps=5", "train.learning_rate=0.02")
    train_run(recipe, tmp_path / "whole", *how)
    stop(recipe, tmp_path / "run", 2, *how)
    go(tmp_path / "run")
    whole, own = (weights(tmp_path / run) for run in ("whole", "run"))
    assert all(map(torch.equal, whole, own))


def test_answers_and_the_card(tmp_path: Path) -> None:
    run = finished(tmp_path, model=ADDED)
    out, _ = ft("generate", run, "--prompt", "Count to 2.", "--max-new-tokens", "4")
    assert out.strip()
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "base.resize_token_embeddings(" in card
    assert '"<tool>"' in (run / "recipe.toml").read_text(encoding="utf-8")


def test_what_the_tokenizer_knows_stays(tmp_path: Path) -> None:
    parts = parts_of(write_recipe(tmp_path, {"model": {"add_tokens": ["<|end|>", "a"]}}))
    assert added_tokens(parts.run.model) == ()
    assert sum("is known to the tokenizer already, and stays what it was" in told for told in parts.run.told) == 2
    assert not [n for n, p in parts.run.model.named_parameters() if p.requires_grad and "lora_" not in n]


@pytest.mark.parametrize("strategy", ["gradient-checkpointing", "fused-lora", "muon", "chunked-loss"])
def test_strategies_know_them(recipe: Path, tmp_path: Path, strategy: str) -> None:
    how = ["train.steps=4", "train.learning_rate=0.005"]
    train_run(recipe, tmp_path / "run", *how, f'memory.strategy=[{{use="{strategy}"}}]')
    train_run(recipe, tmp_path / "plain", *how)
    assert losses(tmp_path / "run") == pytest.approx(
        losses(tmp_path / "plain"), rel=0.2 if strategy == "muon" else 1e-4
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("strategy", ["", '{use="chunked-loss"}'])
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_what_is_traced_is_what_is_done(tmp_path: Path, tied: bool, strategy: str, adapter: str) -> None:
    recipe_of(tmp_path, "llama", length=32, changes={"tie_word_embeddings": tied, "vocab_size": 260})
    write_tiny_tokenizer(tmp_path / "model")
    overrides = [f"memory.strategy=[{strategy}]", 'model.add_tokens=["<a>", "<b>"]', f'adapter={{use="{adapter}"}}']
    read = read_recipe(tmp_path / "recipe.toml", open_registry(), overrides)
    forecast, real = both_logs(read)
    assert events(forecast) == events(real)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"add_tokens": "<tool>"}, '"add_tokens" is "<tool>". It takes: array of strings'),
        ({"add_tokens": [3]}, '"add_tokens" is [3]. It takes: array of strings'),
        ({"add_tokens": ["<a>", "<a>"]}, 'add_tokens: "add_tokens" holds "<a>" twice. Keep one of them'),
        (
            {"add_tokens": ["<a>"], "add_special_tokens": ["<a>"]},
            '"add_special_tokens" holds "<a>" beside "add_tokens"',
        ),
        ({"add_special_tokens": [" "]}, '"add_special_tokens" holds " ", which no text shows'),
    ],
)
def test_what_is_no_token_is_refused(tmp_path: Path, model: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(write_recipe(tmp_path, {"model": model}), open_registry())
    assert said in str(caught.value)


def test_what_cannot_have_them_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, {"model": ADDED})
    with pytest.raises(RecipeError, match='tokens are added, whose rows in the embeddings "ia3" does not train'):
        read_recipe(path, open_registry(), ['adapter={use="ia3"}'])
    with pytest.raises(
        ModelError, match=r'the rows of new tokens train in "lm_head", which can have no adapter beside'
    ):
        parts_of(path, 'adapter.targets=["q_proj", "lm_head"]')
    with pytest.raises(ModelError, match="host-embeddings"):
        parts_of(path, 'memory.strategy=[{use="host-embeddings"}]')


def test_beside_four_bits(tmp_path: Path) -> None:
    """Whose tables stay as they are: what is merged is what was trained."""
    recipe = write_recipe(tmp_path / "recipe", {"model": {**ADDED, "dtype": "bfloat16"}})
    run = tmp_path / "run"
    done = train_run(recipe, run, 'memory.strategy=[{use="nf4"}]', "train.learning_rate=0.02")
    after = _logits(done.model)
    torch.testing.assert_close(_logits(open_run(find(run, open_registry())).model), after)
    ft("merge", run, "--to", tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.vocab_size == 264


def test_a_model_that_gives_scores(tmp_path: Path) -> None:
    """It has no output head: the rows of the embeddings train alone."""
    path = write_preference_recipe(tmp_path, {"model": ADDED})
    parts = parts_of(path, 'objective={use="reward"}')
    rows = [n for n, p in parts.run.model.named_parameters() if p.requires_grad and "trainable_tokens" in n]
    assert added_tokens(parts.run.model) == (259, 260, 261)
    assert [name.split(".token_adapter")[0].rpartition(".")[2] for name in rows] == ["embed_tokens"]
    assert [report.loss for report in train(parts) if isinstance(report, StepReport)]


def test_a_gguf_file_has_them(tmp_path: Path) -> None:
    model = write(tmp_path / "llama", "llama, tied", bytewise("smollm"))
    run = finished(tmp_path, "eval.exact_match=false", model={**ADDED, "path": str(model)})
    ft("export", run, "--to", "gguf", "--type", "q8_0")  # which makes tokens of the rows by the file, and compares
    fields = gguf.GGUFReader(run / "export" / "gguf-q8_0" / "tiny-q8_0.gguf").fields
    words, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    found = {word: kind for word, kind in zip(words, kinds, strict=True) if word in ("<tool>", "<|mark|>")}
    assert found == {"<tool>": USER_DEFINED, "<|mark|>": CONTROL}


def test_the_larger_tables_are_there_beside_the_old_ones_for_a_moment(tmp_path: Path) -> None:
    recipe_of(tmp_path, "llama", length=32, changes={"tie_word_embeddings": False, "vocab_size": 260})
    write_tiny_tokenizer(tmp_path / "model")
    logs = []
    for tokens in ([], ["<a>", "<b>"]):
        read = read_recipe(tmp_path / "recipe.toml", open_registry(), [f"model.add_tokens={tokens}"])
        found = trace(read, shapes_of_recipe(read, 2), find_card("a10g"))
        logs.append([event for event, phase in _of_load(found.log) if phase == "load"])
    plain, grown = logs
    table = 2 * found.config.hidden_size  # bytes of a row
    assert grown[: len(plain)] != plain
    assert [size for size in grown if abs(size) == 264 * table] == [264 * table] * 2
    assert [size for size in grown if size == -260 * table] == [-260 * table] * 2


def _of_load(log: MemoryLog) -> Iterator[tuple[int, str]]:
    """Bytes that are taken and given back, each with its block's phase."""
    for number in log.events:
        block = log.blocks[abs(number) - 1]
        yield (block.bytes if number > 0 else -block.bytes), block.phase
