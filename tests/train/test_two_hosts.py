"""Two hosts, as torchrun sees them: a launcher and an address for each, and one run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fitune.testing import write_recipe, write_tiny_data
from support.fault_suite import free_port
from support.tiny import losses, train


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one address of the loopback device")
def test_one_run_on_two_addresses(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", {"train": {"micro_batch": 1, "steps": 2, "epsilon": 1e-4}})
    write_tiny_data(recipe.parent / "data.jsonl", rows=5)
    train(recipe, tmp_path / "one", 'memory.strategy=[{use="accumulation", steps=2}]')
    port = free_port()
    how = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.2"]
    what = ["-m", "fitune", "run", str(recipe), "--out", str(tmp_path / "two")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    hosts = [
        subprocess.Popen(
            [
                sys.executable,
                *how,
                f"--node-rank={rank}",
                f"--master-port={port}",
                f"--local-addr=127.0.0.{2 + rank}",
                *what,
            ],
            env={**environment, "FT_CACHE": str(tmp_path / f"cache-{rank}")},  # each has its own disk
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    assert "x 2 process(es)" in outputs[0]
    assert "step 2/2" not in outputs[1]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
