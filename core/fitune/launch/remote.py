"""A run's directory on object storage, through fsspec: as it was after a checkpoint, whole or not at all.

    URL/objects/SHA256      the content of a file, never written over
    URL/head.json           the files of the run by name, each with its digest; written last, at once
    URL/before.json         the head before that

A head that is there names objects that were all there before it: what was cut off in the midst of an upload has no
head, and nobody goes on from it. Files are hashed again as they come back; where one is not what was sent, the head
before is taken, and that is told.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fitune.checkpoint.files import places
from fitune.checkpoint.manifest import damage
from fitune.compose.processes import is_main_process, process_count
from fitune.errors import RunError, described
from fitune.plugin.digest import digest_of
from fitune.plugin.events import CheckpointReport, Run
from fitune.plugin.hookspecs import hookimpl
from fitune.plugin.reading import json_of
from fitune.plugin.registry import Registry
from fitune.runs import atomic
from fitune.runs.history.summary import is_run
from fitune.runs.launched import LAUNCH

HEAD, BEFORE, OBJECTS = "head.json", "before.json", "objects"

FORMAT = 1

DIGEST = re.compile(r"[0-9a-f]{64}")

FETCHED = "FITUNE_REMOTE_FETCHED"
"""A variable with the place that whoever started this process has fetched from, for all of the run's processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A run as it was at one moment."""

    step: int
    """Of its newest checkpoint."""
    files: Mapping[str, str]
    """SHA-256 digests by names, which are relative, with slashes."""


