"""A run that ran out of memory: what its message says, what filled the card, and what makes the run fit.

Begin with `explain` in `explain.py`; `message.py` and `traceback.py` read text, `failure.py` finds the request in a
trace, `report.py` tells it. May import what `memory` may.
"""
