"""The commit that a directory's repository is at, read from git's files.

git itself is not asked: it runs what a repository's own configuration names (`core.fsmonitor`, filters, text
conversions, aliases of included files), and a recipe's repository may be a stranger's. Whether files differ from the
commit is not told, since that cannot be known without filters.

Formats: gitrepository-layout(5), gitglossary(7). Repositories that keep their references in reftable are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fitune.plugin.reading import open_file, read_file

SHORT = 1 << 16
"""Bytes of a file that holds one line, at most."""

PACKED = 1 << 26
"""Bytes of packed-refs, at most: of about half a million references."""

LINKS = 5
"""References that may stand for one another, at most, as in git."""

COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""The name of a commit, by SHA-1 or SHA-256."""

REFERENCE = re.compile(r"refs(?:/(?!\.)[^\0-\x20\x7f~^:?*\[\\/]+)+")
"""A reference's name, as `git check-ref-format` knows it: no part of it leads out of the repository."""


def state_of(directory: Path) -> dict[str, str] | None:
    """The commit, and the branch where there is one; None where there is no repository, or none that can be read."""
    try:
        repository = _repository(directory)
        return None if repository is None else _head(*repository)
    except (OSError, ValueError, RuntimeError):  # what is damaged, or too long, or a circle of links
        return None


def _repository(directory: Path) -> tuple[Path, Path] | None:
    """Where HEAD is, and where the references are, which worktrees share. Raises `OSError` and `ValueError`."""
    for place in (directory, *directory.parents):
        git = place / ".git"
        if git.is_file():  # a worktree's, or a submodule's
            named = _line(git)
            if not named.startswith("gitdir: "):
                return None
            git = git.parent / named.removeprefix("gitdir: ")
        if not (git / "HEAD").is_file():
            continue
        shared = git / "commondir"
        return git, git / _line(shared) if shared.is_file() else git
    return None


def _head(own: Path, shared: Path) -> dict[str, str] | None:
    """What HEAD stands for, through symbolic references."""
    said = _line(own / "HEAD")
    branch: dict[str, str] = {}
    for _ in range(LINKS):
        if COMMIT.fullmatch(said):
            return {"commit": said, **branch}
        name = said.removeprefix("ref:").strip()
        if not said.startswith("ref:") or not REFERENCE.fullmatch(name):
            return None
        branch = branch or ({"branch": name.removeprefix("refs/heads/")} if name.startswith("refs/heads/") else {})
        said = next(_values(own, shared, name), "")
    return None


def _values(own: Path, shared: Path, name: str) -> Iterator[str]:
    """What a reference stands for: a file of its own counts before a line of packed-refs."""
    for home in (own, shared):
        if (home / name).is_file():
            yield _line(home / name)
    if (shared / "packed-refs").is_file():
        for line in read_file(shared / "packed-refs", PACKED).decode("utf-8", "replace").splitlines():
            commit, _, named = line.partition(" ")
            if named == name:
                yield commit


def _line(file: Path) -> str:
    """The first line of a short file."""
    with open_file(file) as stream:
        return stream.read(SHORT).decode("utf-8", "replace").partition("\n")[0].strip()
