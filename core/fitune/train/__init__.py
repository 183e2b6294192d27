"""A run while it trains: the loop, what it keeps, how it stops and goes on, and what it does once memory runs out.

May import every wing but `cli`, `testing` and `trained`, to which it is a stranger. Begin with `run.py`, which is a
run's life from top to bottom, and `loop.py`, the optimizer steps; the other files are what these two use.
"""
