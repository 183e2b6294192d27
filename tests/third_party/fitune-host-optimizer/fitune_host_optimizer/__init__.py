"""Memory strategy `host-optimizer`: AdamW's state lies in host memory, and the update is computed there.

Saves 8 bytes of GPU memory for each parameter that trains, and costs its way to the host and back in each step: worth
it for full fine-tuning, not for a small adapter. The idea is that of ZeRO-Offload (arXiv 2101.06840).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import click

from fitune import MemoryStrategy, OptimizerSettings, Plan, Run, Strategy, hookimpl

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptimizerOptions:
    """Options of the strategy `host-optimizer`."""

    mean_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the mean of gradients. That of squared gradients is always float32: in bfloat16 it would never decay."""
    pinned: bool = True
    """Copy by way of page-locked host memory, which is faster and cannot be swapped out."""


@dataclass(frozen=True, slots=True)
class HostOptimizer(Strategy):
    """Makes the optimizer."""

    options: HostOptimizerOptions

    def plan(self, plan: Plan) -> Plan:
        """Say so if the strategy saves nothing here."""
        import torch

        if torch.cuda.is_available():
            return plan
        return replace(plan, notices=(*plan.notices, "host-optimizer: no GPU here, so it saves nothing"))

    def make_optimizer(
        self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings
    ) -> torch.optim.Optimizer | None:
        """Make it; matrices decay, vectors do not, as with fitune's own AdamW."""
        import torch

        from fitune_host_optimizer.adamw import HostAdamW

        matrices = [p for p in parameters if p.ndim >= 2]
        vectors = [p for p in parameters if p.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        return HostAdamW(
            [group for group in groups if group["params"]],
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            mean_dtype=getattr(torch, self.options.mean_dtype),
            pinned=self.options.pinned and torch.cuda.is_available(),
        )


def state_bytes(parameters: int, options: HostOptimizerOptions) -> int:
    """Bytes of both means, on the host."""
    return parameters * (4 + (4 if options.mean_dtype == "float32" else 2))


@hookimpl
def ft_memory_strategies() -> Iterable[MemoryStrategy[HostOptimizerOptions]]:
    """Offer the strategy."""
    yield MemoryStrategy(
        name="host-optimizer",
        summary="Keep AdamW's state in host memory and update there: 8 bytes less on the GPU a trained parameter",
        options=HostOptimizerOptions,
        make=HostOptimizer,
        makes=("optimizer",),
    )


@hookimpl
def ft_run_started(run: Run) -> None:
    """Write what the strategy will need on the host beside the run's other files, if the run uses it."""
    for use in run.recipe.strategies:
        if isinstance(use.options, HostOptimizerOptions):
            forecast = {"host_state_bytes_forecast": state_bytes(run.trainable, use.options)}
            (run.directory / "host-optimizer.json").write_text(json.dumps(forecast) + "\n", encoding="utf-8")


@hookimpl
def ft_commands(cli: click.Group) -> None:
    """Add `ft host-memory`."""

    @cli.command("host-memory")
    @click.argument("parameters", type=int)
    def host_memory(parameters: int) -> None:
        """Forecast the host memory that host-optimizer takes for PARAMETERS trained parameters."""
        click.echo(f"{state_bytes(parameters, HostOptimizerOptions()) / 2**20:.1f} MiB (forecast)")
