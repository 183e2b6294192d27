"""What one process knows of the others: who is lost, who has failed, and whether all do the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fitune import Recipe, RunError
from fitune.compose import devices
from fitune.compose.processes import PeerFailed, PeerLost
from fitune.compose.together import Failure, Together, _worst, lost, together
from fitune.train.out_of_memory import said_by

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1221: Connection reset by peer. "
    "This is typically caused by a remote worker hanging or bugs in the application."
)


def _failure(process: int, memory: str | None = None) -> Failure:
    return Failure(process=process, said="no", memory=memory, trace="Traceback ...")


def test_alone_there_is_nobody_to_meet() -> None:
    alone = together()
    assert alone.meet(True, False) == (True, False)
    assert alone.fail(ValueError("no"), None) is None
    assert not alone.can_tell
    assert (alone.least(7), alone.same(7), alone.agreed(True), alone.agreed(False)) == (7, True, True, False)
    assert alone.texts("mine") == ["mine"]


def test_who_is_cut_off_asks_nobody() -> None:
    """It would wait for processes that wait for it; its group is none that could be asked."""
    apart = Together(object())
    with pytest.raises(ValueError, match="in a layer"), apart.cut_off():
        raise ValueError("in a layer")
    assert not apart.can_tell
    assert apart.fail(ValueError("in a layer"), None) is None
    assert not apart.agreed(True)


def test_a_shortage_of_memory_is_what_all_go_on_from_unless_somebody_has_failed_otherwise() -> None:
    assert _worst([_failure(0, "out of memory"), _failure(1, "out of memory")]).process == 0
    assert _worst([_failure(0, "out of memory"), _failure(1)]).process == 1
    error = _failure(3, "CUDA out of memory").error()
    assert said_by(error) == "CUDA out of memory"
    assert said_by(_failure(3).error()) is None
    assert str(error) == "process 3: no"
    assert error.shared


@pytest.fixture
def of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is one of two."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)


@pytest.mark.usefixtures("of_two")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(GLOO), "(Read error [127.0.0.1]:1221: Connection reset by peer)"),
        (dist.DistBackendError("NCCL error: remote process exited"), "(NCCL error: remote process exited)"),
        (PeerLost("gone"), "(gone)"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (torch.OutOfMemoryError("CUDA out of memory in NCCL"), None),
        (PeerFailed(1, "NCCL"), None),
    ],
)
def test_who_is_lost(error: Exception, said: str | None) -> None:
    outer = RunError("a plugin failed")
    outer.__cause__ = error
    for raised in (error, outer):
        found = lost(raised)
        assert (found is None) if said is None else (found is not None and found.message.endswith(said))
        behind: BaseException | None = found
        for _ in range(4):
            behind = None if behind is None else behind.__cause__
        assert behind is None, "it is no cause of itself"


def test_alone_nobody_is_lost() -> None:
    assert lost(RuntimeError(GLOO)) is None


def test_all_must_have_read_the_same(read: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files on two machines, which differ in what is computed; where they lie makes no difference."""
    other: list[str] = []

    class Two:
        def texts(self, own: str) -> list[str]:
            return [own, *(other or [own])]

    monkeypatch.setattr(devices, "together", Two)
    devices.must_be_one_run(read())
    other.append("{}")
    with pytest.raises(RunError, match="process 1 has another recipe than process 0"):
        devices.must_be_one_run(read())


def test_an_error_is_left_where_torchs_launchers_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where somebody has named the file."""
    from fitune.compose.processes import ERROR_FILE, reads_errors, tell_launcher

    monkeypatch.delenv(ERROR_FILE, raising=False)
    assert not reads_errors()
    tell_launcher("nobody reads it", printed=False)
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "error.json"))
    assert reads_errors()
    tell_launcher("no such file", printed=True)
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    failure = ProcessFailure(local_rank=1, pid=1, exitcode=2, error_file=str(tmp_path / "error.json"))
    message: Any = failure.message
    assert message["message"] == "no such file"
    assert failure.timestamp > 0
