"""A run on another machine: what is sent there, what it takes and costs, what is known of it, and how it comes back.

May import every wing but `cli` and `testing`. `send.py` tells the whole way of `ft launch RECIPE`: `estimate.py` says
what the run takes of the machine, how long and for how much, `bundle.py` gathers what is sent, `jobs.py` asks after
what was sent. `start.py`, `work.py` and `container.py` are what runs on the other machine: they import nothing but
Python's own, since they come before all packages do. `remote.py` keeps checkpoints on object storage.
"""
