"""What trains: float32 masters, sums of gradients, clipping."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import fitune.compose.optimizer
from fitune import ModelError, RunError
from fitune.compose.optimizer import Trainables
from fitune.testing import write_recipe, write_tiny_model
from support.tiny import parts_of, train


def _model(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(dtype)


def _gather(trainables: Trainables, *gradients: list[Tensor]) -> None:
    for gradient in gradients:
        for parameter, one in zip(trainables.parameters, gradient, strict=True):
            if parameter.grad is None:
                parameter.grad = one.to(parameter.dtype, copy=True)
            else:
                parameter.grad += one
        trainables.gather()


def test_masters_are_float32_copies_of_lower_precision() -> None:
    model: Any = _model()
    model[1].float()
    model[0].bias.requires_grad_(False)
    trainables = Trainables(model, masters=True)
    assert trainables.parameters == [model[0].weight, model[1].weight, model[1].bias]
    weight, *others = trainables.masters
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model[0].weight.float())
    assert others[0] is model[1].weight  # float32 needs no second copy
    assert others[1] is model[1].bias


def test_masters_off() -> None:
    model = _model()
    trainables = Trainables(model, masters=False)
    assert all(m is p for m, p in zip(trainables.masters, trainables.parameters, strict=True))


def test_nothing_trains() -> None:
    with pytest.raises(ModelError, match="no parameter of the model trains"):
        Trainables(_model().requires_grad_(False), masters=True)


@pytest.mark.parametrize("masters", [True, False])
def test_small_updates_survive_with_masters_alone(masters: bool) -> None:
    """1 + 2**-10 is 1 in bfloat16, so a hundred such updates are lost one by one; as a sum they are not."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    trainables = Trainables(model, masters=masters)
    optimizer = torch.optim.SGD(trainables.masters, lr=2**-10)
    for _ in range(100):
        _gather(trainables, [-torch.ones(1, 1)])
        trainables.finish(1, 0.0)
        optimizer.step()
        trainables.publish()
    assert model.weight.item() == (pytest.approx(1 + 100 * 2**-10, rel=2**-8) if masters else 1.0)


@pytest.mark.parametrize("masters", [True, False])
def test_gradients_sum_in_float32_with_masters(masters: bool) -> None:
    trainables = Trainables(nn.Linear(1, 1, bias=False, dtype=torch.bfloat16), masters=masters)
    _gather(trainables, [torch.full((1, 1), 256.0)], *[[torch.ones(1, 1)] for _ in range(8)])
    gradient = trainables.masters[0].grad
    assert gradient is not None
    assert gradient.item() == (264.0 if masters else 256.0)  # 256 + 1 is 256 in bfloat16
    if masters:
        assert trainables.parameters[0].grad is None  # freed after each micro-batch


def test_gradients_are_added_in_lists_of_equal_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of columns too, as LoRA's B has them in fast layers: torch adds lists whose strides differ tensor by tensor."""
    model = nn.ParameterList(
        nn.Parameter(one.to(torch.bfloat16)) for one in (torch.randn(8, 3), torch.randn(5, 4).t(), torch.randn(6))
    )
    trainables = Trainables(model, masters=True)
    seen: list[bool] = []
    for name in ("_foreach_copy_", "_foreach_add_"):
        whole = getattr(torch, name)

        def kept(left: list[Tensor], right: list[Tensor], whole: Any = whole) -> Any:
            seen.extend(one.stride() == other.stride() for one, other in zip(left, right, strict=True))
            return whole(left, right)

        monkeypatch.setattr(torch, name, kept)
    gradients = [torch.randn_like(p) for p in trainables.parameters]  # with the parameters' strides
    for _ in range(2):
        for parameter, gradient in zip(trainables.parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        trainables.gather()
    assert seen == [True] * 6
    for master, gradient in zip(trainables.masters, gradients, strict=True):
        torch.testing.assert_close(cast(Tensor, master.grad), 2 * gradient.float())


@pytest.mark.parametrize("max_norm", [0.0, 0.1, 1e6])
def test_clipping_is_that_of_torch(max_norm: float) -> None:
    model, random = _model(torch.float32), torch.Generator().manual_seed(3)
    trainables = Trainables(model, masters=True)
    gradients = [torch.randn(p.shape, generator=random) for p in model.parameters()]
    _gather(trainables, gradients)
    norm = trainables.finish(7, max_norm)
    found = [cast(Tensor, p.grad).clone() for p in trainables.masters]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient / 7
    expected = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm or float("inf"))
    torch.testing.assert_close(norm, expected)
    for one, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


