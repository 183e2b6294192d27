"""`ft data` of answers that are compared: each document with its role, held-out ones too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fitune.cli.main import main
from support.compared import lines
from support.prepared import RECIPE, write

TEXT = RECIPE.replace("length = 64", "length = 128") + '\n[objective]\nuse = "dpo"\n'
PAIRS = [{"prompt": f"{n}?", "chosen": f"good {n}", "rejected": "bad"} for n in range(3)]
JUDGED = [{"prompt": f"{n}?", "completion": f"good {n}", "label": n % 2 == 0} for n in range(3)]
GOLDEN = """\
prepared now, and kept for the next start
  jsonl                              3
  preferences                        3
  chat                               3
  truncate                           3
    rows read as pairs (prompt, chosen, rejected): 3
rows by tokens of both documents, before any is cut
            55-59 ######################################## 3
3 rows, 165 tokens, the longest 55 of 128
trained on: 33 tokens, 20.0 %
documents: 3 chosen, 3 rejected

row 1 ({here}/data.jsonl:1): 55 tokens, 11 trained on
──────── chosen ────────
<|start|>user
0?<|end|>
<|start|>assistant
⟦good 0<|end|>⟧

──────── rejected ────────
<|start|>user
0?<|end|>
<|start|>assistant
⟦bad<|end|>⟧

"""


def ft(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["data", "r.toml", "--no-third-party", *arguments])
    return capsys.readouterr().out


def test_the_whole_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, lines(*PAIRS), TEXT)
    assert ft(capsys, "--rows", "1") == GOLDEN.replace("{here}", str(tmp_path))


def test_packed_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, lines(*PAIRS), TEXT)
    text = ft(capsys, "--set", 'data.stage=[{use="chat"}, {use="pack"}]')
    assert "\n2 rows of 6 documents, 165 tokens, the longest 110 of 128\n" in text
    assert "\nrows by tokens of both documents, before any is cut or packed\n" in text
    shown = text.partition("\nrow 1 ")[2].partition("\nrow 2 ")[0]
    assert [line.strip("─ ") for line in shown.splitlines() if "────" in line] == ["chosen", "rejected"] * 2


def test_judged_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, lines(*JUDGED), TEXT.replace("dpo", "kto"))
    text = ft(capsys)
    assert "\ndocuments: 2 desirable, 3 with another row's answer, 1 undesirable\n" in text
    borders = [line.strip("─ ") for line in text.splitlines() if "────" in line]
    assert borders == ["desirable", "with another row's answer", "undesirable", "with another row's answer"]


def test_held_out_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, lines(*PAIRS), TEXT)
    (tmp_path / "held.jsonl").write_text(lines({**PAIRS[0], "chosen": "held"}), encoding="utf-8")
    text = ft(capsys, "--held-out", "--set", f'eval.source=[{{use="jsonl", path="{tmp_path}/held.jsonl"}}]')
    assert "\n1 rows, " in text
    assert "⟦held<|end|>⟧" in text


def test_json_has_the_roles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, lines(*PAIRS), TEXT)
    found: dict[str, Any] = json.loads(ft(capsys, "--json", "--rows", "1"))
    assert found["roles"] == [["chosen", 3], ["rejected", 3]]
    (row,) = found["examples"]
    assert (row["roles"], row["documents"]) == (["chosen", "rejected"], [29, 26])
    assert [piece["text"] for piece in row["pieces"] if piece["kind"] == "border"] == ["chosen", "rejected"]
