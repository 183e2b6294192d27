"""The process that forecasts a run beside it: a request on standard input, a plan as JSON on standard output."""

from __future__ import annotations

import json
import pickle
import sys

from fitune.errors import FtError
from fitune.memory.background import Request
from fitune.memory.forecast import forecast
from fitune.memory.report import json_of
from fitune.memory.trace.twins import twins_of
from fitune.plugin.own_python import leave_kernels_out
from fitune.plugin.registry import Registry
from fitune.plugin.trust import Trust
from fitune.recipe.reader import read_recipe


def main() -> None:
    """Answer one request, which the run that started this process has written."""
    leave_kernels_out()
    request: Request = pickle.loads(sys.stdin.buffer.read())
    try:
        registry = Registry.open(
            third_party=request.third_party,
            trusts_remote_code=request.trusts_remote_code,
            trust=Trust(granted=set(request.granted)),
        )
        recipe = read_recipe(request.recipe, registry)
        found = forecast(recipe, request.shapes, request.card, twins_of(registry))
    except FtError as error:
        sys.exit(error.lines[0])
    print(json.dumps(json_of(found)))


if __name__ == "__main__":
    main()
