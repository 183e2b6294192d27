"""The arithmetic of benchmarks/speed.py: what its table says of what a clock and a profiler have seen."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def module(name: str) -> Any:
    return importlib.import_module(name)


def trace(directory: Path, kernels: Sequence[tuple[str, float, float]]) -> Path:
    events = [{"cat": "kernel", "name": name, "ts": at, "dur": length} for name, at, length in kernels]
    file = directory / "a.trace"
    file.write_text(json.dumps({"traceEvents": [{"cat": "cuda_runtime", "name": "x", "ts": 0, "dur": 9e9}, *events]}))
    return file


def test_kernels_are_told_by_name_and_products_by_their_time(tmp_path: Path) -> None:
    kernels = [
        ("nvjet_tst_128x256", 0, 200),
        ("void cutlass::Kernel2<cutlass_80_align2>", 200, 30),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", 230, 100),
        ("triton_poi_fused__to_copy_mul_silu_3", 330, 40),
        ("void at::native::unrolled_elementwise_kernel<direct_copy_kernel_cuda>", 370, 20),
        ("_rms_layernorm_forward", 390, 10),
        ("multi_tensor_apply_kernel<FusedAdam>", 400, 8),
        ("never seen", 600, 4),
    ]
    found = module("speed_kernels").parts(trace(tmp_path, kernels), smallest=187e-6, micro_batches=2)
    assert found["parts"] == {
        "products": 0.1,
        "attention": 0.05,
        "norms and pointwise": 0.025,
        "LoRA": 0.015,
        "copies": 0.01,
        "optimizer": 0.004,
        "other": 0.002,
    }
    assert found["busy"] == pytest.approx(0.206)
    assert found["gaps"] == pytest.approx(0.096)
    assert found["kernels"] == 4


def test_kernels_beside_each_other_are_busy_once(tmp_path: Path) -> None:
    found = module("speed_kernels").parts(trace(tmp_path, [("a", 0, 100), ("b", 50, 100), ("c", 60, 10)]), 1, 1)
    assert (found["busy"], found["gaps"], found["parts"]) == (0.15, 0, {"other": 0.21})


def test_a_trace_without_a_gpu_tells_nothing(tmp_path: Path) -> None:
    assert module("speed_kernels").parts(trace(tmp_path, []), 1, 1) is None


def test_a_step_is_the_time_between_two_ends_and_the_first_do_not_count() -> None:
    ends = [110, 120, 130, *(130 + 2.0 * step for step in range(1, 9))]
    found = {"start": 100, "ends": ends, "tokens": [400] * 11, "allocated": 2**30, "loss": [1.0] * 11}
    result = module("speed_table").result_of(found, best=800)
    assert result["tokens_per_second"] == 200
    assert result["spread"] == [200, 200]
    assert result["percent_of_ceiling"] == 25
    assert (result["to_first_step"], result["to_tenth_step"]) == (10, 44)
    assert result["allocated_gib"] == 1
    assert result["raw"]["loss"] == [1.0] * 11


def test_a_run_that_was_cut_keeps_what_it_has() -> None:
    found = {"start": 100, "ends": [110, 120], "tokens": [400] * 2, "error": "given up after 9 s"}
    result = module("speed_table").result_of(found, best=800)
    assert result["error"] == "given up after 9 s"
    assert result["to_first_step"] == 10
    assert "tokens_per_second" not in result
    assert "to_tenth_step" not in result


def test_a_ratio_is_to_the_best_rival_of_the_same_session() -> None:
    def result(session: str, stack: str, speed: int) -> dict[str, Any]:
        figures = {"tokens_per_second": speed, "percent_of_ceiling": 1.0}
        return {"session": session, "row": "4096", "stack": stack, "checkpointing": False, **figures}

    one = {"sessions": [{"session": "one", "flops": 8e14, "limit_gib": 21.8}]}
    one["results"] = [result("one", "fitune", 300), result("one", "trl", 100), result("one", "unsloth", 200)]
    two = {"sessions": [{"session": "two", "flops": 8e14, "limit_gib": 21.8}]}
    two["results"] = [result("two", "fitune", 300), result("two", "unsloth", 400)]
    speed = module("speed")
    speed.add(one, two)
    speed.add(one, two)
    lines = [line for line in module("speed_table").tables(one) if "fitune" in line]
    assert [line.split()[-1] for line in lines] == ["1.50", "0.75"]


def test_the_ceiling_is_that_of_the_published_shape() -> None:
    shape = {"num_hidden_layers": 30, "hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 102400}
    shape |= {"num_key_value_heads": 32, "num_attention_heads": 32}
    possible = module("speed_rows").possible
    assert possible(shape, 4096, 790e12) == pytest.approx(27.0e3, rel=0.01)
    assert possible(shape, 2048, 790e12) == pytest.approx(28.5e3, rel=0.01)
    assert possible(shape, 4096, 790e12, recomputed=True) == pytest.approx(18.4e3, rel=0.01)