def test_the_mean_is_exact_without_masters() -> None:
    """1 / 3 in bfloat16 is off by 0.2 %: the scale is taken in float32 even where gradients are not."""
    trainables = Trainables(nn.Linear(64, 64, bias=False, dtype=torch.bfloat16), masters=False)
    gradient = torch.full((64, 64), 3.0)
    _gather(trainables, [gradient])
    norm = trainables.finish(3, 0.0)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(64.0, rel=1e-6)
    assert torch.equal(cast(Tensor, trainables.masters[0].grad), torch.ones(64, 64, dtype=torch.bfloat16))


def test_publishing_updates_the_model_and_frees_gradients() -> None:
    model = _model()
    trainables = Trainables(model, masters=True)
    _gather(trainables, [torch.ones(p.shape) for p in trainables.parameters])
    with torch.no_grad():
        for master in trainables.masters:
            master.add_(1.0)
    trainables.publish()
    for parameter, master in zip(trainables.parameters, trainables.masters, strict=True):
        assert torch.equal(parameter, master.to(torch.bfloat16))
        assert master.grad is None
        assert parameter.grad is None


def test_a_process_without_a_micro_batch_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, of which this one had no row: its gradients are the other's, in buckets of whole tensors."""
    monkeypatch.setattr(fitune.compose.optimizer, "REDUCE_ELEMENTS", 10)
    trainables, sizes = Trainables(_model(), masters=True), []

    class Two:
        num_processes = 2

    class Work:
        def wait(self) -> None:
            """It was done at once."""

    def all_reduce(flat: Tensor, async_op: bool) -> Work:
        assert async_op
        assert not flat.any()
        sizes.append(flat.numel())
        flat += torch.arange(flat.numel()).view_as(flat)
        return Work()

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    trainables.reduce(cast(Accelerator, Two()))
    assert sizes == [12, 9, 2]  # one larger than the bucket goes alone; 3 + 6 share one
    found = [cast(Tensor, m.grad).flatten().tolist() for m in trainables.masters]
    assert found == [list(range(12)), [0, 1, 2], list(range(3, 9)), [0, 1]]


def test_gradients_in_columns_are_summed_in_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As their masters lie, in every process: one that had no row has zeros, and others' places must be the same."""
    weights = [torch.randn(3, 4).t(), torch.randn(2, 3)]
    trainables = Trainables(nn.ParameterList(nn.Parameter(one) for one in weights), masters=True)
    gradients = [torch.arange(12.0).view(3, 4).t(), torch.arange(6.0).view(2, 3)]
    trainables.masters[0].grad, trainables.masters[1].grad = (one.clone() for one in gradients)
    sent: list[Tensor] = []

    class Two:
        num_processes = 2

    class Work:
        def wait(self) -> None:
            """It was done at once."""

    def all_reduce(flat: Tensor, async_op: bool) -> Work:
        sent.append(flat.clone())
        flat *= 2
        return Work()

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    trainables.reduce(cast(Accelerator, Two()))
    (flat,) = sent
    assert flat.tolist() == [*range(12), *range(6)]  # columns as they lie, then rows
    for master, gradient in zip(trainables.masters, gradients, strict=True):
        assert torch.equal(cast(Tensor, master.grad), 2 * gradient)


