"""A recipe's parts put together: loader, adapter and memory strategies become a model, an optimizer and one step.

What is composed here is what a run trains and what a forecast traces: there is one step, in `step.py`. Nothing here
knows of a loop, of checkpoints or of files.

May import `recipe`, `data`, `plugin` and `errors`; a stranger to `runs`. Begin with `compose` in `parts.py`, then read
`model.py` (the model, through its strategies) and `step.py`.
"""
