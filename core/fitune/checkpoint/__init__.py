"""Training state on disk, and back: whole or not at all, every byte checked, the same to the bit.

When a checkpoint is due, and what goes on from it, is decided in `train`; here is what one holds.

May import `runs`, `compose`, `recipe`, `data`, `plugin` and `errors`; a stranger to `memory`. Begin with `state.py`
(what a run has learnt and where it stands), then `files.py` (as a directory) and `manifest.py` (its digests).
"""
