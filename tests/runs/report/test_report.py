"""`ft report`: one page of what became of runs, in which all that comes of them is text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fitune.runs.report.chart import Level, Marks, beside, chart, ticks
from fitune.runs.report.collect import collect
from fitune.runs.report.page import page
from fitune.runs.report.series import series
from support.after_runs import ft, refused
from support.reported import HOSTILE, SPIKE, write_long_run


class _Elements(HTMLParser):
    """The names of all elements and attributes of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_what_it_tells(tmp_path: Path) -> None:
    run = write_long_run(tmp_path / "run", 40, every=10)
    out, _ = ft("report", run, "--to", tmp_path / "report.html")
    assert re.fullmatch(rf"wrote {re.escape(str(tmp_path / 'report.html'))}  \(\d+ kB\)\n", out)
    text = " ".join(_Elements((tmp_path / "report.html").read_text(encoding="utf-8")).said)
    for said in (
        "Loss, nats a token", "Learning rate", "Speed, tokens a second", "Held-out answers that are exact",
        "forecast: 14.26", "Forecast beside measured, on A10G", "14.25 GiB", "+0.07 %", "frozen weights", "12.60 GiB",
        "after 3 steps, spike: the loss rose", "before (0 steps)", "I do not know long", "after (9 steps)",
        "packages.torch", "2.13.0", "adapter.r", "hf (id long)",
    ):  # fmt: skip
        assert said in text, said


def test_several_runs_are_compared(tmp_path: Path) -> None:
    runs = [write_long_run(tmp_path / name, 20, name=name) for name in ("one", "two")]
    text = page([collect(run) for run in runs], "0")
    assert "2 runs" in text
    assert text.count('<span><i class="key c1"></i>two (two)</span>') == 3


def test_several_runs_are_compared_on_held_out_data_too(tmp_path: Path) -> None:
    runs = [write_long_run(tmp_path / name, 20, name=name, every=5) for name in ("one", "two")]
    text = page([collect(run) for run in runs], "0")
    for title in ("Held-out loss", "Held-out answers that are exact, %"):
        (figure,) = re.findall(rf"<figcaption>{re.escape(title)}</figcaption>.*?</figure>", text.partition("<h2>")[0])
        assert figure.count('class="line') == 2


def test_a_run_has_one_colour_in_all_drawings(tmp_path: Path) -> None:
    """Also where the one before it has nothing to draw."""
    runs = [write_long_run(tmp_path / name, 20, name=name, every=every) for name, every in (("one", 99), ("two", 5))]
    text = page([collect(run) for run in runs], "0")
    (figure,) = re.findall(r"<figcaption>Held-out loss</figcaption>.*?</figure>", text.partition("<h2>")[0])
    assert '<i class="key c1"></i>two (two)' in figure
    assert "one (one)" not in figure


def test_what_an_objective_measures_is_drawn(tmp_path: Path) -> None:
    run = write_long_run(tmp_path / "run", 20, every=5)
    recipe = (run / "recipe.toml").read_text(encoding="utf-8")
    (run / "recipe.toml").write_text(f'{recipe}[objective]\nuse = "dpo"\nbeta = 0.1\n', encoding="utf-8")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["event"] in ("step", "evaluation"):
            line |= {"accuracy": 0.5 + line["step"] / 100, "rewards/chosen": 1.0, "rewards/rejected": -1.0, "odd": "x"}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    text = page([collect(run)], "0")
    figures = dict(re.findall(r"<figcaption>(.*?)</figcaption>(.*?)</figure>", text))
    assert "Loss of dpo" in figures
    assert (figures["Accuracy"].count('class="line'), figures["Accuracy"].count("<circle")) == (1, 4)
    assert (figures["Rewards"].count('class="line'), figures["Rewards"].count("<circle")) == (2, 8)
    assert [said in figures["Rewards"] for said in (">chosen<", ">held-out rejected<")] == [True, True]
    assert "Odd" not in figures
    said = " ".join(_Elements(text).said)
    assert "dpo (beta 0.1)" in said
    (row,) = re.findall(r"<tr><td[^>]*>20</td>(.*?)</tr>", text.partition("Evaluations")[2])[:1]
    assert "0.7000" in row


def test_what_several_processes_have_done_and_how_a_run_was_fitted_and_recovered(tmp_path: Path) -> None:
    run = write_long_run(tmp_path / "run", 20)
    (run / "identity.json").write_text('{"processes": 2, "recipe": {"memory": {"fit": "A10G"}}}', encoding="utf-8")
    line = {
        "event": "recovery", "step": 7, "phase": "step", "error": "CUDA out of memory", "before": [], "forecast": None,
        "after": ['{use = "chunked-loss"}'], "micro_batch": [4, 2], "seconds": 9.0, "again": 0,
    }  # fmt: skip
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    said = " ".join("".join(_Elements(page([collect(run)], "0")).said).split())
    assert "2 (memory is the first one's)" in said
    assert "chosen by [memory] fit, for A10G." in said
    assert (
        'after 7 steps memory ran out in the step, with no strategy; it went on with {use = "chunked-loss"}, 2 rows in '
        "a forward pass in place of 4 (CUDA out of memory)"
    ) in said


