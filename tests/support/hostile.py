"""Inputs that somebody may have made on purpose: each is taken, or refused with an error of `fitune.errors`, in a line.

Made by hypothesis, from what is right: recipes in TOML, rows in JSON Lines, headers of safetensors and of GGUF.
`tests/recipe/test_hostile.py` tries some of each, `benchmarks/faults.py` many.
"""

from __future__ import annotations

import json
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import tomli_w
import torch
from hypothesis import HealthCheck
from hypothesis import strategies as st

from fitune.errors import FtError
from fitune.recipe.reader import read_recipe
from fitune.testing import open_registry, write_recipe
from support.light import LIGHT
from support.prepared import prepared
from support.prepared import write as write_prepared

TAKEN, REFUSED = "taken", "refused in a line"

ODD = ["", "\0", "\x1b[31m", "\u202e", "\u2028", "..", "/", "~nobody", "{{", "${HOME}", "a" * 5000, "nan"]
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "\0", "\x1b[31m", "\u202e", "\u2028", "..", "/", "~nobody", "{{", "${HOME}", "a" * 5000, "nan"]
    ),
)
NUMBERS = st.one_of(
    st.integers(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.floats(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, 5e-324]),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))
DEEP = st.builds(lambda depth: json.loads("[" * depth + "]" * depth), st.integers(1, 80))


@st.composite
def mutated(draw: st.DrawFn, right: bytes) -> bytes:
    """What is right, with a few stretches of it replaced, taken out or doubled."""
    content = bytearray(right)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.integers(0, 40)))
        how = draw(st.sampled_from(["other", "gone", "doubled", "cut", "brackets", "digits"]))
        if how == "other":
            content[at:end] = draw(st.binary(max_size=40))
        elif how == "gone":
            del content[at:end]
        elif how == "doubled":
            content[at:at] = content[at:end]
        elif how == "cut":
            del content[at:]
        else:
            content[at:at] = (b"[" if how == "brackets" else b"9") * draw(st.sampled_from([1, 300, 5000, 100_000]))
    return bytes(content)


TOML_VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)
NAMES = """name seed plugins model adapter data memory train eval checkpoint listener use path id r alpha dropout
targets source stage strategy steps micro_batch length learning_rate schedule epochs every fraction weight fit allow"""
KEYS = st.sampled_from(NAMES.split())


@st.composite
def recipes(draw: st.DrawFn) -> bytes:
    """A recipe in which values are of other kinds, or whose text was changed."""
    import tomli

    if draw(st.booleans()):
        return draw(mutated(LIGHT.encode()))
    values: dict[str, Any] = tomli.loads(LIGHT)
    for _ in range(draw(st.integers(1, 4))):
        table: dict[str, Any] = values
        while draw(st.booleans()):
            tables = [one for one in table.values() if isinstance(one, dict)]
            tables += [
                one for many in table.values() if isinstance(many, list) for one in many if isinstance(one, dict)
            ]
            if not tables:
                break
            table = draw(st.sampled_from(tables))
        table[draw(KEYS | TEXTS)] = draw(TOML_VALUES)
    try:
        return tomli_w.dumps(values).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError):
        return b"name = 1"


ROW_KEYS = st.sampled_from(["messages", "tools", "weight", "text", "prompt", "train"])
TURN_KEYS = st.sampled_from(["role", "content", "weight", "x"])
ROW = {"messages": [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "1 2"}]}


