"""The quickstart's run out as GGUF, loaded again, beside the run itself: parity and exact answers on held-out notes.

    ft run recipes/quickstart.toml --out runs/quickstart
    python benchmarks/export_gguf.py runs/quickstart --out benchmarks/export_gguf.json

Each type is exported as `ft export` does it, with its limits, and read again by transformers in float32. Then base, run
and file answer the same held-out notes in the same way. Parity is of logits; the limit of q8_0 in
`fitune.trained.export.gguf` comes from its relative difference here.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fitune.plugin.registry import Registry
from fitune.trained import evaluate as evaluating
from fitune.trained.evaluate import find_to_evaluate, steps_of
from fitune.trained.export.gguf import Gguf, Type
from fitune.trained.export.gguf_read import opened as read_again
from fitune.trained.merge import Merge, merge
from fitune.trained.open import Opened, Trained, open_run

HELD_OUT = Path(__file__).parent.parent / "recipes" / "quickstart" / "held_out.jsonl"

TYPES: tuple[Type, ...] = ("f16", "q8_0")


def main() -> None:
    """Export, read again, answer, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=120, help="Held-out notes that are answered.")
    parser.add_argument("--compared", type=int, default=16, help="Of these, those whose logits are compared.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        rows = Path(made) / "rows.jsonl"
        with HELD_OUT.open(encoding="utf-8") as lines:
            rows.write_text("".join(islice(lines, arguments.rows)), encoding="utf-8")
        overrides = [f"eval.micro_batch={min(60, arguments.rows)}"]
        trained = find_to_evaluate(arguments.run, Registry.open(third_party=False), None, overrides, rows)
        types = {kind: exported(trained, kind, Path(made) / kind, arguments.compared) for kind in TYPES}
        answers = {"run": answered(trained), "base": answered(trained, base=True)}
    found = {
        "what": __doc__.splitlines()[0] if __doc__ else "",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": f"python benchmarks/export_gguf.py RUN --rows {arguments.rows} --compared {arguments.compared}",
        "steps": steps_of(trained),
        "rows": arguments.rows,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "gguf", "peft")},
        "answers": answers,
        "types": types,
    }
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def answered(trained: Trained, *, base: bool = False, model: Any = None) -> dict[str, Any]:
    """Exact answers of the run, of its base, or of another model in its place."""

    def instead(asked: Trained, *, base: bool = False) -> Opened:
        opened = open_run(asked, base=base)
        return opened if model is None else replace(opened, model=model)

    with mock.patch.object(evaluating, "open_run", instead):
        report = evaluating.evaluate(trained, base=base)
    found = {"exact_match": report.exact_match, "rows": report.rows, "seconds": round(report.seconds, 1)}
    print(json.dumps(found), flush=True)
    return found


def exported(trained: Trained, kind: Type, to: Path, compared: int) -> dict[str, Any]:
    """Figures of one type."""
    form = Gguf(name="smollm2-quickstart", type=kind)
    begun = time.perf_counter()
    parity = merge(trained, Merge(to=to, dtype=torch.float32, rows=compared, file=True, form=form))
    seconds = time.perf_counter() - begun
    print("\n".join(parity.lines), flush=True)
    model = read_again(to / form.file, torch.device("cpu"))
    shown = {
        name: value if not isinstance(value, float) else float(f"{value:.4g}")
        for name, value in parity.values().items()
        if name not in ("cast_difference", "unrun")
    }
    return {
        "bytes": (to / form.file).stat().st_size,
        "seconds_to_export": round(seconds, 1),
        "parity": shown,
        "answers": answered(trained, model=model),
    }


if __name__ == "__main__":
    main()
