"""How a run ends that does not end well: what is said of it."""

from __future__ import annotations

from fitune.compose.devices import NONE_DETERMINISTIC
from fitune.errors import RunError


def _not_deterministic(error: BaseException) -> RunError | None:
    """Where `deterministic = true` asks for what torch does not have."""
    if not isinstance(error, RuntimeError) or NONE_DETERMINISTIC not in str(error):
        return None
    operation = str(error).split(NONE_DETERMINISTIC)[0].strip()
    return RunError(f"deterministic = true, but {operation} can only be computed otherwise here. Set it to false")
