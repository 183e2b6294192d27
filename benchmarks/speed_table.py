"""The figures of `benchmarks/speed.py`, and its tables."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

from speed_rows import ROWS, WARM_UP, Json

GIB = 2**30
_COLUMNS = "{:>8} {:>8} {:>7} {:>8} {:>7} {:>7} {:>14}"


def result_of(found: Json, best: float) -> Json:
    """The figures of what a clock has seen; `best` is what the card could do at most, in tokens a second."""
    ends: list[float] = found.get("ends", [])
    result: Json = {key: found[key] for key in ("error", "took") if key in found}
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    timed = list(zip(seconds, found.get("tokens", [])[1:], strict=True))
    rates = [tokens / time for time, tokens in timed[WARM_UP - 1 :]]
    if rates:
        speed = statistics.median(rates)
        result |= {"tokens_per_second": round(speed), "spread": [round(min(rates)), round(max(rates))]}
        result["percent_of_ceiling"] = round(100 * speed / best, 1)
    if ends:
        result |= {"to_first_step": round(ends[0] - found["start"], 1)}
        result |= {f"{kind}_gib": round(found[kind] / GIB, 3) for kind in ("allocated", "reserved") if kind in found}
    if len(ends) >= 10:
        result["to_tenth_step"] = round(ends[9] - found["start"], 1)
    raw = {key: value for key, value in found.items() if key not in (*result, "kernels", "ends", "start")}
    raw["ends"] = [round(end - found["start"], 4) for end in ends]
    return {**result, "kernels": found.get("kernels"), "raw": raw}


def tables(kept: Json) -> Iterator[str]:
    """Lines: for each session its speeds, then where the time goes."""
    for session in kept["sessions"]:
        results = [result for result in kept["results"] if result["session"] == session["session"]]
        yield f"\n{session['session']}: {session['flops'] / 1e12:.0f} TFLOP/s, limit {session['limit_gib']} GiB"
        head = ("row", "stack", "tok/s", "ceiling", "alloc", "reserved", "1st s", "10th s", "of best rival")
        yield "{:<13} {:<29}".format(*head) + _COLUMNS.format(*head[2:])
        for row in ROWS:
            of_row = [result for result in results if result["row"] == row]
            rivals = [r.get("tokens_per_second", 0) for r in of_row if not r["stack"].startswith("fitune")]
            for result in of_row:
                yield _line(result, max(rivals, default=0))
        for result in results:
            if result.get("kernels"):
                found = result["kernels"]
                shares = ", ".join(f"{name} {time:.1f}" for name, time in found["parts"].items())
                told = (
                    f"busy {found['busy']:.1f}, gaps {found['gaps']:.1f} ms a micro-batch, {found['kernels']} kernels"
                )
                yield f"{result['row']} {result['stack']}: {told}: {shares}"


def _line(result: Json, best: float) -> str:
    stack = result["stack"] + (" +checkpointing" if result["checkpointing"] else "")
    start = f"{result['row']:<13} {stack:<29}"
    if "tokens_per_second" not in result:
        return f"{start}  {result.get('error', 'no step was timed').strip().splitlines()[-1][:90]}"
    ratio = f"{result['tokens_per_second'] / best:.2f}" if best and result["stack"].startswith("fitune") else ""
    sizes = [f"{result.get(key, 0):.2f}" for key in ("allocated_gib", "reserved_gib")]
    times = [f"{result[key]:.1f}" if key in result else "-" for key in ("to_first_step", "to_tenth_step")]
    columns = [f"{result['tokens_per_second']:,}", f"{result['percent_of_ceiling']:.1f}%", *sizes, *times, ratio]
    failed = "  then failed" if "error" in result else ""
    return start + _COLUMNS.format(*columns) + failed
