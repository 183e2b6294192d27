"""The forecast of a run's memory: its own step, traced without values, and the allocator it would meet."""

from __future__ import annotations
