"""Plugins that come with fitune have no privileges: copies of them, installed as others are, do the same to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w

from fitune.plugin.registry import KINDS
from fitune.testing import write_recipe
from support.copied_plugins import ALONE, ORIGINAL, PREFIX, of_copies, write_copies
from support.made_plugins import pip_install

CHANGES: dict[str, Any] = {
    "memory": {
        "strategy": [
            {"use": "gradient-checkpointing", "layers": 1},
            {"use": "tiled-mlp", "tokens": 16},
            {"use": "accumulation", "steps": 2},
            {"use": "chunked-loss", "tokens": 16},
            {"use": "fused-lora"},
        ]
    },
    "data": {
        "source": [{"use": "jsonl", "path": "data.jsonl"}],
        "stage": [{"use": "messages"}, {"use": "chat"}, {"use": "tokenize"}, {"use": "truncate"}, {"use": "pack"},
                  {"use": "pad"}],
    },
    "adapter": {"use": "lora", "r": 4, "dropout": 0.1},
    "objective": {"use": "sft"},
    "listener": [{"use": "spot-notice", "cloud": "aws"}],
}  # fmt: skip
"""Every kind, and of strategies those that lean most on what fitune exports."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which pip has installed the copies."""
    target = tmp_path_factory.mktemp("site")
    pip_install(target, write_copies(tmp_path_factory.mktemp("copies")))
    return target


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """What a metadata service of AWS on this machine is asked, which has nothing to tell."""
    paths: list[str] = []

    class Service(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"token")

        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        paths.append(f"http://127.0.0.1:{server.server_address[1]}")
        yield paths
        server.shutdown()


def ft(*arguments: str | Path, site: Path | None = None, service: str = "", cache: str = "cache") -> str:
    """What `ft` prints: with a site, in a process in which no plugin comes with fitune."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(site or ""), os.environ.get("PYTHONPATH")])),
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": service,
        "FT_CACHE": str(Path(os.environ["FT_CACHE"]) / cache),
    }
    program = ["-m", "fitune"] if site is None else ["-c", ALONE]
    command = [sys.executable, *program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def offered(listed: str, home: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """What modules of a package offer, by kind and name, with what `ft plugins` says of each."""
    entries = [e for e in json.loads(listed) if e["name"] and home in e["path"]]
    return {(e["kind"], e["name"]): (e["summary"], e["status"]) for e in entries}


def test_the_copies_know_nothing_of_the_originals(tmp_path: Path) -> None:
    files = [file for file in write_copies(tmp_path).rglob("*") if file.is_file()]
    assert len(files) > 60
    assert [file for file in files if ORIGINAL in file.read_text(encoding="utf-8")] == []


def test_they_offer_all_that_comes_with_fitune(site: Path) -> None:
    originals = offered(ft("plugins", "--json"), ORIGINAL)
    copies = offered(ft("plugins", "--json", site=site), str(site))
    assert copies == {(kind, f"{PREFIX}{name}"): said for (kind, name), said in originals.items()}
    assert len(copies) > 30
    assert {kind for kind, _ in copies} == set(KINDS.values())


def test_alone_they_train_to_the_same_weights_to_the_bit(site: Path, tmp_path: Path, asked: list[str]) -> None:
    recipe = write_recipe(tmp_path, CHANGES)
    copied = recipe.with_name("copied.toml")
    copied.write_text(tomli_w.dumps(of_copies(tomli.loads(recipe.read_text(encoding="utf-8")))), encoding="utf-8")
    service = asked.pop()
    ft("run", recipe, "--out", tmp_path / "original", service=service)
    by_original = len(asked)
    ft("run", copied, "--out", tmp_path / "copy", service=service, site=site, cache="of-copies")
    assert 0 < by_original < len(asked)  # each listener was at work
    one, other = (tmp_path / run / "adapter" / "adapter_model.safetensors" for run in ("original", "copy"))
    assert one.read_bytes() == other.read_bytes()
    assert numbers(tmp_path / "original") == numbers(tmp_path / "copy")
    assert used(tmp_path / "copy") == [f"{PREFIX}{name}" for name in used(tmp_path / "original")]
    assert len(used(tmp_path / "copy")) == 1 + 1 + 5 + 1 + 6 + 1


def numbers(run: Path) -> list[tuple[float, ...]]:
    """Loss, gradient norm and tokens of each step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [tuple(line[key] for key in ("loss", "grad_norm", "tokens")) for line in lines if line["event"] == "step"]
    assert len(steps) == 3
    return steps


def used(run: Path) -> list[str]:
    """The names of all plugins of `fitune_plugins`, or their copies, that a run's own recipe names."""
    values = tomli.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    listeners = [table for table in values["listener"] if table["use"].endswith("spot-notice")]
    tables = [values["model"], values["adapter"], *values["memory"]["strategy"], *values["data"]["source"],
              *values["data"]["stage"], *listeners]  # fmt: skip
    return [table["use"] for table in tables]
