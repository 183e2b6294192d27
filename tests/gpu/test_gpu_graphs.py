"""On a GPU: what is replayed is what is computed, to the bit; and its memory is what was forecast."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from fitune import Batch, CannotRecord, MemoryStrategy, NoOptions, Plan, Strategy, hookimpl
from fitune.compose.devices import free_memory
from fitune.compose.recorder import CudaRecorder
from fitune.testing import write_recipe, write_tiny_data, write_tiny_model
from fitune.train.loop import train as steps_of
from support.resuming import Stopper, curve, go, stop, weights
from support.states import assert_same
from support.tiny import metrics, parts_of

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
GRAPHS = '{use="cuda-graphs"}'
STEPS, ACCUMULATION = 6, 3
TIMED = ("gpu_memory_peak", "gpu_memory_reserved_peak")


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An item for each replay of a graph."""
    seen: list[int] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(self: torch.cuda.CUDAGraph) -> None:
        seen.append(id(self))
        replay(self)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return seen


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Six steps of three micro-batches, padded to two lengths that cuda-graphs leaves as they are."""
    path = write_recipe(
        tmp_path / "recipe",
        {
            "deterministic": True,
            "model": {"dtype": "bfloat16"},
            "adapter": {"use": "lora", "dropout": 0.3},
            "eval": {"every": 2, "source": [{"use": "jsonl", "path": "held_out.jsonl"}]},
            "data": {"stage": [{"use": "chat"}, {"use": "tokenize"}, {"use": "truncate"},
                               {"use": "pad", "multiple_of": 64}]},
            "train": {"steps": STEPS, "micro_batch": 1, "length": 512},
        },
    )  # fmt: skip
    write_tiny_model(path.parent / "model", dtype="bfloat16")
    write_tiny_data(path.parent / "held_out.jsonl", rows=3)
    rows = [{"messages": [{"role": "user", "content": "?" * n}, {"role": "assistant", "content": "!" * n}]}
            for n in (16, 20, 160, 170)]  # fmt: skip
    (path.parent / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 5), encoding="utf-8")
    return path


def _strategies(*more: str, graphs: bool = True) -> str:
    accumulating = f'{{use="accumulation", steps={ACCUMULATION}}}'
    return f"memory.strategy=[{', '.join([accumulating, *more, *[GRAPHS] * graphs])}]"


def _lines(directory: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMED} for line in curve(directory)]


def _notices(directory: Path) -> list[str]:
    return [line["what"] for line in metrics(directory, "notice") if line.get("kind") == "graphs"]


def _must_be_equal(one: Path, other: Path) -> None:
    for found, expected in zip(_lines(one), _lines(other), strict=True):
        assert found == expected
    assert_same(weights(one), weights(other))


CASES: dict[str, tuple[list[str], list[str]]] = {
    "dropout": ([], []),
    "chunked loss": (['{use="chunked-loss", tokens=64}'], []),
    "float16, whose scale changes": ([], ['model.dtype="float16"']),
    "without masters": ([], ["train.master_weights=false"]),
    "checkpoints": (['{use="gradient-checkpointing"}'], ["adapter.dropout=0.0"]),
    "kept products": (['{use="gradient-checkpointing", keep="products"}'], ["adapter.dropout=0.0"]),
    "tiles": (['{use="tiled-mlp", tokens=64}'], ["adapter.dropout=0.0"]),
    "recomputed": (['{use="recompute-pointwise"}'], []),
    "segments that grow": (['{use="expandable-segments"}'], []),
    "pinned": (['{use="pinned-memory", enabled=true}'], []),
    "not rehearsed": ([], ["memory.rehearse=false"]),
    "all weights": ([], ['adapter={use="none"}']),
    "packed": ([], ['data.stage=[{use="chat"}, {use="tokenize"}, {use="truncate"}, {use="pack"}, {use="pad"}]']),
}


@pytest.mark.parametrize("case", CASES)
def test_it_learns_the_same_to_the_bit(recipe: Path, tmp_path: Path, replays: list[int], case: str) -> None:
    more, overrides = CASES[case]
    go(recipe, _strategies(*more, graphs=False), *overrides, out=tmp_path / "plain")
    assert not replays
    go(recipe, _strategies(*more), *overrides, out=tmp_path / "graphs")
    said = _notices(tmp_path / "graphs")
    if case in ("all weights", "packed"):  # where torch may wait: in an embedding's gradient, or for a mask
        assert replays or said
    else:
        assert not said, said
        assert len(replays) >= STEPS, f"{len(replays)} replays of {STEPS * ACCUMULATION} micro-batches"
        assert 1 <= len(set(replays)) <= 4
    if case in ("packed", "chunked loss"):  # kernels get documents or rows of padding, and may sum in another order
        losses = [[line["loss"] for line in _lines(tmp_path / name)] for name in ("graphs", "plain")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    else:
        _must_be_equal(tmp_path / "graphs", tmp_path / "plain")


def test_checkpoints_with_dropout_are_launched_as_usual(recipe: Path, tmp_path: Path, replays: list[int]) -> None:
    more = '{use="gradient-checkpointing"}'
    go(recipe, _strategies(more, graphs=False), out=tmp_path / "plain")
    go(recipe, _strategies(more), out=tmp_path / "graphs")
    (said,) = _notices(tmp_path / "graphs")
    assert "random numbers" in said
    assert not replays
    _must_be_equal(tmp_path / "graphs", tmp_path / "plain")


@pytest.mark.parametrize("more", [[], ['{use="chunked-loss"}']])
def test_it_goes_on_to_the_same_end(recipe: Path, tmp_path: Path, replays: list[int], more: list[str]) -> None:
    """Also where rows are padded, whose loss and dropout are then the padded ones', replayed or not."""
    stages = 'data.stage=[{use="chat"}, {use="tokenize"}, {use="truncate"}, {use="pad"}]'
    go(recipe, _strategies(*more), stages, out=tmp_path / "plain")
    assert replays
    stop(recipe, tmp_path / "run", 3, _strategies(*more), stages)
    go(tmp_path / "run")
    _must_be_equal(tmp_path / "run", tmp_path / "plain")


