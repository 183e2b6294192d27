"""What became of runs, from what they left in their directories: `ft runs`. Imports no torch.

Begin with `summary.py`, which reads one run; `list.py`, `show.py` and `compare.py` are the commands. May import what
`runs` may.
"""
