"""Graphics cards: what is known of each is plausible and says where it comes from; names, sizes and files are read."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitune.errors import RecipeError
from fitune.memory.cards import cards
from fitune.memory.cards.cards import Card, budget_card, find_card, known_cards, local_card, may_have_one, parse_size
from fitune.plugin.units import GIB

OWN = """\
name = "A card"
memory = "12 GiB"
context = "400 MiB"
context_source = "measured: with nvidia-smi"
capability = [8, 6]
bandwidth = 360
host_link = 31.5
source = "its box"
[matmul]
float32 = 12.7
"""

NAMES = (
    *("A100-40GB", "A100-80GB", "A10G", "A6000", "B200", "H100-80GB", "H200", "L4", "L40S"),
    *("RTX 3060", "RTX 3090", "RTX 4060 Ti 16GB", "RTX 4060 Ti 8GB", "RTX 4070", "RTX 4080", "RTX 4090"),
    *("RTX 5070", "RTX 5080", "RTX 5090", "RTX A4000", "T4", "V100-16GB", "V100-32GB"),
)


FORMS = "Write a number above 0 and a unit: 22.3GiB, 24GB, 512MiB or 2000000000B"


def spelled(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def own(tmp_path: Path, text: str) -> str:
    path = tmp_path / "card.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def message(tmp_path: Path, text: str) -> list[str]:
    """The lines of the error about a card's file, without the directory."""
    with pytest.raises(RecipeError) as caught:
        find_card(own(tmp_path, text))
    return [line.replace(f"{tmp_path}/", "") for line in caught.value.lines]


def test_the_cards_that_are_known() -> None:
    assert sorted(card.name for card in known_cards()) == sorted(NAMES)


@pytest.mark.parametrize("card", known_cards(), ids=lambda card: card.name)
def test_what_is_known_of_a_card_is_plausible(card: Card) -> None:
    assert GIB // 10 < card.context <= 1.5 * GIB, "a context is between 0.1 and 1.5 GiB: the H200 was measured with 1.3"
    assert card.usable == card.memory - card.context > 0
    assert re.match(r"(measured|sourced|assumed): \S", card.context_source)
    assert re.match(r"https://\S+", card.source)
    assert card.capability in {(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)}
    assert ("bfloat16" in card.matmul) == (card.capability >= (8, 0)), "tensor cores of bfloat16 came with Ampere"
    assert card.matmul["float32"] < card.matmul["float16"]
    assert card.matmul.get("bfloat16", card.matmul["float16"]) == card.matmul["float16"]
    assert card.host_link in {15.75, 31.5, 63.0}, "16 lanes of PCIe 3, 4 or 5, or 8 of PCIe 4"
    assert card.host_link < card.bandwidth < 10_000


@pytest.mark.parametrize("card", known_cards(), ids=lambda card: card.name)
def test_memory_is_a_little_less_than_the_name_says(card: Card) -> None:
    sold = {"A10G": 24, "A6000": 48, "B200": 180, "H200": 141, "L4": 24, "L40S": 48, "T4": 16}
    sold |= {"RTX 3060": 12, "RTX 3090": 24, "RTX 4070": 12, "RTX 4080": 16, "RTX 4090": 24, "RTX 5070": 12}
    sold |= {"RTX 5080": 16, "RTX 5090": 32, "RTX A4000": 16}
    named = re.search(r"(\d+)GB", card.name)
    size = int(named[1]) if named else sold[card.name]
    assert 0.9 * size < card.memory / GIB < size


def test_no_spelling_means_two_cards() -> None:
    spellings = [spelled(name) for card in known_cards() for name in (card.name, *card.aliases)]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("a10g", "A10G"),
        ("g5", "A10G"),
        ("g6", "L4"),
        ("h100", "H100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("Tesla T4", "T4"),
        ("nvidia_geforce_rtx-4090", "RTX 4090"),
        ("rtx3090", "RTX 3090"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("a100", "A100-40GB"),
        ("v100", "V100-16GB"),
        (" A6000 ", "A6000"),
    ],
)
def test_names_are_found_however_they_are_written(name: str, card: str) -> None:
    assert find_card(name).name == card


def test_the_founding_card_leaves_21_8_gib() -> None:
    assert find_card("a10g").memory == int(22.30 * GIB)
    assert find_card("a10g").usable == pytest.approx(21.8 * GIB, abs=1)


def test_an_unknown_name_is_an_error_that_names_the_nearest_card() -> None:
    with pytest.raises(RecipeError) as caught:
        find_card("h1000")
    assert caught.value.lines == (
        'no card is known as "h1000". Did you mean "H100-80GB"? A .toml file can describe one of your own',
    )
    with pytest.raises(RecipeError) as caught:
        find_card("voodoo")
    assert caught.value.lines == (
        f'no card is known as "voodoo". Known: {", ".join(NAMES)}. A .toml file can describe one of your own',
    )