@st.composite
def rows(draw: st.DrawFn) -> bytes:
    """Rows of which some are of another kind."""
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        row: Any = json.loads(json.dumps(ROW))
        how = draw(st.sampled_from(["right", "a key", "a turn", "another", "text"]))
        if how == "a key":
            row[draw(TEXTS | st.sampled_from(["messages", "tools", "weight", "text", "prompt", "train"]))] = draw(
                VALUES | DEEP
            )
        elif how == "a turn":
            row["messages"][draw(st.integers(0, 1))][draw(st.sampled_from(["role", "content", "weight", "x"]))] = draw(
                VALUES
            )
        elif how == "another":
            row = draw(VALUES | DEEP)
        line = json.dumps(row, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
        lines.append(draw(mutated(line)) if how == "text" else line)
    return b"\n".join(lines) + b"\n"


class Meeting:
    """Meets hostile inputs of each kind, in a directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        write_recipe(home / "tiny")
        self.light = home / "light"
        self.light.mkdir(parents=True)
        (self.light / "model").mkdir()
        (self.light / "model" / "config.json").write_text("{}", encoding="utf-8")
        (self.light / "data.jsonl").write_text('{"messages": []}\n', encoding="utf-8")
        self.rows = write_prepared(home / "rows", "")
        self.weights = home / "tiny" / "model" / "model.safetensors"
        self.right = self.weights.read_bytes()
        self.gguf = home / "gguf"
        self.gguf.mkdir()
        self.right_gguf = small_gguf()

    def recipe(self, content: bytes) -> str:
        """Read a recipe."""
        (self.light / "r.toml").write_bytes(content)
        return came(lambda: read_recipe(self.light / "r.toml", open_registry()))

    def row(self, content: bytes) -> str:
        """Prepare rows."""
        (self.rows.parent / "data.jsonl").write_bytes(content)
        return came(lambda: prepared(self.rows, "data.cache=false", "data.max_empty=1"))

    def safetensors(self, content: bytes) -> str:
        """Load a model of which the weights are this file."""
        from fitune_plugins.loaders.loading import load_model

        self.weights.write_bytes(content)
        return came(lambda: load_model(str(self.weights.parent), "float32", torch.device("cpu")))

    def gguf_file(self, content: bytes) -> str:
        """Load a model from this file."""
        (self.gguf / "m.gguf").write_bytes(content)
        text = '[model]\nuse = "gguf"\npath = "m.gguf"\n[adapter]\nuse = "lora"\n[[data.source]]\nuse = "jsonl"\n'
        recipe = self.gguf / "r.toml"
        recipe.write_text(f'name = "g"\n{text}path = "d.jsonl"\n[[data.stage]]\nuse = "chat"\n', encoding="utf-8")
        (self.gguf / "d.jsonl").write_text("{}\n", encoding="utf-8")

        def load() -> None:
            model = read_recipe(recipe, open_registry()).model
            model.record.load_tokenizer(model.options)
            model.record.load_model(model.options, torch.device("cpu"))

        return came(load)

    def kinds(self) -> dict[str, tuple[st.SearchStrategy[bytes], Callable[[bytes], str]]]:
        """Each kind: what is made, and what meets it."""
        header = 8 + struct.unpack("<Q", self.right[:8])[0]
        return {
            "recipes in TOML": (recipes(), self.recipe),
            "rows in JSON Lines": (rows(), self.row),
            "headers of safetensors": (
                st.one_of(mutated(self.right[:header]).map(lambda head: head + self.right[header:]),
                          headers().map(lambda head: head + self.right[header:])),
                self.safetensors,
            ),
            "headers of GGUF": (mutated(self.right_gguf), self.gguf_file),
        }  # fmt: skip


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A header of safetensors that says anything."""
    entry = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "F64", "I8", "BOOL", "F8_E4M3", "X", ""]) | VALUES,
            "shape": st.lists(st.integers(-1, 2**64), max_size=4) | VALUES,
            "data_offsets": st.lists(st.integers(-1, 2**65), max_size=3) | VALUES,
        },
    )
    names = st.sampled_from(["model.embed_tokens.weight", "lm_head.weight", "__metadata__"]) | TEXTS
    text = json.dumps(draw(st.dictionaries(names, entry | VALUES, max_size=4))).encode("utf-8", "surrogatepass")
    size = draw(st.sampled_from([len(text), len(text) + 1, 0, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1))
    return struct.pack("<Q", size) + text


def small_gguf() -> bytes:
    """The header of a GGUF file with a few entries and one tensor, as the format's description has it."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    entries = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, 1),
        text("llama.embedding_length") + struct.pack("<II", 4, 32),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("gpt2"),
    ]
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 2, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entries) + tensor
    return head + bytes(-len(head) % 32) + bytes(32 * 2 * 4)


def came(work: Callable[[], object]) -> str:
    """What came of it; any other error than ours is raised."""
    try:
        work()
    except FtError as refusal:
        lines = refusal.lines
    else:
        return TAKEN
    assert lines
    assert all(line and "\n" not in line for line in lines), lines
    return REFUSED


class Counts:
    """What came of inputs of one kind."""

    def __init__(self, met: Callable[[bytes], str]) -> None:
        self._met = met
        self.came: Counter[str] = Counter()
        self.slowest = 0.0

    def meet(self, content: bytes) -> None:
        """Meet one."""
        began = time.perf_counter()
        self.came[self._met(content)] += 1
        self.slowest = max(self.slowest, time.perf_counter() - began)


def meet(home: Path, number: int, seed: int, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """So many inputs of each kind; gives the figures. Fails at the first that ends otherwise."""
    raw: list[dict[str, Any]] = []
    settled = hypothesis.settings(
        max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    for kind, (made, met) in Meeting(home).kinds().items():
        counts, start = Counts(met), time.perf_counter()

        def one(content: bytes) -> None:
            counts.meet(content)  # noqa: B023 - called within this turn

        hypothesis.seed(seed)(settled(hypothesis.given(made)(one)))()
        took = {"slowest_s": round(counts.slowest, 2), "seconds": round(time.perf_counter() - start, 1)}
        raw.append({"kind": kind, **dict(sorted(counts.came.items())), **took})
        tell(str(raw[-1]))
    inputs = sum(one.get(TAKEN, 0) + one.get(REFUSED, 0) for one in raw)
    return {"seed": seed, "inputs": inputs, "raw": raw}
