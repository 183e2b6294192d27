"""Who reads a model that processes share out: each its own rows of the files, or the first all of them; to the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fitune import mapped_weights
from fitune.compose.reading import SharedOut
from fitune.testing import write_recipe, write_tiny_data, write_tiny_model
from support.blows import join
from support.fault_suite import free_port
from support.forked import Forks
from support.reading import join_blind, join_unmapped, join_with_other_files, join_without_files
from support.tiny import losses

EACH = "weights: each process reads its own rows of the files"
FIRST = "weights: the first process reads all of them"


class Home:
    """A recipe, and where its runs are."""

    def __init__(self, folder: Path, forks: Forks) -> None:
        self.folder, self.forks = folder, forks
        changes = {"train": {"micro_batch": 1, "steps": 2, "epsilon": 1e-4}}
        self.recipe = write_recipe(folder / "recipe", changes)
        write_tiny_data(self.recipe.parent / "data.jsonl", rows=7)

    def run(self, name: str, processes: int, prepare: Callable[..., None], *sets: str) -> tuple[Path, str]:
        """A run to its end; gives its directory, and what its first process printed."""
        out, port = self.folder / name, free_port()
        given = [part for one in ('memory.strategy=[{use="fsdp"}]', *sets) for part in ("--set", one)]
        command: list[str | Path] = ["run", self.recipe, "--out", out, *given]
        together = {"processes": processes, "port": port}
        children = [
            self.forks.start(command, cwd=self.folder, prepare=prepare, rank=rank, **together)
            for rank in range(processes)
        ]
        ended = [self.forks.wait(child) for child in children]
        assert [one.code for one in ended] == [0] * processes, [one.output for one in ended]
        return out, ended[0].output


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Home:
    return Home(tmp_path_factory.mktemp("reading"), forks)


@pytest.mark.parametrize(("processes", "adapter"), [(2, "lora"), (3, "none")])
def test_rows_that_each_has_read_make_the_same_model(home: Home, processes: int, adapter: str) -> None:
    """To the bit; three processes have uneven rows of all. In each, rows that another is to read are no numbers."""
    name, sets = f"{adapter}-{processes}", (f'adapter.use="{adapter}"',) if adapter == "none" else ()
    each, said = home.run(f"{name}-each", processes, join_blind, *sets)
    first, told = home.run(f"{name}-first", processes, join_unmapped, *sets)
    assert EACH in said
    assert f"{FIRST}, which its host must have memory for, and sends them: they are not as in its files" in told
    assert losses(each) == losses(first)
    place = "model/model.safetensors" if adapter == "none" else "adapter/adapter_model.safetensors"
    mine, theirs = load_file(each / place), load_file(first / place)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_head_that_is_the_embeddings(tmp_path: Path, forks: Forks) -> None:
    home = Home(tmp_path / "tied", forks)
    directory = home.recipe.parent / "model"
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(directory)
    (each, said), (first, _) = home.run("each", 3, join_blind), home.run("first", 3, join_unmapped)
    assert EACH in said
    assert losses(each) == losses(first)


@pytest.mark.parametrize(
    ("prepare", "sets", "why"),
    [
        (join_with_other_files, (), "not every process finds the same files"),
        (join_without_files, (), "not every process can map its files into memory"),
        (join, ('model.dtype="bfloat16"',), "they are not as in its files (another dtype"),
    ],
)
def test_the_first_reads_for_all_where_the_others_cannot(
    home: Home, prepare: Callable[..., None], sets: tuple[str, ...], why: str
) -> None:
    name = prepare.__name__
    out, said = home.run(name, 2, prepare, "train.steps=1", *sets)
    assert why in " ".join(said.split())
    assert all(loss > 0 for loss in losses(out))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what lies in files")
def test_what_is_as_in_its_file_is_mapped(tmp_path: Path) -> None:
    """And what is of another type, or was made since, is not."""
    write_tiny_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    names = {name for name, _ in model.named_parameters()}
    assert mapped_weights(model) == names
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    weight.data = weight.data.clone()
    assert names - mapped_weights(model) == {"model.layers.0.mlp.up_proj.weight"}
    turned = model.get_parameter("model.layers.0.mlp.gate_proj.weight")
    turned.data = turned.data.t()
    assert len(names - mapped_weights(model)) == 2
    assert not mapped_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16))


def test_how_much_is_shared_out_by_now_is_told() -> None:
    """Of tensors on a single process none is."""
    flow = SharedOut(torch.nn.Linear(1024, 2048, bias=False))
    assert dict(flow) == {"MiB": 0, "of": 8}
    assert len(flow) == 2
