"""`[memory] fit`: the fastest composition of memory strategies that fits a card.

Begin with `resolve` in `resolve.py`, then `search.py`, in the `space.py` of `choices.py`; `tracing.py` and
`estimate.py` are how it looks, `refit.py` is the fit of a run that is at work. May import what `memory` may.
"""