def test_a_card_of_ones_own_is_read_from_a_file(tmp_path: Path) -> None:
    assert find_card(own(tmp_path, OWN)) == Card(
        name="A card",
        memory=12 * GIB,
        context=400 * 2**20,
        context_source="measured: with nvidia-smi",
        capability=(8, 6),
        matmul={"float32": 12.7},
        bandwidth=360.0,
        host_link=31.5,
        source="its box",
    )


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        (
            'memory = "12 GiB"',
            'memroy = "12 GiB"',
            [
                f'card.toml: "memory" is missing. {FORMS}',
                'card.toml:2: memroy: unknown key "memroy". Did you mean "memory"?',
            ],
        ),
        (
            'memory = "12 GiB"',
            "memory = 12",
            [f'card.toml:2: memory: "memory" is 12. {FORMS}'],
        ),
        (
            'context = "400 MiB"',
            'context = "400"',
            [f'card.toml:3: context: "400" is not a size. {FORMS}'],
        ),
        (
            'context = "400 MiB"',
            'context = "12 GiB"',
            [
                'card.toml:3: context: "context" is 12 GiB, which leaves nothing of the 12 GiB of "memory". '
                "Both are sizes of one card; the context is below 1 GiB"
            ],
        ),
        (
            "float32",
            "fp32",
            [
                'card.toml:9: [matmul]: "float32" is missing. Add it; it takes: number > 0',
                'card.toml:10: [matmul] fp32: unknown key "fp32". Did you mean "float32"?',
            ],
        ),
        ("capability = [8, 6]", "", ['card.toml: "capability" is missing. Add it; it takes: array of integers']),
        ("bandwidth = 360", "bandwidth = 0", ['card.toml:6: bandwidth: "bandwidth" is 0. It takes: number > 0']),
        ("[matmul]", "[matmul", None),
    ],
)
def test_a_file_that_is_wrong_is_an_error_with_its_line(
    tmp_path: Path, old: str, new: str, lines: list[str] | None
) -> None:
    assert old in OWN
    found = message(tmp_path, OWN.replace(old, new))
    if lines is None:
        assert found[0].startswith("card.toml:9: not valid TOML: ")
    else:
        assert found == lines


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        find_card(str(tmp_path / "none.toml"))
    assert caught.value.message == (
        f"{tmp_path / 'none.toml'}: no such file. Give the path of a card's description, or the name of a card"
    )
    (tmp_path / "directory.toml").mkdir()
    with pytest.raises(RecipeError, match=r"directory\.toml: cannot be read: Is a directory\. Give the path"):
        find_card(str(tmp_path / "directory.toml"))
    (tmp_path / "latin.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(RecipeError, match=r"latin\.toml: not UTF-8 text \(byte 8\)\. Save it as UTF-8"):
        find_card(str(tmp_path / "latin.toml"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("22.3GiB", 23_944_442_675),
        ("24GB", 24_000_000_000),
        ("512 MiB", 512 * 2**20),
        (" 1.5 gib ", 3 * 2**29),
        ("2TiB", 2 * 2**40),
        ("7KB", 7000),
        ("17B", 17),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "7", "8e9", "22.3", "0 GiB", "0.1B", "-1GB", "1 iB", "1G", "GiB", "1.GB", "٣GB"])
def test_what_is_not_a_size_is_an_error_that_shows_the_forms(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_size(text)
    assert caught.value.message == f'"{text}" is not a size. {FORMS}'


@given(st.integers(1, 2**50), st.sampled_from(["B", "KiB", "MiB", "GiB"]))
def test_sizes_are_exact(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * 1024 ** ["B", "KiB", "MiB", "GiB"].index(unit)


def test_a_budget_is_taken_as_it_is_given() -> None:
    budget = budget_card(parse_size("22.3GiB"))
    assert (budget.name, budget.usable, budget.context) == ("a budget of 22.30 GiB", 23_944_442_675, 0)
    assert (budget.capability, dict(budget.matmul), budget.bandwidth, budget.host_link) == ((8, 0), {}, 0.0, 0.0)
    like = budget_card(GIB, find_card("h100"))
    assert (like.capability, like.matmul["bfloat16"], like.source) == ((9, 0), 989.5, "as H100-80GB")
    with pytest.raises(RecipeError) as caught:
        budget_card(0)
    assert caught.value.message == (
        "a budget of 0 bytes leaves nothing to plan with. Give a size above 0, e.g. 22.3GiB"
    )


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, memory: int) -> None:
    found = SimpleNamespace(name=name, total_memory=memory, major=8, minor=6)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)


def test_the_card_of_this_machine_has_its_real_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "NVIDIA A10G", 22 * GIB)
    card = local_card()
    assert card is not None
    assert (card.name, card.memory, card.context) == ("A10G", 22 * GIB, find_card("a10g").context)


def test_a_card_of_this_machine_that_is_not_known_says_what_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "NVIDIA GeForce RTX 3050", 12 * GIB)
    card = local_card()
    assert card is not None
    assert (card.name, card.memory, card.capability) == ("NVIDIA GeForce RTX 3050", 12 * GIB, (8, 6))
    assert (card.context, card.matmul) == (GIB * 3 // 4, {})
    assert card.context_source == "assumed: this card is not known; 0.75 GiB, as measured on an H100"


def test_a_machine_without_a_gpu_has_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_card() is None


@pytest.mark.parametrize(("device", "library"), [(True, False), (False, True), (False, False)])
def test_one_may_be_here_where_its_device_or_its_drivers_library_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: bool, library: bool
) -> None:
    def load(name: str) -> object:
        if not library:
            raise OSError(f"{name}: cannot open shared object file")
        return object()

    monkeypatch.setattr(cards, "DEVICES", (str(tmp_path if device else tmp_path / "none"),))
    monkeypatch.setattr("ctypes.CDLL", load)
    assert may_have_one() == (device or library)


def test_naming_a_card_imports_no_torch() -> None:
    code = (
        "import sys; from fitune.memory.allocator import allocator; from fitune.memory.cards import cards; "
        "cards.find_card('g5'); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
