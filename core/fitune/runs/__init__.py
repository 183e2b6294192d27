"""A run's directory: what is written there, whole or not at all, and how it is read again.

Its record, metrics, answers, model card and trackers; where it came from (`provenance.py`, `identity.py`); one run at
a time (`lock.py`). `history/` reads what became of runs, for `ft runs`, without torch.

May import `recipe`, `data`, `plugin` and `errors`; a stranger to `compose`. Begin with `layout.py`, which names a
run's files, `atomic.py`, by which each is written, and `record.py`, the state of a run.
"""