@pytest.mark.parametrize(("master_weights", "dtype"), [("true", torch.float32), ("false", torch.bfloat16)])
def test_the_optimizer_works_on_masters(tmp_path: Path, master_weights: str, dtype: torch.dtype) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"model": {"dtype": "bfloat16"}})
    parts = parts_of(recipe, f"train.master_weights={master_weights}")
    assert {p.dtype for p in parts.step.trainables.parameters} == {torch.bfloat16}
    assert {p.dtype for group in parts.step.optimizer.param_groups for p in group["params"]} == {dtype}


def test_norms_and_biases_are_not_decayed(recipe_path: Path) -> None:
    groups = parts_of(recipe_path, 'adapter={use="none"}', "train.weight_decay=0.3").step.optimizer.param_groups
    assert [{p.ndim for p in group["params"]} for group in groups] == [{2}, {1}]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    """Every step after it would only hide it."""
    recipe = write_recipe(tmp_path / "recipe")
    model: Any = write_tiny_model(recipe.parent / "model") / "model.safetensors"
    from safetensors.torch import load_file, save_file

    weights = load_file(model)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, model, metadata={"format": "pt"})
    with pytest.raises(RunError, match="step 1: the loss is nan and its gradient's norm nan"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()


def _many(count: int = 7) -> nn.ModuleList:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(5, 3 + number) for number in range(count)]).to(torch.bfloat16)
    model[0].float()  # which has no masters of its own
    return model


@pytest.mark.parametrize("together", [1, 30, 10**6])
def test_gradients_that_are_kept_are_the_same_to_the_bit(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are added in one go, and also where some have none in a step."""
    monkeypatch.setattr(fitune.compose.optimizer, "ADDED_TOGETHER", together)
    found: list[list[Tensor]] = []
    for keep in (False, True):
        trainables = Trainables(_many(), masters=True)
        trainables.keep = keep
        optimizer = torch.optim.AdamW(trainables.masters, lr=0.1)
        torch.manual_seed(1)
        places = set()
        for step in range(3):
            trainables.begin()
            for _ in range(3):
                for number, parameter in enumerate(trainables.parameters):
                    if (number + step) % 4:
                        new = torch.randn(parameter.shape).to(parameter.dtype)
                        parameter.grad = new if parameter.grad is None else parameter.grad.add_(new)
                trainables.gather()
            places.add(tuple(m.grad.data_ptr() for m in trainables.masters if m.grad is not None))
            trainables.finish(7, 1.0)
            optimizer.step()
            trainables.publish()
        if keep:
            assert len(places) == 1, "they stay where they are"
            assert all(m.grad is not None and not m.grad.any() for m in trainables.masters)
        else:
            assert all(m.grad is None for m in trainables.masters)
        found.append([m.detach().clone() for m in trainables.masters])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_gradients_that_are_kept_come_back_where_somebody_has_dropped_them() -> None:
    trainables = Trainables(_model(), masters=True)
    trainables.keep = True
    trainables.begin()
    kept = [m.grad for m in trainables.masters]
    _gather(trainables, [torch.ones(3, 4), torch.ones(3), torch.ones(2, 3), torch.ones(2)])
    for master in trainables.masters:
        master.grad = None
    trainables.begin()
    for master, one in zip(trainables.masters, kept, strict=True):
        assert one is not None
        assert master.grad is one
        assert not one.any()
    _gather(trainables, [torch.ones(3, 4), torch.ones(3), torch.ones(2, 3), torch.ones(2)])
    trainables.parameters[0].grad = torch.ones(3, 4, dtype=torch.bfloat16)
    trainables.leave()
    assert [p.grad for p in trainables.parameters[:1]] == [None]
    assert all(one is not None and one.eq(1).all() for one in kept), "what was gathered is not touched"
    trainables.drop()
    assert all(one is not None and not one.any() for one in kept)