class _Waits(Strategy):
    """Waits in each micro-batch, or lets what captures fail."""

    def __init__(self, how: str) -> None:
        self.how = how

    def micro_batch(self, compute: Callable[[Batch], Tensor], recorder: Any) -> Callable[[Batch], Tensor]:
        """Wait behind it, or fail where it is recorded."""

        def waiting(batch: Batch) -> Tensor:
            loss = compute(batch)
            if self.how == "waits":
                loss.item()
            elif torch.cuda.is_current_stream_capturing():
                if self.how == "fails":
                    raise RuntimeError("not while it is recorded")
                torch.cuda.synchronize()
            return loss

        return waiting


class _Plugin:
    def __init__(self, how: str) -> None:
        self.how = how

    @hookimpl
    def ft_memory_strategies(self) -> Iterable[MemoryStrategy[NoOptions]]:
        """Offer it."""
        yield MemoryStrategy(name="waits", summary="Waits", options=NoOptions, make=lambda options: _Waits(self.how))


@pytest.mark.parametrize(("how", "expected"), [
    ("waits", "the host waits"), ("fails", "not while it is recorded"), ("synchronizes", ""),
])  # fmt: skip
def test_what_cannot_be_recorded_is_computed(
    recipe: Path, tmp_path: Path, replays: list[int], how: str, expected: str
) -> None:
    """The strategy behind cuda-graphs is inside of what is recorded."""
    plugin, stopper = _Plugin(how), Stopper()
    base = f'memory.strategy=[{{use="accumulation", steps={ACCUMULATION}}}'
    go(recipe, f"{base}]", out=tmp_path / "plain")
    go(recipe, f'{base}, {GRAPHS}, {{use="waits"}}]', plugins=[plugin, stopper], out=tmp_path / "graphs")
    said = [notice.what for notice in stopper.notices if notice.kind == "graphs"]
    assert len(said) == 1, said
    assert expected in said[0], said
    assert "launched as usual" in said[0]
    assert not replays
    _must_be_equal(tmp_path / "graphs", tmp_path / "plain")
    torch.rand(8, device=CUDA)  # the generator is not left in the midst of a recording
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


