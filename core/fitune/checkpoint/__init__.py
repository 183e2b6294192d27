"""What a run keeps on the way, and how it goes on from there: whole or not at all, and the same to the bit."""

from __future__ import annotations
