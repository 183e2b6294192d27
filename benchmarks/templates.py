"""What each kind of chat template that is met in public comes to: trained on, told, or an error that names the part.

    python benchmarks/templates.py --out benchmarks/templates.json

The kinds and the forms of conversations are those of the tests (tests/support/template_kinds.py), in texts of our own.
Each pair is rendered by the stage `chat`. The time of a long conversation is the least of three, after one that is not
counted; seconds are of this machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fitune import Conversation, DataError
from fitune_plugins.data import chat
from support.template_kinds import KINDS, TALKS, Kind
from support.templates import context, conversation, marked, tokenizer

TURNS = (100, 200, 400, 800, 1600, 3200)


def main() -> None:
    """Sweep the kinds, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    kinds = {kind.name: {form: outcome(kind, talk) for form, talk in TALKS.items()} for kind in KINDS}
    seconds = {kind.name: {turns: timed(kind, turns) for turns in TURNS} for kind in KINDS if "plain" in kind.trained}
    out.write_text(json.dumps({"kinds": kinds, "seconds": seconds}, indent=2, ensure_ascii=False) + "\n")
    for name, forms in kinds.items():
        words = [f"{form}: {'error' if 'error' in found else 'told' if found['told'] else 'whole'}"
                 for form, found in forms.items()]  # fmt: skip
        print(f"{name}\n    {', '.join(words)}")


def outcome(kind: Kind, talk: Conversation) -> dict[str, Any]:
    """What is trained on and told, or the error."""
    made, told = tokenizer(kind.family), list[str]()
    made.chat_template = kind.template
    (stage,) = chat.ft_data_stages()
    try:
        (document,) = stage.make(chat.ChatOptions(**kind.options), context(made, told))(iter([talk]))
    except DataError as error:
        return {"error": error.message}
    return {"trained": marked(document), "told": sorted(set(told))}


def timed(kind: Kind, turns: int) -> float:
    """Seconds for a conversation of so many turns."""
    talk = conversation(*[f"text number {number}" for number in range(turns)])
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        outcome(kind, talk)
        seconds.append(time.perf_counter() - start)
    return round(min(seconds[1:]), 4)


if __name__ == "__main__":
    main()
