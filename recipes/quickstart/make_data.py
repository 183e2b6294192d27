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

SYSTEM = "Note to compact JSON: item, amount (0.00), currency (ISO), month, day."
KEYS = ["item", "amount", "currency", "month", "day"]


@dataclass(frozen=True)
class Topic:
    """Items, and who sells them. The "new" ones occur only in held-out rows."""

    items: tuple[str, ...]
    new_items: tuple[str, ...]
    shops: tuple[str, ...]
    new_shops: tuple[str, ...]
    prices: tuple[int, int]  # in whole units, from and to


def names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list that may run over several lines."""
    return tuple(" ".join(part.split()) for part in text.split(","))


MONTHS = names("January, February, March, April, May, June, July, August, September, October, November, December")

TOPICS = (
    Topic(  # food to take home
        names("""groceries, milk and bread, vegetables, a bag of rice, fruit, olive oil, cheese, party snacks, a box of
            eggs, fresh fish, a birthday cake, cat food, washing powder, orange juice, apples and pears, a crate of
            water, coffee beans, baby food, frozen peas, a watermelon"""),
        names("a jar of honey, dog food, strawberries, paper towels, bread and butter, a chocolate cake, potatoes"),
        names("Green Basket, Hilltop Market, Corner Pantry, Daily Harvest, Red Barn, Oakwood, The Larder, Sunny Farm"),
        names("Blue Apple, Riverside Market, Maple Farm, City Foods"),
        (2, 80),
    ),
    Topic(  # eating out
        names("""lunch, dinner, two coffees, breakfast, a sandwich, pizza, a team lunch, cake and tea, drinks, a bowl of
            soup, brunch, three beers, an iced latte, dinner for four, a curry, fish and chips, an ice cream, a burger,
            coffee and a muffin, tacos"""),
        names("a green salad, two teas, a birthday dinner, pancakes, hot chocolate, lunch for two, noodles"),
        names("Harbour Cafe, Bella Napoli, Noodle House, Golden Dragon, Cafe Luna, Sam's Diner, Spice Garden, The Fox"),
        names("Cafe Mozart, Taco Corner, Molly's, The Old Oak"),
        (3, 95),
    ),
    Topic(  # getting around
        names("""a train ticket, a taxi ride, a monthly pass, parking, a bus ticket, a flight to Rome, petrol, a seat
            reservation, a ferry ticket, a ride to the airport, a day pass, a flight to Boston, the taxi, car rental,
            the toll road, a train to Leeds, bike hire, an oil change"""),
        names("a night bus, a flight to Paris, a return ticket, a ride home, a train to London, the parking garage"),
        names("Northline Rail, City Cabs, Metro Transit, Swift Air, Blue Coach, Speedy Taxi, Park & Go"),
        names("Coastline Trains, Falcon Air, Yellow Cabs"),
        (5, 240),
    ),
    Topic(  # things
        names("""paint, a desk lamp, a drill, flower pots, a bookshelf, light bulbs, a phone charger, printer paper, a
            keyboard, notebooks, a novel, a bike pump, a raincoat, running shoes, a winter jacket, an umbrella, a wool
            scarf, a kettle, a USB cable, batteries, a birthday card, towels, a backpack, two pillows, a frying pan,
            toys for the kids, a wall clock, an alarm clock, black socks, a garden chair"""),
        names("""a garden table, a mirror, headphones, a cookbook, hiking boots, a tent, a screwdriver, a blue shirt, an
            office chair, pens and paper, a coffee machine"""),
        names("Hammer & Nail, Bright Home, Garden World, Tool Depot, Paper Moon, Chapter One, Cotton Lane, Shoe Barn"),
        names("Timber Town, Pixel Planet, Book Corner, Peak Outdoor"),
        (4, 260),
    ),
    Topic(  # health
        names("""cough syrup, a check-up, new glasses, a dental cleaning, vitamins, a flu shot, sunscreen, a massage,
            plasters, hand cream, a toothbrush"""),
        names("eye drops, a blood test, painkillers, contact lenses, a dental check"),
        names("Elm Pharmacy, Dr Novak, City Dental, Clear View, Well & Good"),
        names("Dr Young, Smile Dental, Market Pharmacy"),
        (4, 190),
    ),
    Topic(  # services and leisure
        names("""a haircut, a gym membership, a swimming lesson, concert tickets, babysitting, piano lessons, cinema
            tickets, garden work, house cleaning, dog walking, moving help, flowers, the hotel room, window cleaning, a
            bike repair, the phone bill, a birthday gift, rent for the garage, the football match, a dance class"""),
        names("""a yoga class, guitar lessons, museum tickets, a boat trip, a wedding gift, the water bill, a laptop
            repair, football tickets"""),
        names("City Services, Studio One, Fit Factory, Aqua Park, Happy Days, The Town Hall, Pro Help"),
        names("Lotus Studio, Blue Lake Club, Handy & Co"),
        (6, 190),
    ),
)

PEOPLE = names("""Maria, Tom, Aisha, Lukas, Priya, Ben, Chloe, Mr Patel, Olga, Diego, Hannah, Kenji, Mrs Jones, Fatima,
    Paul, Ingrid, Marco, Sofia, Daniel, Mei, Anna, James, Rosa, Ali, Nina, Peter""")
NEW_PEOPLE = names("Yusuf, Clara, Mr Green, Leila, Oscar, Grace, Ravi, Emma, Mrs White, Hugo, Zoe")

# {i} the item, {I} the item without its article, {a} the amount, {d} the date as it stands alone, {on} the date as it
# stands after "on", {s} a shop, {p} a person.
PATTERNS = (
    "Spent {a} on {i} on {on}.",
    "{i}, {a}, {d}",
    "{d}: {i}, {a}",
    "{a} for {i}, {d}",
    "Bought {i} for {a} on {on}.",
    "On {on} I bought {i} for {a}.",
    "Got {i} on {on}, cost me {a}",
    "I paid {a} for {i} on {on}.",
    "{i} cost {a} on {on}",
    "{d} - {I} - {a}",
    "On {on} I spent {a} on {i}",
    "Paid {a} on {on} for {i}.",
    "My card was charged {a} for {i} on {on}.",
    "Bought {i} at {s} for {a} on {on}.",
    "{s} charged me {a} for {i} on {on}.",
    "{d}: {i} from {s}, {a}",
    "{i} at {s}, {a}, {d}",
    "{s}, {d}, {I}, {a}",
    "Spent {a} at {s} on {on} for {i}.",
    "Paid {p} {a} for {i} on {on}",
    "Gave {p} {a} on {on} for {i}.",
    "{a} to {p} for {i}, {d}",
    "Sent {a} to {p} on {on} for {i}",
    "On {on} I paid {p} {a} for {i}.",
)
NEW_PATTERNS = (
    "Picked up {i} on {on} for {a}.",
    "On {on}, {i} came to {a}.",
    "{d}, {a}, {I}",
    "On {on} {s} took {a} for {i}.",
    "Paid back {p} on {on}, {a} for {i}",
    "{a} spent on {i}, {d}",
)

# {n} the amount with its decimals, {u} the whole units, {c} the two digits after them.
AMOUNTS = {
    "EUR": names("€{n}, {n} euros, {u} euros {c}, EUR {n}, {n} €, {u} euros and {c} cents"),
    "USD": names("${n}, {n} dollars, {n} USD, {u} dollars and {c} cents, US${n}, ${n}, {n} bucks"),
    "GBP": names("£{n}, {n} pounds, GBP {n}, {u} pounds {c}, £{n}, {n} quid"),
    "CHF": names("CHF {n}, {n} francs, {n} Swiss francs, {n} CHF, {u} francs {c}"),
    "CAD": names("C${n}, {n} Canadian dollars, CAD {n}, {n} CAD"),
}
WHOLE_AMOUNTS = {
    "EUR": names("€{u}, {u} euros, EUR {u}, {u} €"),
    "USD": names("${u}, {u} dollars, {u} USD, {u} bucks"),
    "GBP": names("£{u}, {u} pounds, {u} quid"),
    "CHF": names("CHF {u}, {u} francs, {u} Swiss francs"),
    "CAD": names("C${u}, {u} Canadian dollars, CAD {u}"),
}
CURRENCY_WEIGHTS = {"EUR": 4, "USD": 4, "GBP": 3, "CHF": 2, "CAD": 2}
COMMON_CENTS = (10, 20, 25, 40, 50, 50, 60, 75, 80, 90, 95, 99)


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
