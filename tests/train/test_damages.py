"""Whatever befalls a file of a run, or of the data that it has prepared: it ends the same, or refuses (`damage_suite`).

On 0.1 a bit of prepared rows, of `identity.json` or of the final adapter changed what was trained or used, in silence.
"""

from __future__ import annotations

import os
from pathlib import Path

from support.damage_suite import KINDS, PLACES, DamageSuite
from support.forked import Forks

DAMAGES = int(os.environ.get("FT_DAMAGES", "24"))
SEED = int(os.environ.get("FT_SEED", "20261127"))


def test_damaged_files_decide_nothing(forks: Forks, tmp_path: Path) -> None:
    found = DamageSuite(forks, tmp_path / "suite", SEED).run(DAMAGES, print)
    assert sum(found["came"].values()) == DAMAGES
    assert {one["of"] for one in found["raw"]} == set(PLACES)
    assert found["came"]["equal to the bit"] > DAMAGES // 2  # most of it can be mended
    assert {one["kind"] for one in found["raw"]} <= {kind.__name__ for kind in KINDS}
