"""What SageMaker trains on, and what that costs: AWS's price list where it may be asked, else a table with its date."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import tomli

from fitune import Machine, Price, RunError, nearest

TABLE = Path(__file__).with_name("sagemaker_machines.toml")

PRICE_LIST = "us-east-1"
"""The region whose endpoint knows the prices of all regions
(docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/using-price-list-query-api.html)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The machines, and where their prices are from."""

    machines: tuple[Machine, ...]
    region: str
    """For which the prices are."""


@functools.cache
def table() -> Table:
    """That of the file beside this one."""
    values = tomli.loads(TABLE.read_text(encoding="utf-8"))
    made = []
    for row in values["machine"]:
        hour = row.get("price")
        price = None if hour is None else Price(hour=hour, source=values["price_source"], date=values["price_date"])
        made.append(Machine(name=row["name"], gpu=row["gpu"], gpus=row["gpus"], price=price))
    return Table(machines=tuple(made), region=values["price_region"])


def find(name: str | None) -> Machine:
    """A machine by its name, with its price in the table's region. Raises `RunError`."""
    known = {machine.name: machine for machine in table().machines}
    if name is None:
        raise RunError("SageMaker has many machines, so one must be named. Give --instance, e.g. ml.g5.4xlarge")
    if name not in known:
        raise RunError(f'SageMaker has no machine "{name}" with a card that is known here. {nearest(name, known)}')
    return known[name]


def priced(machine: Machine, region: str, price_list: Any) -> Machine:
    """A machine with its price in a region: by the price list, where a client that may ask it is given, or by the
    table, where that is of the region; else without one.
    """
    hour = None if price_list is None else asked(machine.name, region, price_list)
    if hour is not None:
        today = date.today().isoformat()
        return replace(machine, price=Price(hour=hour, source=f"AWS's price list for {region}", date=today))
    return machine if region == table().region else replace(machine, price=None)


def asked(name: str, region: str, price_list: Any) -> float | None:
    """US dollars an hour for training, on demand; None where the list cannot be asked, or says none or several."""
    fields = {"regionCode": region, "component": "Training", "instanceName": name}
    try:
        found = price_list.get_products(
            ServiceCode="AmazonSageMaker",
            Filters=[{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in fields.items()],
            MaxResults=100,
        )
        hours = {hour for product in found["PriceList"] for hour in _hours(json.loads(product))}
    except Exception:  # no credentials, no permission, no network, another shape: it is told that there is no price
        return None
    return hours.pop() if len(hours) == 1 else None


def _hours(product: Any) -> Iterator[float]:
    """The prices above 0 of a product."""
    for term in product["terms"]["OnDemand"].values():
        for dimension in term["priceDimensions"].values():
            if dimension["unit"].lower() in ("hrs", "hours", "hour"):
                hour = float(dimension["pricePerUnit"]["USD"])
                if hour > 0:
                    yield hour
