"""The processes and devices that a run is given, and the allocator of its GPU."""

from __future__ import annotations

import gc
import json
import os
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers.utils.logging import disable_progress_bar

from fitune.compose.together import together
from fitune.errors import RunError
from fitune.plugin.events import MemoryReport
from fitune.plugin.recipe import Recipe
from fitune.plugin.strategy import Plan

NONE_DETERMINISTIC = "does not have a deterministic implementation"
"""What torch says of an operation that cannot be computed so."""

ALLOCATOR_BY_ITSELF = {"expandable_segments": "False"}
"""Settings of strategies, as torch has them where nobody says anything: a setting that is left out stays as it was."""

_given_to_allocator: list[str] = []
"""What the environment said before the first run of this process that set something."""


def make_accelerator() -> Accelerator:
    """The processes and devices of this run. Raises `RunError` if they are set up in a way that cannot be run under."""
    accelerator = Accelerator(mixed_precision="no")
    _check_processes(accelerator)
    if not accelerator.is_main_process:
        disable_progress_bar()  # one process draws
    return accelerator


def must_be_one_run(recipe: Recipe) -> None:
    """Raise `RunError`, in every process, where they have not all read, or chosen, the same: on several machines a
    recipe may be several files.
    """
    tables = recipe.to_toml()
    mine = json.dumps([tables.get(name) for name in ("adapter", "memory", "train")], sort_keys=True, default=str)
    every = together().texts(mine)
    others = [process for process, text in enumerate(every) if text != every[0]]
    if others:
        raise RunError(
            f"process {others[0]} has another recipe than process 0, or [memory] fit has chosen otherwise there. Give "
            "all the same recipe and arguments, or name the strategies: ft plan RECIPE --fit --write FILE"
        )


def set_allocator(plan: Plan) -> None:
    """Give the CUDA caching allocator the plan's settings, over those of the environment, and none of an earlier run's
    in this process.
    """
    if not plan.allocator and not _given_to_allocator:
        return
    name = "PYTORCH_ALLOC_CONF"
    if not _given_to_allocator:
        _given_to_allocator.append(os.environ.get(name) or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or "")
    settings = dict(pair.split(":", 1) for pair in _given_to_allocator[0].split(",") if ":" in pair)
    settings = {**ALLOCATOR_BY_ITSELF, **settings, **dict(plan.allocator)}
    os.environ[name] = ",".join(f"{key}:{value}" for key, value in settings.items())
    # The environment may have been read already. torch has no public function for this, and renamed its own.
    renamed = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    (renamed or torch.cuda.memory._set_allocator_settings)(os.environ[name])


def set_deterministic(wanted: bool) -> None:
    """Have torch compute with deterministic kernels alone, or as it does by itself.

    An operation that has none fails with `NONE_DETERMINISTIC`: told only to warn, torch leaves flash attention as it
    is. cuBLAS is deterministic only with workspaces of a fixed size, which it reads from the environment before it is
    first used.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)


def _check_processes(accelerator: Accelerator) -> None:
    """The loop sums gradients itself; sharded and offloaded engines do it in a way of their own. Raises `RunError`."""
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in known:
        raise RunError(
            f"accelerate is set up for {accelerator.distributed_type.value}, which fitune does not run under yet. "
            "Launch with --multi_gpu, or without accelerate"
        )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        # Seen without a GPU: accelerate would let each process train alone, on all of the data.
        raise RunError(
            f"{launched} processes were launched, but accelerate joins {accelerator.num_processes} here. Without GPUs, "
            "set ACCELERATE_USE_CPU=true"
        )


def free_memory(device: torch.device) -> None:
    """Give back to the device what nothing refers to any more, and forget the peak."""
    gc.collect()
    if device.type == "cuda":
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def free_earlier() -> None:
    """Give back what earlier runs of this process left: the parts of a run refer to each other, so that all of them
    stay where they were until they are looked for.
    """
    free_memory(torch.device("cuda" if torch.cuda.is_initialized() else "cpu"))


def measure_context(device: torch.device | str) -> int:
    """Bytes of the GPU that are used outside of this process' caching allocator: its context, and other processes."""
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free - torch.cuda.memory_reserved(device))


def measure_memory(device: torch.device | str) -> MemoryReport:
    """The most memory that this process has used so far."""
    device = torch.device(device)
    if device.type == "cuda":
        return MemoryReport(
            kind="gpu", peak=torch.cuda.max_memory_allocated(device), reserved=torch.cuda.max_memory_reserved(device)
        )
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return MemoryReport(kind="host", peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
