"""A run's directory is opened to what was trained: at the end, or at a checkpoint; what is not whole is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fitune import Adapter, ModelError, NoOptions, RunError, hookimpl
from fitune.checkpoint.manifest import write_manifest
from fitune.testing import open_registry
from fitune.trained.open import Trained, find, open_base, open_run, with_trained
from support.after_runs import finished, refused

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("opening"), "eval.exact_match=false")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    copy = tmp_path / "run"
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("checkpoints"))
    return copy


def _checkpoint(run: Path, name: str) -> Path:
    place = run / "checkpoints" / name / "adapter"
    shutil.copytree(run / "adapter", place)
    _write_manifest(place.parent)
    return place


def _write_manifest(place: Path) -> None:
    (place / "manifest.json").unlink(missing_ok=True)
    step = place.name.removeprefix("step-")
    write_manifest(place, int(step) if step.isdigit() else 1)


def _find(run: Path, checkpoint: str | None = None) -> Trained:
    return find(run, open_registry(), checkpoint)


def test_the_end_of_a_run_goes_before_its_checkpoints(run: Path) -> None:
    _checkpoint(run, "step-3")
    found = _find(run)
    assert (found.weights, found.checkpoint, found.notices) == (run / "adapter", None, ())
    assert _find(run, "last").weights == run / "checkpoints" / "step-3" / "adapter"


def test_the_best_is_that_of_the_best_evaluation(run: Path) -> None:
    for name, best in (("step-2", None), ("step-4", 2), ("step-6", 2)):
        place = _checkpoint(run, name).parent
        (place / "state.json").write_text(json.dumps({"progress": {"best_step": best}}))
        _write_manifest(place)
    assert _find(run, "best").checkpoint == "step-2"
    for name in ("step-4", "step-6"):
        shutil.rmtree(run / "checkpoints" / name)
    with pytest.raises(RunError, match="nothing was evaluated until step-2, so none is the best"):
        _find(run, "best")


def test_checkpoints_stand_in_the_order_of_their_steps(run: Path) -> None:
    for name in ("step-9", "step-120", "step-30", "by-hand"):
        _checkpoint(run, name)
    (_checkpoint(run, "step-130") / WEIGHTS).unlink()  # not whole
    shutil.copytree(run / "checkpoints" / "step-9", run / "checkpoints" / ".step-140.partial")
    assert _find(run, "last").checkpoint == "step-120"
    assert _find(run, "step-9").checkpoint == "step-9"
    assert _find(run, "by-hand").checkpoint == "by-hand"
    with pytest.raises(RunError, match=r'has no whole checkpoint "step-130"\. Did you mean "step-30"\?'):
        _find(run, "step-130")


def test_a_run_that_has_not_ended_is_opened_at_its_newest_checkpoint(run: Path) -> None:
    _checkpoint(run, "step-2")
    _checkpoint(run, "step-4")
    shutil.rmtree(run / "adapter")
    found = _find(run)
    assert found.checkpoint == "step-4"
    assert found.notices == ("the run has not ended: this is its checkpoint step-4",)


def test_a_damaged_checkpoint_is_named_and_left_out(run: Path) -> None:
    for name in ("step-2", "step-4", "step-6"):
        _checkpoint(run, name)
    file = run / "checkpoints" / "step-6" / "adapter" / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # loads as well as ever
    file.write_bytes(content)
    (run / "checkpoints" / "step-4" / "manifest.json").unlink()
    found = _find(run, "last")
    assert found.checkpoint == "step-2"
    assert [notice.partition(", and left out: ")[0] for notice in found.notices] == [
        "the checkpoint step-6 is damaged",
        "the checkpoint step-4 is damaged",
    ]
    with pytest.raises(RunError, match=r"step-6 is damaged.*adapter_model.*SHA-256 differs\)\. Give another"):
        _find(run, "step-6")


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere is no run's directory: no such directory\. Give a directory that ft"):
        _find(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"it holds no recipe\.toml"):
        _find(run / "adapter")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match=r"it holds a model, which transformers loads as it stands\. Give the run that"):
        _find(tmp_path)
    shutil.rmtree(run / "adapter")
    with pytest.raises(RunError, match="nothing is trained yet: it has neither adapter nor a checkpoint"):
        _find(run)
    assert "nothing is trained yet" in refused("generate", run, "--prompt", "x")


def test_a_pickle_is_refused(run: Path) -> None:
    weights = run / "adapter" / WEIGHTS
    torch.save(load_file(weights), run / "adapter" / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(RunError, match=r"a \.bin file, which may run code and is not read"):
        _find(run)


def test_the_data_need_not_be_there(run: Path) -> None:
    text = (run / "recipe.toml").read_text(encoding="utf-8")
    assert text.count("data.jsonl") == 1
    (run / "recipe.toml").write_text(text.replace("data.jsonl", "gone.jsonl"), encoding="utf-8")
    assert _find(run).recipe.sources[0].options.path.name == "gone.jsonl"


def test_the_opened_model_is_the_trained_one(run: Path) -> None:
    opened = open_run(_find(run))
    saved = load_file(run / "adapter" / WEIGHTS)
    inside = dict(opened.model.named_parameters())
    assert len(saved) == 28
    for name, weight in saved.items():
        assert torch.equal(inside[name.replace(".weight", ".default.weight")], weight)
    assert not any(p.requires_grad for p in inside.values())
    assert not opened.model.training


def test_the_untrained_model_says_what_the_base_says(run: Path) -> None:
    trained = _find(run)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        base, untrained = (m.model(input_ids=ids).logits for m in (open_base(trained), open_run(trained, base=True)))
        adapted = open_run(trained).model(input_ids=ids).logits
    assert torch.equal(base, untrained)
    assert not torch.allclose(base, adapted, atol=0.1)


def _broken(run: Path, change: str) -> None:
    file = run / "adapter" / WEIGHTS
    weights = load_file(file)
    name = sorted(weights)[0]
    if change == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
        return
    weight = weights.pop(name)
    if change == "of another shape":
        weights[name] = weight[:1].contiguous()
    if change == "one more":
        weights |= {name: weight, "more": weight.clone()}
    save_file(weights, file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("truncated", "is damaged, or cannot be read"),
        ("missing", "1 tensors are missing, of another shape, or known to one of them alone, e.g. base_model"),
        ("of another shape", "1 tensors are missing, of another shape"),
        ("one more", "e.g. more"),
    ],
)
def test_a_damaged_adapter_is_refused(run: Path, change: str, says: str) -> None:
    opened = open_base(_find(run))
    _broken(run, change)
    with pytest.raises(ModelError) as raised:
        with_trained(opened)
    assert says in raised.value.message
    assert "\n" not in raised.value.message


def test_what_no_tensor_tells_must_be_as_it_was_trained(run: Path) -> None:
    text = (run / "recipe.toml").read_text(encoding="utf-8")
    (run / "recipe.toml").write_text(text.replace("alpha = 8", "alpha = 16"), encoding="utf-8")
    with pytest.raises(ModelError, match=r"trained with alpha = 8, but the recipe's \[adapter\] says 16"):
        open_run(_find(run))
    (run / "adapter" / "adapter_config.json").write_text("{", encoding="utf-8")
    (run / "adapter" / "manifest.json").unlink()
    write_manifest(run / "adapter", 3)
    with pytest.raises(ModelError, match=r"adapter_config\.json is damaged"):
        open_run(_find(run))


class Unloadable:
    """A plugin: an adapter that can be saved, and no more."""

    @hookimpl
    def ft_adapters(self) -> Iterable[Adapter[NoOptions]]:
        yield Adapter(name="plain", summary="No load", options=NoOptions, attach=lambda o, m: m, save=lambda m, d: None)


def test_an_adapter_without_load_is_named(run: Path) -> None:
    recipe = run / "recipe.toml"
    text = recipe.read_text(encoding="utf-8")
    before, _, rest = text.partition("[adapter]")
    recipe.write_text(f'{before}[adapter]\nuse = "plain"\n\n[memory]{rest.partition("[memory]")[2]}', encoding="utf-8")
    found = find(run, open_registry(Unloadable()))
    with pytest.raises(ModelError, match=r'the adapter "plain" cannot be loaded again: its plugin gives no "load"'):
        open_run(found)


def test_adapter_config_is_plain_json(run: Path) -> None:
    """What the check of settings reads is what peft writes."""
    saved = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (saved["r"], saved["lora_alpha"], saved["peft_type"]) == (4, 8, "LORA")
