"""Write the data of the quickstart task: a one-line expense note becomes compact JSON.

    Paid Maria 12 euros 50 for the taxi on the 3rd of May
    {"item":"taxi","amount":12.50,"currency":"EUR","month":5,"day":3}

Run it from anywhere. It needs only the standard library, and the same arguments always give the same bytes:

    python recipes/quickstart/make_data.py                      # rewrites train.jsonl and held_out.jsonl beside it
    python recipes/quickstart/make_data.py --out notes          # writes them somewhere else
    python recipes/quickstart/make_data.py --train 1000         # more rows to train on

Each row is {"messages": [system, user, assistant]}. All shops are made up. The answers follow these rules:

  item        what the money was for, as the note has it, without a leading "a", "an" or "the", in lower case
              except for names and abbreviations
  amount      a number with two decimals
  currency    the ISO code: EUR, USD, GBP, CHF or CAD
  month, day  numbers (such notes rarely give the year)

The held-out rows test generalisation. No note, answer, amount or date among them occurs in the training rows. At
least half of them name an item, and at least one in seven has a sentence pattern, that training never shows; most of
the people and shops are new too. The script asserts all of this before it writes anything.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from note_words import (
    AMOUNTS,
    COMMON_CENTS,
    CURRENCY_WEIGHTS,
    MONTHS,
    NEW_PATTERNS,
    NEW_PEOPLE,
    PATTERNS,
    PEOPLE,
    TOPICS,
    WHOLE_AMOUNTS,
)

SYSTEM = "Note to compact JSON: item, amount (0.00), currency (ISO), month, day."
KEYS = ["item", "amount", "currency", "month", "day"]


@dataclass(frozen=True)
class Row:
    """One note, and the facts it states."""

    note: str
    answer: str
    item: str
    pattern: str
    cents: int
    date: datetime.date

    def as_json(self) -> str:
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": self.note},
            {"role": "assistant", "content": self.answer},
        ]
        return json.dumps({"messages": messages}, ensure_ascii=False)


def is_new_amount(cents: int) -> bool:
    """Whether an amount is kept for the held-out rows: about one in six is."""
    return zlib.crc32(b"amount %d" % cents) % 6 == 0


def is_new_date(date: datetime.date) -> bool:
    """Whether a calendar date is kept for the held-out rows: about one in six is."""
    return zlib.crc32(b"date %d %d" % (date.month, date.day)) % 6 == 0


def draw_amount(rng: random.Random, prices: tuple[int, int], new: bool) -> int:
    low, high = prices
    while True:
        units = int(low * (high / low) ** rng.random())  # small amounts are more common than large ones
        kind = rng.random()
        rest = 0 if kind < 0.25 else rng.choice(COMMON_CENTS) if kind < 0.65 else rng.randint(10, 99)
        if is_new_amount(units * 100 + rest) == new:
            return units * 100 + rest


def draw_date(rng: random.Random, new: bool) -> datetime.date:
    while True:
        date = datetime.date(2024, 1, 1) + datetime.timedelta(days=rng.randrange(366))  # 2024 has a 29 February
        if is_new_date(date) == new:
            return date


def spell_amount(rng: random.Random, cents: int, currency: str) -> str:
    units, rest = divmod(cents, 100)
    forms = AMOUNTS[currency] if rest else WHOLE_AMOUNTS[currency]
    return rng.choice(forms).format(n=f"{units}.{rest:02d}", u=units, c=f"{rest:02d}")


def spell_date(rng: random.Random, date: datetime.date) -> tuple[str, str]:
    """Return one spelling of the date, as it stands alone and as it stands after "on"."""
    day, month = date.day, MONTHS[date.month - 1]
    suffix = "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    spellings = (
        f"{day} {month}",
        f"{day} {month[:3]}",
        f"{month} {day}",
        f"{month[:3]} {day}",
        f"{month} {day}{suffix}",
        f"{day}{suffix} {month}",
        f"{day}{suffix} of {month}",
    )
    alone = rng.choice(spellings)
    return alone, f"the {alone}" if " of " in alone else alone


def draw_row(rng: random.Random, held_out: bool) -> Row:
    """Draw one row. In a held-out row the amount and date are new, and most items, shops and people are."""
    topic = rng.choices(TOPICS, weights=[4, 4, 4, 5, 2, 4])[0]
    pattern = rng.choice(NEW_PATTERNS if held_out and rng.random() < 0.25 else PATTERNS)
    item = rng.choice(topic.new_items if held_out and rng.random() < 0.7 else topic.items)
    shop = rng.choice(topic.new_shops if held_out and rng.random() < 0.7 else topic.shops)
    person = rng.choice(NEW_PEOPLE if held_out and rng.random() < 0.7 else PEOPLE)
    currency = rng.choices(list(CURRENCY_WEIGHTS), weights=list(CURRENCY_WEIGHTS.values()))[0]
    cents = draw_amount(rng, topic.prices, new=held_out)
    amount = spell_amount(rng, cents, currency)
    date = draw_date(rng, new=held_out)
    alone, after_on = spell_date(rng, date)

    first, _, rest = item.partition(" ")
    bare = rest if first in ("a", "an", "the") else item
    note = pattern.format(i=item, I=bare, a=amount, d=alone, on=after_on, s=shop, p=person)
    note = note[0].upper() + note[1:]
    answer = (
        f'{{"item":{json.dumps(bare)},"amount":{cents // 100}.{cents % 100:02d},'
        f'"currency":"{currency}","month":{date.month},"day":{date.day}}}'
    )
    return Row(note, answer, bare, pattern, cents, date)


def draw_rows(rng: random.Random, count: int, held_out: bool) -> list[Row]:
    """Draw rows whose notes and answers are all different."""
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < count:
        row = draw_row(rng, held_out)
        if row.note not in seen and row.answer not in seen:
            seen.update((row.note, row.answer))
            rows.append(row)
    return rows


def check(train: Sequence[Row], held_out: Sequence[Row]) -> None:
    """Assert that the answers are right in form, and that the held-out rows test what training did not show."""
    for row in (*train, *held_out):
        facts = json.loads(row.answer)
        assert list(facts) == KEYS, row
        assert round(facts["amount"] * 100) == row.cents, row
        assert (facts["month"], facts["day"]) == (row.date.month, row.date.day), row
        assert row.item.lower() in row.note.lower(), row
    assert not {row.note for row in train} & {row.note for row in held_out}
    assert not {row.answer for row in train} & {row.answer for row in held_out}
    assert not {row.cents for row in train} & {row.cents for row in held_out}
    assert not {row.date for row in train} & {row.date for row in held_out}
    items = {row.item for row in train}
    assert sum(row.item not in items for row in held_out) * 2 >= len(held_out)
    patterns = {row.pattern for row in train}
    assert sum(row.pattern not in patterns for row in held_out) * 7 >= len(held_out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write train.jsonl and held_out.jsonl of the quickstart task.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write to")
    parser.add_argument("--train", type=int, default=400, help="training rows")
    parser.add_argument("--held-out", type=int, default=120, help="held-out rows")
    parser.add_argument("--seed", type=int, default=0, help="for other notes of the same kind")
    args = parser.parse_args()

    train = draw_rows(random.Random(f"train {args.seed}"), args.train, held_out=False)
    held_out = draw_rows(random.Random(f"held out {args.seed}"), args.held_out, held_out=True)
    check(train, held_out)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train.jsonl", train), ("held_out.jsonl", held_out)):
        text = "".join(row.as_json() + "\n" for row in rows)
        (args.out / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{args.out / name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
