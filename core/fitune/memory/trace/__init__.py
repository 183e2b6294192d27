"""A run's own step, followed on tensors that have shapes and no values: every block of memory, and what it is for.

Begin with `run.py`, which composes the run and follows two steps; `tracer.py` sees each operation and writes `log.py`.
Beside them: what a card does otherwise than a trace (`patches.py`, `functional.py`, `attention.py`, `outputs.py`),
custom kernels (`twins.py`), and how long a step takes (`step_time.py`, `flops.py`). May import what `memory` may.
"""
