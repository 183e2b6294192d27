"""What a finished run is good for: the trained model opened again, asked, evaluated and merged.

May import every wing but `cli`, `testing` and `train`, to which it is a stranger. Begin with `find` and `Trained` in
`open.py`; then a file for each command: `generate.py`, `evaluate.py`, `merge.py` (proven by `parity.py`).
"""
