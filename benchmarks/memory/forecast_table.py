"""What `forecasts.py` says of its rows: errors, the blocks at two peaks side by side, a table."""

from __future__ import annotations

import importlib.metadata
import statistics
from typing import Any

Json = dict[str, Any]
GIB = 2**30
KEPT = 40
"""Sizes of blocks at a peak that are listed."""


def summary(rows: list[Json]) -> Json:
    """The largest and the median error of each group, in percent, signs left aside."""
    found: Json = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        for key in ("allocated", "reserved"):
            errors = [abs(r["error_percent"][key]) for r in rows if r["group"] == group and "error_percent" in r]
            if errors:
                of = {"rows": len(errors), "max": max(errors), "median": round(statistics.median(errors), 4)}
                found[f"{group}, {key}"] = of
    return found


def table(rows: list[Json]) -> str:
    """All rows, the worst forecast first, then those without one."""
    lines = ["allocated GiB: forecast, truth, error %; reserved GiB: forecast, truth, error %; peak of saving"]
    whole = [row for row in rows if "error_percent" in row]
    for row in sorted(whole, key=lambda row: -abs(row["error_percent"]["allocated"])):
        cells = []
        for key in ("allocated", "reserved"):
            pair = [row[side][key] / GIB for side in ("forecast", "truth")]
            cells.append(f"{pair[0]:8.4f} {pair[1]:8.4f} {row['error_percent'][key]:+8.4f}")
        lines.append(f"{'   '.join(cells)}   {row['truth']['saving'] / GIB:7.3f}  {row['case']}")
    for row in (row for row in rows if "error_percent" not in row):
        sides = [f"{side} {row[side]['allocated'] / GIB:.4f} {row[side]['reserved'] / GIB:.4f}"
                 for side in ("forecast", "truth") if side in row]  # fmt: skip
        lines.append(f"{row['case']}: {', '.join(sides) or 'nothing'}; {'; '.join(row.get('errors', ()))}")
    for name, found in summary(rows).items():
        lines.append(f"{name}: {found['rows']} rows, error at most {found['max']} %, median {found['median']} %")
    return "\n".join(lines)


def beside(forecast: Json, truth: Json) -> Json:
    """Blocks at both peaks: the largest of each, and the sizes of which there are more or fewer in truth."""
    counts: list[dict[int, int]] = [side["sizes"] for side in (forecast, truth)]
    more = {size: counts[1].get(size, 0) - counts[0].get(size, 0) for size in counts[0].keys() | counts[1].keys()}

    def examples(size: int) -> list[str | None]:
        return [side["examples"].get(size) for side in (forecast, truth)]

    return {
        "forecast": _largest(counts[0]),
        "truth": _largest(counts[1]),
        "more": [[size, count, *examples(size)] for size, count in _largest({s: n for s, n in more.items() if n})],
    }


def _largest(counts: dict[int, int]) -> list[tuple[int, int]]:
    return sorted(counts.items(), key=lambda item: abs(item[0] * item[1]), reverse=True)[:KEPT]


def version(package: str) -> str | None:
    """The installed version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
