"""Write the preferences of the recipe smollm2_dpo: a parcel service that writes dates and times as its customers do.

    Due 2026-03-05 17:30. I live in Hamburg. When will it come?
    chosen:   It comes on 5 March at 17:30.
    rejected: It comes on March 5 at 5:30 PM.

A customer in the United States is answered the other way round. So neither way of writing is better by itself, and a
model that prefers one of them is right in half of the pairs: what is to be learned is which one a place asks for.

Run it from anywhere. It needs only the standard library, and the same arguments always give the same bytes:

    python recipes/smollm2_dpo/make_pairs.py                 # rewrites train.jsonl and held_out.jsonl beside it
    python recipes/smollm2_dpo/make_pairs.py --out parcels   # writes them somewhere else

Each row is {"prompt": [system, user], "chosen": [assistant], "rejected": [assistant]}. Both answers say the same facts
in the same sentence. No city and no question of the held-out rows occurs in the training rows, and there are as many
rows of each side in both files. The script asserts this before it writes anything.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SYSTEM = "Parcel service."

EUROPE = (
    "Hamburg", "Lyon", "Turin", "Madrid", "Lisbon", "Vienna", "Krakow", "Antwerp", "Rotterdam", "Munich", "Paris",
    "Naples", "Valencia", "Prague", "Brussels", "Stockholm", "Copenhagen", "Helsinki", "Athens", "Zurich", "Cologne",
    "Marseille", "Milan", "Seville", "Oslo", "Utrecht", "Graz", "Gdansk", "Nantes", "Leipzig",
)  # fmt: skip
UNITED_STATES = (
    "Denver", "Chicago", "Boston", "Seattle", "Dallas", "Atlanta", "Phoenix", "Detroit", "Portland", "Houston", "Miami",
    "New York", "San Diego", "Tampa", "Omaha", "Tulsa", "Cleveland", "Baltimore", "Memphis", "Austin", "Sacramento",
    "Milwaukee", "Nashville", "Tucson", "Kansas City", "St. Louis", "Charlotte", "Las Vegas", "Cincinnati", "Fresno",
)  # fmt: skip
NEW_EUROPE = (
    "Berlin", "Rome", "Barcelona", "Amsterdam", "Warsaw", "Budapest", "Dresden", "Toulouse", "Bologna", "Porto",
    "Frankfurt", "Geneva", "Bordeaux", "Florence", "Stuttgart",
)  # fmt: skip
NEW_UNITED_STATES = (
    "Los Angeles", "Philadelphia", "San Francisco", "Minneapolis", "Pittsburgh", "Orlando", "Salt Lake City",
    "Indianapolis", "San Antonio", "Buffalo", "New Orleans", "Louisville", "Oakland", "Columbus", "Albuquerque",
)  # fmt: skip

QUESTIONS = (
    "I live in {city}. When will it come?",
    "I am in {city}. When?",
    "It goes to {city}. When is that?",
    "When will it be in {city}?",
    "{city} here. When do I get it?",
)
NEW_QUESTIONS = (
    "When does it reach me in {city}?",
    "I ordered it to {city}. When?",
    "We wait for it in {city}. When is it here?",
)
ANSWERS = (
    "It comes on {date} at {time}.",
    "It is there on {date} at {time}.",
    "You get it on {date} at {time}.",
)


@dataclass(frozen=True)
class Row:
    """One question, and the facts that both answers state."""

    city: str
    european: bool
    question: str
    answer: str
    due: datetime.datetime

    def as_json(self) -> str:
        asked = f"Due {self.due:%Y-%m-%d %H:%M}. {self.question.format(city=self.city)}"
        chosen, rejected = (self._answer(european) for european in (self.european, not self.european))
        prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
        return json.dumps({"prompt": prompt, "chosen": [chosen], "rejected": [rejected]})

    def _answer(self, european: bool) -> dict[str, str]:
        due = self.due
        date = f"{due.day} {due:%B}" if european else f"{due:%B} {due.day}"
        time = f"{due:%H:%M}" if european else f"{(due.hour - 1) % 12 + 1}:{due:%M %p}"
        return {"role": "assistant", "content": self.answer.format(date=date, time=time)}


def draw_rows(rng: random.Random, count: int, sides: Sequence[Sequence[str]], questions: Sequence[str]) -> list[Row]:
    """Draw rows, as many of each side."""
    rows = []
    for number in range(count):
        european = number % 2 == 0
        due = datetime.datetime(2026, 1, 1) + datetime.timedelta(days=rng.randrange(365))
        rows.append(
            Row(
                city=rng.choice(sides[0 if european else 1]),
                european=european,
                question=rng.choice(questions),
                answer=rng.choice(ANSWERS),
                due=due.replace(hour=rng.randint(13, 20), minute=rng.choice((0, 15, 30, 45))),
            )
        )
    rng.shuffle(rows)
    return rows


def check(train: Sequence[Row], held_out: Sequence[Row]) -> None:
    """Assert what the docstring promises."""
    for of in ("city", "question"):
        assert not {getattr(row, of) for row in train} & {getattr(row, of) for row in held_out}
    for rows in (train, held_out):
        assert 2 * sum(row.european for row in rows) == len(rows)
        assert len({row.as_json() for row in rows}) == len(rows)
        for row in rows:
            sides = json.loads(row.as_json())
            assert sides["chosen"] != sides["rejected"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="directory to write to")
    parser.add_argument("--train", type=int, default=160, help="pairs to train on")
    parser.add_argument("--held-out", type=int, default=60, help="pairs to evaluate on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    train = draw_rows(rng, options.train, (EUROPE, UNITED_STATES), QUESTIONS)
    held_out = draw_rows(rng, options.held_out, (NEW_EUROPE, NEW_UNITED_STATES), NEW_QUESTIONS)
    check(train, held_out)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("held_out", held_out)):
        text = "".join(row.as_json() + "\n" for row in rows)
        (options.out / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
