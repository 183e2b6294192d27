"""`ft explain-oom`: explanations of messages made of forecasts, and of the founding case's."""

from __future__ import annotations

import io
import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from fitune.cli.main import main
from fitune.errors import RunError
from fitune.memory.allocator.allocator import GRANULE
from fitune.memory.forecast import Forecast
from fitune.memory.levers import Remedies
from fitune.memory.oom import explain as explaining
from fitune.memory.oom.explain import Explanation, explain
from fitune.memory.oom.failure import Failure, run_out
from fitune.memory.oom.message import Figure, read_message
from fitune.memory.oom.report import as_json, lines
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry
from support.cuda_messages import GIB, MIB
from support.oom_forecast import text_of, traced_of, write_many_rows
from support.paths import ROOT

FOUNDING = ("memory.strategy=[]", "memory.fast=false", "adapter.r=8", "adapter.alpha=16")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_many_rows(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def traced(path: Path) -> Forecast:
    return traced_of(path)


# -------------------------------------------------------------------------------------------------------- explaining


@pytest.fixture
def _untreated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without remedies, each of which is traced."""
    monkeypatch.setattr(explaining, "remedies", lambda plant: Remedies())


def explained(path: Path, text: str, *overrides: str, gpu: str | None = None) -> Explanation:
    registry = open_registry()
    recipe = read_recipe(path, registry, overrides)
    return explain(recipe, registry, read_message(text), overrides=overrides, gpu=gpu)


@pytest.mark.usefixtures("_untreated")
def test_others_use_is_said_where_the_run_would_fit(path: Path) -> None:
    text = (
        "CUDA out of memory. Tried to allocate 34.00 MiB. GPU 0 has a total capacity of 22.06 GiB of which 12.00 MiB "
        "is free. Process 7 has 20.50 GiB memory in use. Including non-PyTorch memory, this process has 1.55 GiB "
        "memory in use. Of the allocated memory 21.00 MiB is allocated by PyTorch, and 1.20 GiB is reserved by "
        "PyTorch but unallocated."
    )
    found = explained(path, text)
    assert found.failure is None
    printed = list(lines(found))
    assert printed[1].endswith("and 20.50 GiB of other processes (message): 1.23 GiB for the run")
    assert "  other processes use 20.50 GiB of the card (message): end them, or plan without" in printed
    assert any("1.20 GiB were reserved, but held by no tensor (message)" in line for line in printed)
    assert not any("changes that make this recipe fit" in line for line in printed)


@pytest.mark.usefixtures("_untreated")
def test_a_run_that_was_another_one(path: Path) -> None:
    text = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 22.06 GiB of which 1.00 GiB is "
        "free. Including non-PyTorch memory, this process has 21.06 GiB memory in use. Of the allocated memory 20.00 "
        "GiB is allocated by PyTorch, and 10.00 MiB is reserved by PyTorch but unallocated."
    )
    printed = list(lines(explained(path, text)))
    assert "this recipe gets through on this card (forecast), and never fails at 2.00 GiB" in printed
    assert any("tensors took 20.00 GiB (message), 172.42 MiB are the most that is forecast" in line for line in printed)
    assert any("1.05 GiB in use are not torch's allocator's (message)" in line for line in printed)
    assert any("no run that is easily mistaken for it" in line for line in printed)


@pytest.mark.usefixtures("_untreated")
def test_a_mistaken_number_of_rows_is_found(path: Path, traced: Forecast) -> None:
    failure = run_out(traced.trace.log, 146 * MIB, expandable=False)
    assert failure is not None
    found = explained(path, text_of(failure), "train.micro_batch=16", gpu="a10g")
    assert found.sighting is None
    assert found.variants[0].override == "train.micro_batch=64"
    assert found.variants[0].sighting.failure.block.shape == failure.block.shape
    assert any(line.startswith("  --set train.micro_batch=64: 4 times the tokens") for line in lines(found))


@pytest.mark.usefixtures("_untreated")
def test_figures_that_cannot_be(path: Path) -> None:
    text = "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 300.00 MiB of which 0 bytes"
    with pytest.raises(RunError, match="leave no memory for the run"):
        explained(path, text, gpu="a10g")


@pytest.mark.usefixtures("_untreated")
def test_the_founding_case() -> None:
    """No tensor of that recipe is 172 MiB: a float32 weight of the MLP is, and an activation of 8192 tokens."""
    text = (
        "CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a total capacity of 22.30 GiB of which 122.00 MiB "
        "is free. Including non-PyTorch memory, this process has 22.18 GiB memory in use."
    )
    found = explained(ROOT / "recipes" / "deepseek7b_g5.toml", text, *FOUNDING)
    assert found.card.name == "A10G"
    assert found.message.missing == Figure(bytes=50 * MIB, error=2 * 5243)
    assert found.sighting is None
    assert found.failure is not None
    assert (found.failure.block.phase, found.failure.asked) == ("loss", 800 * MIB)
    assert found.missing == pytest.approx(
        2.40 * GIB, abs=0.1 * GIB
    )  # 23.894 allocated, measured, with adapters in fp32
    assert [(v.override, v.sighting.failure.block.phase) for v in found.variants] == [
        ("model.dtype=float32", "load"),
        ("train.micro_batch=4", "forward"),
    ]
    for variant in found.variants:
        assert variant.sighting.failure.asked == 172 * MIB
        assert abs(variant.sighting.failure.free - 122 * MIB) <= GRANULE
    weight, activation = (variant.sighting.failure.block for variant in found.variants)
    assert (weight.shape, weight.dtype) == ((4096, 11008), "float32")
    assert (activation.bytes, activation.dtype) == (4 * 2048 * 11008 * 2, "bfloat16")
    assert activation.module.startswith("model.layers.7.mlp")


# ------------------------------------------------------------------------------------------------------ command line


def golden(failure: Failure, traced: Forecast) -> str:
    """How the text begins, on a card with 194 MiB for the run."""
    free, needed = failure.free / MIB, traced.needed / MIB
    return f"""\
torch asked for 34.00 MiB with {free:.2f} MiB free: {34 - free:.2f} MiB were missing (message)
card     A10G, 706.00 MiB less 512.00 MiB of context (message): 194.00 MiB for the run
recipe   needs {needed:.2f} MiB to get through, so {needed - 194:.2f} MiB are missing (forecast)

the request: backward, step 2: [32704, 260] float32 of aten._log_softmax_backward_data.default (forecast)
  fails, {free:.2f} MiB free, {failure.allocated / MIB:.2f} MiB in tensors

what the card held when it failed (forecast)
  loss  """


@pytest.fixture(scope="module")
def found(path: Path, traced: Forecast) -> Explanation:
    """The whole explanation, remedies included: a dozen runs traced."""
    failure = run_out(traced.trace.log, 194 * MIB, expandable=False)
    assert failure is not None
    return explained(path, text_of(failure), gpu="a10g")


def test_the_text(found: Explanation, traced: Forecast) -> None:
    assert found.failure is not None
    printed = "\n".join(lines(found))
    assert printed.startswith(golden(found.failure, traced))
    held, _, remedies = printed.partition("\nchanges that make this recipe fit")
    for kind in ("loss", "saved activations", "cuBLAS workspace", "held by no tensor"):
        assert f"\n  {kind} " in held
    sizes = {line.split(" frees ")[0].strip(): line for line in remedies.splitlines() if " frees " in line}
    assert "chunked-loss" in sizes
    assert "same result" in sizes["chunked-loss"]
    assert printed.count("(forecast)") >= 4  # each part says so


def test_the_changes_that_are_shown_do_close_the_gap(found: Explanation, traced: Forecast) -> None:
    alone = found.remedies.alone
    assert alone
    for one in alone:
        assert one.forecast.needed + one.forecast.margin <= found.room.capacity
        assert one.saved >= found.missing
    ranks = [0 if one.lever.exact else 2 if one.lever.exact is False else 1 for one in alone]
    assert ranks == sorted(ranks)
    told = json.loads(json.dumps(as_json(found)))
    assert told["forecast"]["missing"] == found.missing == traced.needed - 194 * MIB
    assert told["request"]["tensor"]["shape"] == [32704, 260]  # 64 x 511 targets
    assert [one["name"] for one in told["remedies"]] == [one.lever.name for one in alone]
    assert all(one["set"] for one in told["remedies"])


def test_changes_are_put_together_where_none_closes_the_gap(path: Path, traced: Forecast) -> None:
    failure = run_out(traced.trace.log, 144 * MIB, expandable=False)
    assert failure is not None
    found = explained(path, text_of(failure), gpu="a10g")
    assert not any(one.lever.exact for one in found.remedies.alone)
    together = found.remedies.together
    assert len(together) > 1
    assert all(one.lever.exact for one in together)
    assert [one.forecast.passes for one in together] == [*[False] * (len(together) - 1), True]
    needed = [traced.needed, *(one.forecast.needed for one in together)]
    assert [one.saved for one in together] == [before - after for before, after in pairwise(needed)]
    assert "\n  together:\n" in "\n".join(lines(found))


@pytest.mark.usefixtures("_untreated")
def test_figures_in_place_of_a_log(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--asked", "34 MiB", "--free", "12MiB", "--in-use", "0.63 GiB", "--total", "656MiB", "--json"]
    main(["explain-oom", str(path), "--gpu", "a10g", "--no-third-party", *arguments])
    told = json.loads(capsys.readouterr().out)
    assert told["message"]["asked"] == {"bytes": 34 * MIB, "error": MIB // 2}
    assert told["message"]["in_use"] == {"bytes": int(0.63 * GIB), "error": 5368710}
    assert told["message"]["missing"]["bytes"] == 22 * MIB
    assert told["request"]["asked"] == 34 * MIB


@pytest.mark.usefixtures("_untreated")
def test_a_run_s_directory_and_standard_input(
    path: Path, traced: Forecast, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = run_out(traced.trace.log, 194 * MIB, expandable=False)
    assert failure is not None
    run = path.parent
    (run / "a.log").write_text("nothing here", encoding="utf-8")
    (run / "error.txt").write_text(text_of(failure), encoding="utf-8")
    main(["explain-oom", str(run), "--gpu", "a10g", "--no-third-party"])
    from_directory = capsys.readouterr().out
    assert from_directory.startswith(golden(failure, traced))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text_of(failure).encode())))
    main(["explain-oom", "-", str(path), "--gpu", "a10g", "--no-third-party"])
    assert capsys.readouterr().out == from_directory


# ----------------------------------------------------------------------------------------------------------- mistakes

TEXT = (
    "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 22.30 GiB of which 0 bytes is free."
)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Give a log and a recipe, a run's directory"),
        (["no.log", "r.toml"], "no.log: no such file"),
        (["empty.log", "r.toml"], "empty.log is empty"),
        (["binary.log", "r.toml"], "binary.log is not text"),
        (["other.log", "r.toml"], "other.log: no out-of-memory message of torch in it"),
        (["oom.log"], "oom.log is no run's directory, so its recipe is wanted too"),
        (["oom.log", "r.toml", "x"], "Give a log and a recipe"),
        (["oom.log", "r.toml"], "r.toml: no such file"),
        (["oom.log", "{recipe}", "--gpu", "a10h"], 'no card is known as "a10h". Did you mean "A10G"?'),
        (["strange.log", "{recipe}"], "no known card has 9.00 GiB in all"),
        (["dir"], "dir holds no recipe.toml, so it is no run's directory"),
        (["run"], "run holds no log with an out-of-memory message (looked in: error.txt)"),
        (["--asked", "172MiB"], "--asked takes the place of a log: one recipe is wanted, not 0 paths"),
        (["--asked", "172", "r.toml"], '--asked: "172" is not a size'),
        (["--asked", "2MiB", "--in-use", "x", "r.toml"], '--in-use: "x" is not a size'),
        (["--free", "172MiB", "r.toml"], "--free without --asked"),
    ],
)
def test_a_mistake_is_one_clear_line(
    path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    for name, data in {
        "empty.log": b"",
        "binary.log": b"\x00\x01" * 500,
        "other.log": b"Killed\n",
        "oom.log": TEXT.encode(),
        "strange.log": TEXT.replace("22.30", "9.00").encode(),
    }.items():
        Path(name).write_bytes(data)
    Path("dir").mkdir()
    Path("run").mkdir()
    Path("run/recipe.toml").write_bytes(path.read_bytes())
    Path("run/error.txt").write_text("Killed", encoding="utf-8")
    given = [str(path) if argument == "{recipe}" else argument for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        main(["explain-oom", "--no-third-party", *given])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith(f"error: {says}")