class Remote:
    """The place of one run on object storage; as a plugin it is told of the run's checkpoints, and keeps them there."""

    def __init__(self, url: str, directory: Path) -> None:
        """`directory` is the run's here. Raises `RunError` for a place that cannot be reached from here."""
        import fsspec

        self.url, self.directory = url.rstrip("/"), directory
        if "://" not in url:
            raise RunError(f"--remote {url}: give a place on object storage, e.g. s3://BUCKET/PREFIX")
        try:
            self.files, self.root = fsspec.url_to_fs(self.url)
        except ImportError as error:
            raise RunError(f"--remote {url}: {error}. Install that package, e.g. s3fs for s3://") from error
        except ValueError as error:
            raise RunError(f"--remote {url}: {error}") from error

    def fetch(self) -> str | None:
        """Bring what is there, if it is further than what is here; what was done, in words, or None. Raises `RunError`
        if something is there that cannot be used.
        """
        try:
            heads = [head for name in (HEAD, BEFORE) if (head := self._head(name)) is not None]
            if not heads:
                return None
            if is_run(self.directory) and whole_step(self.directory) >= heads[0].step:
                return None
            wrong: list[str] = []
            for head in heads:
                if (said := self._bring(head)) is None:
                    notes = f" ({'; '.join(wrong)}: that of an earlier moment is taken)" if wrong else ""
                    return f"{self.directory} is fetched from {self.url}, after {head.step} steps{notes}"
                wrong.append(said)
        except OSError as error:
            raise RunError(f"{self.url} cannot be read: {described(error)}. The run was not begun anew") from error
        raise RunError(
            f"{self.url} holds no run that is whole: {'; '.join(wrong)}. Give another --remote to begin anew"
        )

    def keep(self, step: int) -> None:
        """Bring the run's directory there, as it is. Raises `OSError`."""
        before = self._head(HEAD)
        known = set() if before is None else set(before.files.values())
        found = {place.relative_to(self.directory).as_posix(): place for place in _files(self.directory)}
        digests = {name: digest_of(place) for name, place in found.items()}
        self.files.makedirs(f"{self.root}/{OBJECTS}", exist_ok=True)
        for name, digest in digests.items():
            if digest not in known:
                self.files.put_file(str(found[name]), f"{self.root}/{OBJECTS}/{digest}")
                known.add(digest)
        if before is not None:
            self._write(BEFORE, before)
        head = Head(step=step, files=digests)
        self._write(HEAD, head)
        used = {*digests.values(), *(before.files.values() if before is not None else ())}
        for place in self.files.ls(f"{self.root}/{OBJECTS}", detail=False):
            if PurePosixPath(place).name not in used:
                self.files.rm_file(place)

    @hookimpl
    def ft_checkpoint_saved(self, run: Run, report: CheckpointReport) -> None:
        """Keep it there too."""
        self._try(report.step)

    @hookimpl
    def ft_run_finished(self, run: Run | None) -> None:
        """Keep what the run ends with."""
        if run is not None:
            self._try(whole_step(self.directory))

    def _try(self, step: int) -> None:
        """Keep it; where that fails, what was kept before stays, and the run goes on."""
        try:
            self.keep(step)
        except Exception as error:  # each storage has errors of its own
            said = described(error)
            print(f"note: {self.url} does not have the run after {step} steps: {said}", file=sys.stderr, flush=True)

    def _head(self, name: str) -> Head | None:
        """One that is there; None for one that is not, or cannot be read. Raises `OSError`."""
        try:
            values = json_of(self.files.cat_file(f"{self.root}/{name}"))
            if values["format"] != FORMAT:
                raise RunError(f"{self.url}/{name} is of another release of fitune: it reads format {FORMAT}")
            files = {str(file): str(digest) for file, digest in values["files"].items()}
            return Head(step=int(values["step"]), files=files)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None

    def _write(self, name: str, head: Head) -> None:
        """At once, as object storage does; a disk by a name of its own first."""
        text = json.dumps({"format": FORMAT, "step": head.step, "files": dict(head.files)}).encode()
        partial = f"{self.root}/.{name}.partial"
        self.files.pipe_file(partial, text)
        self.files.mv(partial, f"{self.root}/{name}")

    def _bring(self, head: Head) -> str | None:
        """Put the files of a head into the run's directory, at once; what is wrong with them, or None."""
        partial = atomic.begin(self.directory)
        try:
            for name, digest in head.files.items():
                if (wrong := self._get(name, digest, partial)) is not None:
                    return wrong
            if (self.directory / LAUNCH).is_file():
                shutil.copyfile(self.directory / LAUNCH, partial / LAUNCH)
            atomic.publish(partial, self.directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return None

    def _get(self, name: str, digest: str, into: Path) -> str | None:
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name:
            return f"{name} leads out of the run"
        if not place.parts or not name.isprintable():
            return f"{name!r} is no name of a file"
        if not DIGEST.fullmatch(digest):
            return f"{name} has no digest"
        target = into.joinpath(*place.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.files.get_file(f"{self.root}/{OBJECTS}/{digest}", str(target))
        except FileNotFoundError:
            return f"{name} is missing"
        return None if digest_of(target) == digest else f"{name} is not what was written (its SHA-256 differs)"


def _files(directory: Path) -> Iterator[Path]:
    """All files of a run, but for locks and what is being written or deleted."""
    for place in sorted(directory.iterdir()):
        if place.name.startswith(".") or place.is_symlink() or place.name == LAUNCH:
            continue
        if place.is_dir():
            yield from _files(place)
        elif place.is_file():
            yield place


def whole_step(directory: Path) -> int:
    """The steps of the newest checkpoint that is whole; 0 without one."""
    return next((step for step, place in places(directory) if damage(place) is None), 0)


def attach(url: str, directory: Path | None, registry: Registry, *, processes: int = 1) -> str | None:
    """Fetch a run's directory, and have a plugin keep it from then on; what was done, in words. Raises `RunError`.

    `processes` is how many this one starts: they keep the run then, by the first of them, which alone is told of
    checkpoints. All of a run's processes share its directory.
    """
    if directory is None:
        raise RunError("--remote needs a directory that does not change from start to start. Give --out DIR")
    remote = Remote(url, directory)
    told = None if os.environ.get(FETCHED) == url else _fetched(remote)
    if processes == 1:
        registry.register(remote, "remote")
    return told


def _fetched(remote: Remote) -> str | None:
    """Fetch what is there; of several processes that others have launched the first does so, and no other reads the
    directory before. Raises `RunError`, of that process' own or another's.
    """
    if process_count() == 1:
        return remote.fetch()
    from fitune.compose.devices import make_accelerator
    from fitune.compose.together import together

    make_accelerator()  # which joins the processes
    told = None
    if is_main_process():
        try:
            told = remote.fetch()
        except RunError as error:
            together().fail(error, None)
            error.shared = True
            raise
    together().meet()
    return told
