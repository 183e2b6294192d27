"""Plugins as others write them: installed by pip, used from a recipe by name, and broken without harm."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fitune.testing import write_recipe
from support.made_plugins import STRATEGY, install, pip_install
from support.paths import TESTS

PACKAGES = TESTS / "third_party"
HOST_OPTIMIZER: Mapping[str, object] = {"memory": {"strategy": [{"use": "host-optimizer", "mean_dtype": "bfloat16"}]}}
BROKEN = {
    "broken-import": (
        "0.3.0",
        "broken: RuntimeError: this plugin needs libnothing.so.7 (fitune_broken_import/__init__.py:3)",
    ),
    "misspelled-hook": (
        "0.4.0",
        'broken: there is no hook "ft_memory_strategy". Did you mean "ft_memory_strategies"?',
    ),
}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which pip has installed the three packages under `tests/third_party`."""
    target = tmp_path_factory.mktemp("site")
    packages = sorted(path for path in PACKAGES.iterdir() if path.is_dir())
    assert len(packages) == 3
    pip_install(target, *packages)
    return target


def ft(*arguments: str | Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `ft` in a process of its own, which sees what is installed in `site`."""
    path = os.pathsep.join(filter(None, [str(site or ""), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    command = [sys.executable, "-m", "fitune", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def lines(text: str) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in text.splitlines()]


def use(directory: Path, *names: str, **top: object) -> Path:
    """A recipe that uses these strategies."""
    return write_recipe(directory, {"memory": {"strategy": [{"use": name} for name in names]}, **top})


def test_the_table_lists_strategy_command_and_version_and_the_broken_ones_with_their_causes(site: Path) -> None:
    done = ft("plugins", site=site)
    assert done.returncode == 0, done.stderr
    good, _, bad = done.stdout.partition("\nBROKEN\n")
    told = " ".join(good.split())
    assert " host-optimizer Keep AdamW's state in host memory" in told
    assert "(fitune-host-optimizer 1.2.3)" in told
    assert "commands host-memory" in told
    assert " ".join(bad.split()) == " ".join(f"{name} {version}: {cause}" for name, (version, cause) in BROKEN.items())


def test_json_lists_them_too(site: Path) -> None:
    done = ft("plugins", "--json", site=site)
    entries = [e for e in json.loads(done.stdout) if e["origin"] == "installed"]
    found = {e["plugin"]: e for e in entries}
    assert {name: (e["version"], e["status"]) for name, e in found.items()} == {
        "host-optimizer": ("1.2.3", "ok"),
        **BROKEN,
    }
    (strategy, command) = sorted(
        (e for e in entries if e["status"] == "ok"), key=lambda e: str(e["kind"]), reverse=True
    )
    assert (command["kind"], command["name"]) == ("command", "host-memory")
    assert strategy["kind"] == "memory strategy"
    assert strategy["hooks"] == ["ft_commands", "ft_memory_strategies", "ft_run_started"]
    assert strategy["path"] == str(site / "fitune_host_optimizer" / "__init__.py")


def test_show_prints_its_options(site: Path) -> None:
    done = ft("plugins", "show", "host-optimizer", site=site)
    assert '  mean_dtype: "float32" or "bfloat16"; default "float32"\n' in done.stdout
    assert "  pinned: true or false; default true\n      Copy by way of page-locked host memory" in done.stdout


def test_a_recipe_names_the_strategy_and_trains(site: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", HOST_OPTIMIZER)
    done = ft("run", recipe, "--out", tmp_path / "run", site=site)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if step["event"] == "step"]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["plugins"]["host-optimizer"] == "1.2.3"
    # its run event: 6 bytes for each of the adapter's parameters (float32 squares, bfloat16 means)
    forecast = json.loads((tmp_path / "run" / "host-optimizer.json").read_text())
    assert forecast["host_state_bytes_forecast"] % 6 == 0
    assert forecast["host_state_bytes_forecast"] > 0


def test_its_options_are_checked_like_those_of_built_in_plugins(site: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"memory": {"strategy": [{"use": "host-optimizer", "mean_dtyp": "float32"}]}})
    done = ft("check", recipe, site=site)
    assert done.returncode == 2
    assert 'unknown key "mean_dtyp". Did you mean "mean_dtype"?' in done.stderr


def test_its_command_runs_and_is_listed_in_the_help(site: Path) -> None:
    done = ft("host-memory", "1048576", site=site)
    assert (done.returncode, done.stdout) == (0, "8.0 MiB (forecast)\n")
    assert "host-memory" in ft("--help", site=site).stdout


def test_without_third_parties_it_is_unknown(site: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, HOST_OPTIMIZER)
    assert ft("check", recipe, site=site).returncode == 0
    done = ft("check", recipe, "--no-third-party", site=site)
    assert done.returncode == 2
    assert 'unknown memory strategy "host-optimizer"' in done.stderr
    assert "broken" not in done.stderr
    assert 'no command "host-memory"' in ft("--no-third-party", "host-memory", "1", site=site).stderr


def test_an_unknown_strategy_may_belong_to_a_broken_plugin(site: Path, tmp_path: Path) -> None:
    done = ft("check", use(tmp_path, "misspelled"), site=site)
    assert done.returncode == 2
    assert 'unknown memory strategy "misspelled"' in done.stderr
    assert "It may belong to a plugin that is broken: broken-import (RuntimeError: this plugin needs" in done.stderr
    assert 'misspelled-hook (there is no hook "ft_memory_strategy"' in done.stderr


def test_two_distributions_that_provide_one_name(tmp_path: Path) -> None:
    for distribution in ("fitune-one", "fitune-two"):
        install(tmp_path, distribution, STRATEGY.format(name="same"))
    listed = ft("plugins", "--json", site=tmp_path)
    assert listed.returncode == 0
    found = {e["plugin"]: (e["use"], e["status"]) for e in json.loads(listed.stdout) if e["name"] == "same"}
    assert found == {"fitune-one": ("fitune-one:same", "ok"), "fitune-two": ("fitune-two:same", "ok")}
    done = ft("check", use(tmp_path / "used", "same"), site=tmp_path)
    assert done.returncode == 2
    assert '"same". Say which is meant: use = "fitune-one:same" or "fitune-two:same"' in done.stderr
    assert ft("check", use(tmp_path / "unused"), site=tmp_path).returncode == 0
    done = ft("run", use(tmp_path / "said", "fitune-two:same"), "--out", tmp_path / "run", site=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'use = "fitune-two:same"' in (tmp_path / "run" / "recipe.toml").read_text()


def test_a_file_beside_the_recipe(tmp_path: Path) -> None:
    recipe = use(tmp_path / "recipe", "mine", plugins=["./my_strategy.py"])
    (recipe.parent / "my_strategy.py").write_text(STRATEGY.format(name="mine"))
    done = ft("check", recipe)
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name' "
                                        "(recipe/my_strategy.py:1)"),
        ("def ft_memory_strategies(:", "SyntaxError: invalid syntax (my_strategy.py, line 1)"),
        ("raise SystemExit(3)", "SystemExit: 3 (recipe/my_strategy.py:1)"),
        ("value = 1", "it implements no hook: mark its functions with @fitune.hookimpl"),
        (None, "no such file"),
    ],
)  # fmt: skip
def test_a_broken_file_is_a_fatal_error_before_any_weight_is_read(
    tmp_path: Path, source: str | None, cause: str
) -> None:
    # It is unused by any table, and the weights are gone: only an earlier error can hide that.
    recipe = use(tmp_path / "recipe", plugins=["./my_strategy.py"])
    (recipe.parent / "model" / "model.safetensors").unlink()
    if source is not None:
        (recipe.parent / "my_strategy.py").write_text(source)
    done = ft("run", recipe, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "my_strategy.py" in done.stderr
    assert cause in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def trained(make: Callable[..., Any]) -> Any:
    """All weights of a small network after 8 steps with the optimizer that `make` makes, reloaded on the way."""
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
        optimizer = make(model.parameters(), lr=0.03, betas=(0.8, 0.97), eps=1e-7, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
        for step in range(8):
            optimizer.zero_grad()
            model(torch.randn(16, 7)).square().mean().backward()
            optimizer.step()
            scheduler.step()
            if step == 4:
                optimizer.load_state_dict(optimizer.state_dict())
        return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_in_float32_its_weights_are_those_of_torchs_adamw(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.syspath_prepend(site)
    own = importlib.import_module("fitune_host_optimizer.adamw").HostAdamW
    exact = trained(own)
    assert torch.equal(exact, trained(torch.optim.AdamW))
    rounded = trained(partial(own, mean_dtype=torch.bfloat16))
    assert 0 < (exact - rounded).abs().max() < 0.02  # 8 steps of at most 0.03, the direction off by under 1/256


def test_packages_keep_to_the_version_contract() -> None:
    contracts: Sequence[str] = [path.read_text(encoding="utf-8") for path in PACKAGES.rglob("pyproject.toml")]
    assert len(contracts) == 3
    assert all('dependencies = ["fitune>=0.1,<0.2"]' in text for text in contracts)