# ------------------------------------------------------------------------------------------------------- the recorder
@pytest.fixture
def recorder() -> Iterator[CudaRecorder]:
    """Of a small model."""
    torch.manual_seed(0)
    made = CudaRecorder(nn.Linear(512, 512, device=CUDA), CUDA, length=64)
    yield made
    made.close()


def _dropped(recorder: CudaRecorder, x: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.nn.functional.dropout(recorder.model(x), 0.5).sum()


def test_random_numbers_of_a_replay_are_those_of_a_computation(recorder: CudaRecorder) -> None:
    """And what is drawn elsewhere, between and behind them."""
    x = torch.randn(32, 512, device=CUDA)
    compute = _dropped(recorder, x)
    torch.manual_seed(1)
    expected = [one for _ in range(4) for one in (compute().item(), torch.rand(3, device=CUDA).sum().item())]
    state = torch.cuda.get_rng_state()
    torch.manual_seed(1)
    found = [recorder.apart(compute).item(), torch.rand(3, device=CUDA).sum().item()]
    replay = recorder.record(compute)
    for _ in range(3):
        found += [replay().item(), torch.rand(3, device=CUDA).sum().item()]
    assert found == expected
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_a_recording_that_fails_leaves_all_as_it_was(recorder: CudaRecorder) -> None:
    x = torch.randn(32, 512, device=CUDA)
    compute = _dropped(recorder, x)
    torch.manual_seed(1)
    expected = [compute().item() for _ in range(3)]
    torch.manual_seed(1)
    found = [recorder.apart(compute).item()]
    for wrong, why in ((lambda: compute().item(), "captur"), (lambda: [][0], "list index out of range")) * 2:
        with pytest.raises(CannotRecord, match=why):
            recorder.record(wrong)  # type: ignore[arg-type]
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
    found.append(recorder.apart(compute).item())
    found.append(recorder.record(compute)().item())
    assert found == expected


def test_the_pool_is_given_back(recorder: CudaRecorder) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    size = 64 * 2**20

    def compute() -> Tensor:
        return torch.zeros(size, dtype=torch.uint8, device=CUDA)[:4].float().sum()

    recorder.apart(compute)
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    assert held >= before + size, "what is free in the pool stays there"
    other = torch.zeros(size, dtype=torch.uint8, device=CUDA)
    assert torch.cuda.memory_reserved() >= held + size, "and serves nobody else"
    del other
    replay = recorder.record(compute)
    assert replay().item() == 0
    del replay
    gc.collect()
    recorder.close()
    assert torch.cuda.memory_reserved() <= before + 2**22


def test_memory_that_runs_out_in_the_pool_leaves_the_recorder_at_work(recorder: CudaRecorder) -> None:
    x = torch.randn(32, 512, device=CUDA)
    compute = _dropped(recorder, x)
    everything = torch.cuda.get_device_properties(0).total_memory
    with pytest.raises(torch.OutOfMemoryError):
        recorder.apart(lambda: torch.zeros(2 * everything, dtype=torch.uint8, device=CUDA).sum())
    recorder.apart(compute)
    with pytest.raises(torch.OutOfMemoryError):
        recorder.record(lambda: torch.zeros(2 * everything, dtype=torch.uint8, device=CUDA).sum())
    torch.manual_seed(1)
    expected = recorder.apart(compute).item()
    torch.manual_seed(1)
    assert recorder.record(compute)().item() == expected


def test_what_stays_in_the_pool_drops_what_was_recorded(recorder: CudaRecorder) -> None:
    x, kept = torch.randn(32, 512, device=CUDA), list[Tensor]()
    compute = _dropped(recorder, x)
    recorder.apart(compute)
    recorder.record(compute)
    assert recorder.is_as_recorded()

    def keeping() -> Tensor:
        kept.append(torch.ones(2**20, device=CUDA))
        return compute()

    recorder.apart(keeping)
    assert not recorder.is_as_recorded()
    recorder.record(compute)
    assert recorder.is_as_recorded()
    recorder.model.weight = nn.Parameter(torch.ones(512, 512, device=CUDA))
    assert not recorder.is_as_recorded()


def test_a_composition_that_is_let_go_gives_its_pool_back(recipe: Path, replays: list[int]) -> None:
    """As a run does that goes on with other strategies after memory ran out."""
    free_memory(CUDA)
    before = torch.cuda.memory_reserved()
    parts = parts_of(recipe, _strategies(), "train.micro_batch=8", "deterministic=false", "eval.every=100")
    list(steps_of(parts))
    assert replays
    held = torch.cuda.memory_reserved()
    del parts
    free_memory(CUDA)
    after = torch.cuda.memory_reserved()
    assert after <= before + 2 * 2**20, f"{before} before, {held} while it ran, {after} behind it"


def test_a_strategy_that_waits_for_copies_is_told_beforehand(recipe: Path, tmp_path: Path) -> None:
    strategies = _strategies('{use="gradient-checkpointing"}', '{use="offload-checkpoints"}')
    go(recipe, strategies, "adapter.dropout=0.0", out=tmp_path / "graphs")
    (said,) = _notices(tmp_path / "graphs")
    assert said.startswith("cuda-graphs has no effect: offload-checkpoints")


# ----------------------------------------------------------------------------------------------------------- the memory
def _wide(directory: Path, *, evaluated: bool) -> Path:
    """A Llama of some 0.9 billion parameters, and rows as long as they may be."""
    path = write_recipe(
        directory,
        {
            "model": {"dtype": "bfloat16"},
            "adapter": {"targets": "all-linear", "r": 8},
            "train": {"length": 1024, "micro_batch": 2, "steps": 5},
            **({"eval": {"micro_batch": 4, "source": [{"use": "jsonl", "path": "data.jsonl"}]}} if evaluated else {}),
        },
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=4,
        vocab_size=32768, max_position_embeddings=4096, bos_token_id=None, eos_token_id=257, pad_token_id=258,
    )  # fmt: skip
    with torch.device("cuda"):
        model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(path.parent / "model")
    del model
    row = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!" * 2048}]}
    (path.parent / "data.jsonl").write_text((json.dumps(row) + "\n") * 16, encoding="utf-8")
    return path


def _memory(recipe: Path, out: Path, *overrides: str) -> dict[str, Any]:
    """`memory.json` of a run in a process of its own."""
    sets = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "fitune", "run", str(recipe), "--out", str(out), "--no-third-party", *sets]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    kept: dict[str, Any] = json.loads((out / "memory.json").read_text(encoding="utf-8"))
    assert kept["forecast"]["error"] is None, kept
    assert not _notices(out), _notices(out)
    return kept


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("strategies", [
    [], ["expandable-segments"], ["chunked-loss"], ["chunked-loss", "expandable-segments"],
    ["gradient-checkpointing", "chunked-loss", "expandable-segments"],
])  # fmt: skip
def test_its_memory_is_the_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategies: list[str], evaluated: bool
) -> None:
    """Beside the same without graphs, so that a difference shows whose it is."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    recipe = _wide(tmp_path / "recipe", evaluated=evaluated)
    named = [f'{{use="{name}"}}' for name in strategies]
    found = {}
    for name, graphs in (("plain", False), ("graphs", True)):
        kept = _memory(recipe, tmp_path / name, _strategies(*named, graphs=graphs), "adapter.dropout=0.0")
        forecast, measured = kept["forecast"], kept["measured"]
        found[name] = {
            key: (forecast[key], measured[key], f"{100 * (forecast[key] / measured[key] - 1):+.3f} %")
            for key in ("allocated", "reserved")
        }
        found[name]["context"] = measured["context"]
    print(json.dumps(found, indent=2))
    for key in ("allocated", "reserved"):
        forecast, measured, _ = found["graphs"][key]
        assert forecast == pytest.approx(measured, rel=0.001 if key == "allocated" else 0.01), found


def test_nothing_is_told_of_a_plan_that_waits() -> None:
    """`Plan.unrecorded` is what a run's recorder says."""
    from fitune.compose.recorder import recorder_for

    model = nn.Linear(2, 2, device=CUDA)
    assert recorder_for(model, CUDA, Plan(gpu=True, unrecorded="it waits"), length=8).refused == "it waits"
    assert recorder_for(model, CUDA, Plan(gpu=True), length=8).refused == ""
