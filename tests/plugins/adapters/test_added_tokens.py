"""Tokens that a recipe adds: in rows and in the model's tables, trained, computed as peft does, and forecast."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fitune import (
    Adapter,
    ModelError,
    NoOptions,
    PluginError,
    RecipeError,
    added_tokens,
    hookimpl,
)
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
from fitune_plugins.adapters.lora import ft_adapters
from fitune_plugins.adapters.lora_tokens import NewRows
from support.added_tokens import ADDED, IDS, is_tied, logits_of, write_adding
from support.architectures import recipe_of
from support.real_steps import both_logs, events
from support.tiny import parts_of

(LORA,) = ft_adapters()


@pytest.fixture(params=[False, True], ids=["apart", "tied"])
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A recipe that adds three tokens."""
    return write_adding(tmp_path / "recipe", tied=request.param)


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
    torch.testing.assert_close(logits_of(parts.run.model, known)[..., :259], logits_of(base, known)[..., :259])


def test_they_train_and_plain_peft_loads_them(recipe: Path) -> None:
    parts = parts_of(recipe, "train.learning_rate=0.02")
    inner: Any = parts.run.model.get_base_model()  # type: ignore[operator]
    tied = is_tied(AutoModelForCausalLM.from_pretrained(recipe.parent / "model"))
    trained = [n for n, p in parts.run.model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert len(trained) == (1 if tied else 2)
    before = {n: p.detach().clone() for n, p in inner.named_parameters() if "lora_" not in n and not p.requires_grad}
    first = logits_of(parts.run.model)
    list(train(parts))
    after = logits_of(parts.run.model)
    assert (after - first).abs().max() > 0.1
    assert all(torch.equal(value, dict(inner.named_parameters())[name]) for name, value in before.items())
    directory = save(parts)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        loaded = PeftModel.from_pretrained(_base(recipe, len(tokenizer)), str(directory))
    torch.testing.assert_close(logits_of(loaded)[..., :262], after[..., :262])  # what is beyond belongs to no token
    assert [m for m in loaded.modules() if isinstance(m, TrainableTokensLayer)]
    rows = {n: t for n, t in load_file(directory / "adapter_model.safetensors").items() if "lora_" not in n}
    assert [tuple(t.shape) for t in rows.values()] == [(3, 32)] * len(trained)
    assert LORA.off is not None
    with LORA.off(parts.run.model):
        torch.testing.assert_close(logits_of(parts.run.model), first)


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
    own = logits_of(parts.run.model, ids)
    for layer in layers:
        layer.__class__ = TrainableTokensLayer
    torch.testing.assert_close(own, logits_of(parts.run.model, ids))


def test_what_the_tokenizer_knows_stays(tmp_path: Path) -> None:
    parts = parts_of(write_recipe(tmp_path, {"model": {"add_tokens": ["<|end|>", "a"]}}))
    assert added_tokens(parts.run.model) == ()
    assert sum("is known to the tokenizer already, and stays what it was" in told for told in parts.run.told) == 2
    assert not [n for n, p in parts.run.model.named_parameters() if p.requires_grad and "lora_" not in n]


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


class NoRows:
    """A plugin: adapter `no-rows`, which knows nothing of new tokens."""

    @hookimpl
    def ft_adapters(self) -> Iterable[Adapter[NoOptions]]:
        """Offer it."""
        yield Adapter(name="no-rows", summary="Trains norms", options=NoOptions, attach=_norms, save=_nothing)


def _norms(options: NoOptions, model: PreTrainedModel) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    return model


def _nothing(model: PreTrainedModel, directory: Path) -> None:
    """Save nothing."""


def test_an_adapter_that_does_not_train_them_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, {"model": ADDED})
    with pytest.raises(PluginError, match=r'"no-rows" does not train the rows of the tokens that \[model\] adds'):
        parts_of(path, 'adapter={use="no-rows"}', plugins=[NoRows()])
    assert parts_of(
        path, 'adapter={use="no-rows"}', "model.add_tokens=[]", "model.add_special_tokens=[]", plugins=[NoRows()]
    )