def test_what_comes_of_a_run_is_text(tmp_path: Path) -> None:
    run = write_long_run(tmp_path / "run", 30, name=HOSTILE, every=10)
    text = page([collect(run), collect(run)], "0")
    found = _Elements(text)
    assert {"script", "img", "iframe", "link", "a"}.isdisjoint(found.elements)
    assert not [name for name in found.attributes if name.startswith("on") or name in ("href", "src")]
    assert found.elements.count("style") == 1
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "<script>alert(1)</script><img src=x" in "".join(found.said)
    assert "http" not in text.replace("http-equiv", "")


def test_secrets_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_" + "a1B2" * 8
    monkeypatch.setenv("HF_TOKEN", secret)
    text = page([collect(write_long_run(tmp_path / "run", 5, name=f"x {secret}"))], "0")
    assert secret not in text
    assert "[redacted]" in text


@pytest.mark.parametrize("key", ["name", "error", "device"])
def test_neither_is_what_somebody_elses_record_says(tmp_path: Path, key: str) -> None:
    """Which was not written by us, and so not redacted then."""
    said = "\x1b]52;c;x\x07 postgres://u:hunter2secret@h/db hf_0123456789abcdefghij"
    run = write_long_run(tmp_path / "run", 30, name="x", every=10)
    good = {
        "schema": 1, "name": "x", "state": "failed", "steps_made": 1, "steps": 2, "started": "2026-01-01T00:00:00",
        "updated": "2026-01-01T00:00:00+00:00", "starts": [], "device": "cpu", "model": "m", "adapter": "a",
        "trainable": 1, "parameters": 2,
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps({**good, key: said}), encoding="utf-8")
    text = page([collect(run), collect(run)], "0")
    assert "[redacted]" in text
    for secret in ("hunter2secret", "hf_0123456789abcdefghij", "\x1b"):
        assert secret not in text


def test_a_spike_is_in_a_drawing_of_many_steps() -> None:
    values = [(step, 9.5 if step == SPIKE else 1.0 + step % 2) for step in range(1, 100_001)]
    found = series("loss", values)
    assert len(found.points) == 300
    assert max(point.high for point in found.points) == 9.5
    assert min(point.low for point in found.points) == 1.0
    assert found.points[0].mean == pytest.approx(1.5, abs=0.01)
    assert "of each 333 of 100,000 steps" in chart("Loss", [found])


def test_few_steps_are_as_they_are() -> None:
    found = series("loss", [(1, 3.0), (2, 2.0), (7, 1.0)])
    assert [(p.step, p.low, p.high) for p in found.points] == [(1, 3.0, 3.0), (2, 2.0, 2.0), (7, 1.0, 1.0)]
    assert not found.thinned


def test_a_drawing_is_whole_xml_and_its_lines_lie_within_it() -> None:
    lines = [series("a<b", [(1, 5.0), (100, -3.0)]), series("none", [])]
    drawn = chart("x & y", lines, [Marks(name="m", points=((50, 4.0),))], [Level(name="l", value=6.0)])
    root = ElementTree.fromstring(drawn)
    (path,) = (one.get("d") for one in root.iter("path") if "line" in str(one.get("class")))
    numbers = [float(number) for number in re.findall(r"[\d.]+", str(path))]
    assert all(0 <= x <= 640 for x in numbers[::2])
    assert all(0 <= y <= 240 for y in numbers[1::2])
    assert numbers[1] < numbers[3]  # 5 lies above -3
    assert [one.text for one in root.iter("title")] == ["m after 50 steps: 4"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.0, 5000.0, 10000.0], ["0", "5k", "10k"]),
        ([500.0, 1000.0, 1500.0], ["500", "1000", "1500"]),  # not 1k between them
        ([0.0, 1000.0, 2000.0], ["0", "1k", "2k"]),
        ([2e6, 2.5e7], ["2M", "25M"]),
        ([0.00015, 0.5, 0.0], ["1.5e-4", "0.5", "0"]),
        ([], []),
    ],
)
def test_numbers_beside_axes(values: list[float], said: list[str]) -> None:
    assert beside(values) == said


def test_ticks_are_round() -> None:
    assert ticks(0.3, 9.7, 5) == [2, 4, 6, 8]
    assert ticks(4, 4, 5) == [4]


def test_a_path_of_this_machine_is_given_by_its_last_part(tmp_path: Path) -> None:
    run = write_long_run(tmp_path / "run", 3)
    recipe = '[model]\nuse = "hf"\npath = "/home/someone/models/small"\n'
    (run / "recipe.toml").write_text(recipe, encoding="utf-8")
    text = page([collect(run)], "0")
    assert "hf (path small)" in text
    assert "someone" not in text


def test_a_damaged_run_is_told_as_far_as_it_can_be_read(tmp_path: Path) -> None:
    run = write_long_run(tmp_path / "run", 6)
    (run / "memory.json").write_text('{"forecast": [1], "measured": {"allocated": "x"}}', encoding="utf-8")
    (run / "examples.json").write_text('{"answers": [3, {"prompt": null}], "before": 7}', encoding="utf-8")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as out:
        out.write('{"event": "step", "step": 7, "loss": "NaN", "learning_rate": 1e999}\n{"torn')
    text = page([collect(run)], "0")
    assert "Nothing was forecast and measured" in text


def test_a_file_is_not_written_over(tmp_path: Path) -> None:
    run = write_long_run(tmp_path / "run", 3)
    (tmp_path / "report.html").write_text("mine", encoding="utf-8")
    assert "is there already" in refused("report", run, "--to", tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "mine"
    ft("report", run, "--to", tmp_path / "report.html", "--force")
    assert "holds no run" in refused("report", tmp_path, "--to", tmp_path / "other.html")
