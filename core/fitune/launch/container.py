"""What a training container of SageMaker runs: unpacks what was sent, checks it, and hands over to `work.py`.

    python3 /opt/ml/input/data/fitune/container.py [/opt/ml]

Needs Python 3.8 and nothing else, and reads the files that SageMaker writes, not the variables that its toolkits set
(docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html). The run is in
/opt/ml/checkpoints, which SageMaker copies to S3 as it changes, and back when a spot job starts again; what was trained
comes to /opt/ml/model, the cause of a failure to /opt/ml/output/failure.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

CHANNEL = "fitune"
"""The input that holds what was sent."""


class Failed(Exception):
    """What was sent cannot be run here."""


def unpack(root: Path) -> list[str]:
    """Unpack what was sent; gives the words that start it. Raises `Failed`."""
    said, machine, inputs = (read(root / "input" / "config" / f"{name}.json") for name in
                             ("hyperparameters", "resourceconfig", "inputdataconfig"))  # fmt: skip
    if len(machine.get("hosts", [])) > 1:
        raise Failed(f"the job has {len(machine['hosts'])} machines, and fitune trains on one. Ask for InstanceCount 1")
    if CHANNEL not in inputs:
        raise Failed(f'the job has no input channel "{CHANNEL}" (it has: {", ".join(inputs) or "none"})')
    packed, place = root / "input" / "data" / CHANNEL / "bundle.tar", root / "fitune"
    if not packed.is_file():
        raise Failed(f"{packed} is missing: what was sent has not arrived")
    if digest_of(packed) != said.get("sha256"):
        raise Failed(f"{packed} is not what was sent (its SHA-256 differs): launch it again")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with tarfile.open(packed) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(place, filter="data")
        else:  # an older Python; it is what was sent, by its digest
            tar.extractall(place)
    output = root / "output" / "failure"
    words = [str(place), "--run", str(root / "checkpoints" / "run"), "--model", str(root / "model")]
    words += ["--failure", str(output), *(["--install"] if said.get("install") == "true" else [])]
    return [sys.executable, str(place / "bundle" / "work.py"), *words]


def read(file: Path) -> dict[str, Any]:
    """A file of SageMaker's. Raises `Failed`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failed(f"{file} cannot be read: {error}. Is this a training job of SageMaker's?") from error
    if not isinstance(found, dict):
        raise Failed(f"{file} holds no object. Is this a training job of SageMaker's?")
    return found


def digest_of(file: Path) -> str:
    """The SHA-256 of a file."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        for part in iter(lambda: stream.read(1 << 20), b""):
            found.update(part)
    return found.hexdigest()


def main(arguments: list[str]) -> int:
    """Become the job, which then gets the signals that this process would have got."""
    root = Path(arguments[0] if arguments else "/opt/ml")
    try:
        words = unpack(root)
    except (Failed, OSError, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        (root / "output").mkdir(parents=True, exist_ok=True)
        (root / "output" / "failure").write_text(str(error), encoding="utf-8")
        return 2
    sys.stdout.flush()
    os.execv(words[0], words)
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
