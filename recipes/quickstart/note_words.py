"""The words that `make_data.py` makes expense notes of: items and who sells them, people, sentences, amounts."""

from __future__ import annotations

from dataclasses import dataclass


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
