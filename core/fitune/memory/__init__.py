"""What a run takes of a card: its own step traced without values, on a model of the allocator that it would meet.

`trace/` follows the step, `kernels/` adds what kernels take unseen, `allocator/` replays it all, `cards/` knows cards,
`fit/` chooses strategies that fit, `oom/` explains a run that did not.

May import `runs`, `compose`, `recipe`, `data`, `plugin` and `errors`; a stranger to `checkpoint`. Begin with
`forecast.py` (a forecast from a trace), then `trace/run.py`; `fit/resolve.py` is `[memory] fit`.
"""
