"""What CUDA kernels take of the caching allocator beside their results, which shapes do not show.

Begin with `scratch_table` in `scratch.py`, a function for each operation; `attention.py`, `index.py` and `reduce.py`
hold the larger families, `gpu.py` what their launches depend on. May import what `memory` may.
"""
