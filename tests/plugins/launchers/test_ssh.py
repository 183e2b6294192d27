"""`ssh` with programs in place of ssh and rsync, which do here what those do on the other host."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fitune import Job, Launcher, Machine, RunError
from fitune.testing import assert_launcher, open_registry
from fitune_plugins.launchers.ssh import SshOptions, check

SSH = """\
#!/bin/sh
# options, a host, "--", one command for its shell
while :; do case "$1" in -o|-p) shift 2;; *) break;; esac; done
echo "$1" >> "$FAKE_HOME/.hosts"
if [ "$1" = down ]; then echo "ssh: connect to host down port 22: Connection refused" >&2; exit 255; fi
shift 2
cd "$FAKE_HOME" && PATH="$FAKE_BIN:$PATH" exec sh -c "$1"
"""

RSYNC = """\
#!/bin/sh
[ "$1" = --version ] && exit 0
echo "$@" >> "$FAKE_HOME/.rsync"
while [ $# -gt 2 ]; do shift; done
from="${1#gpu-box:}"; to="${2#gpu-box:}"
case "$1" in gpu-box:*) from="$FAKE_HOME/$from";; esac
case "$2" in gpu-box:*) to="$FAKE_HOME/$to";; esac
exec cp -R "$from." "$to"
"""

NVIDIA_SMI = """\
#!/bin/sh
echo "NVIDIA A10G"
echo "NVIDIA A10G"
"""

OPTIONS = SshOptions(host="gpu-box", python=sys.executable, gpu="none", ssh=("-p", "2222"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory on the other host, which has no rsync and no card."""
    here, there, home = tmp_path / "bin", tmp_path / "bin-there", tmp_path / "home"
    for place in (here, there, home):
        place.mkdir()
    write(here / "ssh", SSH)
    write(there / "rsync", "#!/bin/sh\nexit 127\n")  # whatever this machine has
    monkeypatch.setenv("PATH", os.pathsep.join([str(here), os.environ["PATH"]]))
    monkeypatch.setenv("FAKE_HOME", str(home))
    monkeypatch.setenv("FAKE_BIN", str(there))
    return home


@pytest.fixture
def launcher() -> Launcher[Any]:
    """It."""
    return open_registry().find(Launcher, "ssh")


def write(file: Path, text: str) -> None:
    """A program."""
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)


def job(tmp_path: Path) -> Job:
    """One that is never begun."""
    bundle = tmp_path / "bundle"
    bundle.mkdir(exist_ok=True)
    return Job(name="fitune-a-0", bundle=bundle, machine=Machine(name="gpu-box"))


def test_it_keeps_the_contract(home: Path, launcher: Launcher[Any], tmp_path: Path) -> None:
    assert_launcher(launcher, OPTIONS, tmp_path / "suite")
    assert set((home / ".hosts").read_text(encoding="utf-8").split()) == {"gpu-box"}
    assert not (home / ".rsync").exists()


def test_files_go_by_rsync_where_both_have_it(home: Path, launcher: Launcher[Any], tmp_path: Path) -> None:
    for place in ("bin", "bin-there"):
        write(tmp_path / place / "rsync", RSYNC)
    sent = job(tmp_path)
    (sent.bundle / "start.py").write_text("import sys\nprint('done', sys.argv[1])\n", encoding="utf-8")
    launcher.submit(OPTIONS, sent)
    assert launcher.status(OPTIONS, sent.name).state == "done"
    (home / "fitune" / sent.name / "run").mkdir()
    (home / "fitune" / sent.name / "run" / "run.json").write_text("{}", encoding="utf-8")
    into = tmp_path / "into"
    into.mkdir()
    launcher.fetch(OPTIONS, sent.name, into)
    assert (into / "run.json").is_file()
    lines = (home / ".rsync").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert all(line.startswith("-a --partial -e ssh -o BatchMode=yes") and "-p 2222" in line for line in lines)


def test_a_host_that_cannot_be_reached_is_told(home: Path, launcher: Launcher[Any], tmp_path: Path) -> None:
    down = dataclasses.replace(OPTIONS, host="down")
    for call in (
        lambda: list(launcher.prepare(down, job(tmp_path))),
        lambda: launcher.submit(down, job(tmp_path)),
        lambda: launcher.status(down, "fitune-a-0"),
        lambda: launcher.stop(down, "fitune-a-0"),
    ):
        with pytest.raises(RunError, match=r"down cannot be reached: .*Connection refused.*try ssh -p 2222 down"):
            call()


def test_a_host_without_such_a_python_is_told(home: Path, launcher: Launcher[Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gpu-box: python9 cannot be run"):
        list(launcher.prepare(dataclasses.replace(OPTIONS, python="python9"), job(tmp_path)))
    write(tmp_path / "bin-there" / "python3", "#!/bin/sh\necho 3.8\n")
    with pytest.raises(RunError, match=r"python3 is Python 3\.8, and fitune needs 3\.10"):
        list(launcher.prepare(dataclasses.replace(OPTIONS, python="python3"), job(tmp_path)))


def test_the_host_says_which_card_it_has(home: Path, launcher: Launcher[Any], tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, gpu="")
    assert launcher.machine(options, None) == Machine(name="gpu-box")
    write(tmp_path / "bin-there" / "nvidia-smi", NVIDIA_SMI)
    assert launcher.machine(options, None) == Machine(name="gpu-box", gpu="NVIDIA A10G", gpus=1)
    with pytest.raises(RunError, match="gpu-box is one machine"):
        launcher.machine(options, "a10g")


def test_a_job_that_cannot_begin_leaves_nothing_there(home: Path, launcher: Launcher[Any], tmp_path: Path) -> None:
    sent = job(tmp_path)
    (sent.bundle / "start.py").write_text("import sys\nsys.exit('error: no room')\n", encoding="utf-8")
    with pytest.raises(RunError, match="begin failed: no room"):
        launcher.submit(OPTIONS, sent)
    assert not (home / "fitune" / sent.name).exists()


def test_what_would_be_read_as_an_option_is_refused() -> None:
    assert [problem.key for problem in check(SshOptions(host="-oProxyCommand=x", root="~/jobs"))] == ["host", "root"]
