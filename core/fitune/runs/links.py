"""A run writes into its own directory: files of it take the place of links, and directories of it may not be links."""

from __future__ import annotations

from pathlib import Path

from fitune.errors import RunError


def must_not_lead_out(run: Path) -> None:
    """Raise `RunError` if something in a run's directory is a link to a directory elsewhere, which would be written to,
    and cleared of old checkpoints.
    """
    try:
        home = run.resolve()
        links = sorted(place for place in run.iterdir() if place.is_symlink() and place.is_dir())
        found = next((place for place in links if home not in place.resolve().parents), None)
    except (OSError, RuntimeError) as error:
        raise RunError(f"{run} cannot be read: {error}") from error
    if found is not None:
        raise RunError(
            f"{found} is a link to {found.resolve()}, and a run writes nothing outside of its own directory. Move what "
            "it leads to there; for another disk, give the whole run a directory on it: --out"
        )
