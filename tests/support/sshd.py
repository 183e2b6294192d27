"""A real sshd on this machine, for the tests of what logs in somewhere."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
"""Where it is installed, if it is; the programs of its client come with it."""

CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {home}/host
AuthorizedKeysFile {home}/authorized
PidFile {home}/pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME={home}
"""

CLIENT = """\
Host gpu-box kept chatty
  HostName 127.0.0.1
  Port {port}
  IdentitiesOnly yes
  UserKnownHostsFile "{home}/known"
Host kept
  ControlMaster auto
  ControlPath "{home}/%n"
  ControlPersist 20
Host gpu-box kept
  IdentityFile "{home}/key"
Host chatty
  IdentityFile "{home}/chatty"
"""

CHATTY = """command="echo Welcome to the box; eval \\"$SSH_ORIGINAL_COMMAND\\"" """
"""What a key is allowed, whose host prints something whatever is run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sshd:
    """One that listens.

    Its client's configuration has three hosts: `gpu-box`; `kept`, whose connection is kept for the next command; and
    `chatty`, which greets whoever comes.
    """

    home: Path
    server: subprocess.Popen[bytes]

    @property
    def config(self) -> Path:
        """For `ssh -F`."""
        return self.home / "client"

    def stop(self) -> None:
        """End it; who is logged in stays so."""
        self.server.terminate()
        self.server.wait()


def start_sshd(home: Path) -> Sshd:
    """Begin one for the user of the tests, with keys of its own in `home`, which is made."""
    assert SSHD is not None
    home.mkdir()
    for name in ("host", "key", "chatty"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    keys = {name: (home / f"{name}.pub").read_text(encoding="utf-8") for name in ("host", "key", "chatty")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (home / "authorized").write_text(f"{keys['key']}{CHATTY}{keys['chatty']}", encoding="utf-8")
    (home / "known").write_text(f"[127.0.0.1]:{port} {keys['host']}", encoding="utf-8")
    (home / "client").write_text(CLIENT.format(home=home, port=port), encoding="utf-8")
    (home / "config").write_text(CONFIG.format(home=home, port=port), encoding="utf-8")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # which it asks for, and its package's service makes
    with (home / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(home / "config")], stderr=log)
    made = Sshd(home=home, server=server)
    for _ in range(200):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return made
        assert server.poll() is None, (home / "log").read_text(encoding="utf-8")
        time.sleep(0.05)
    made.stop()
    raise AssertionError("sshd does not listen")
