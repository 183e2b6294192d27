"""torch's CUDA caching allocator in plain Python, without torch: what it reserves for a log of allocations.

Begin with `replay.py`, then `allocator.py`; `pools.py` is one pool of free blocks. Imports nothing of fitune.
"""
