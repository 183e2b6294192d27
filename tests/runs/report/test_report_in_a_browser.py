"""A report in a real browser: nothing runs in it, it fits a phone, and it is dark where the reader's system is.

The browser is Debian's `chromium`. Where there is none, this is skipped.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fitune.runs.report.collect import collect
from fitune.runs.report.page import page
from support.reported import HOSTILE, write_long_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")

HARNESS = """<!doctype html><meta charset="utf-8"><pre id="found"></pre>
<iframe id="page" style="width:%dpx;height:900px;border:0" srcdoc="%s"></iframe>
<script>
document.getElementById("page").onload = event => {
  const inner = event.target.contentDocument, root = inner.documentElement, style = getComputedStyle(inner.body);
  const wide = [...inner.querySelectorAll("svg, figure, h1, h2, p, pre")].filter(
    one => one.getBoundingClientRect().right > root.clientWidth + 1);
  document.getElementById("found").textContent = JSON.stringify({
    width: root.clientWidth, scroll: root.scrollWidth, wide: wide.length, page: style.backgroundColor, ink: style.color,
    title: inner.title, scripts: inner.scripts.length, images: inner.images.length,
    drawings: inner.querySelectorAll("svg").length, run: window.ran || inner.defaultView.ran || null});
};
</script>"""


def _seen(tmp_path: Path, text: str, width: int, *, dark: bool = False) -> dict[str, Any]:
    """What a browser makes of a page of this width."""
    (tmp_path / "harness.html").write_text(HARNESS % (width, html.escape(text)), encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [*command, "--dump-dom", (tmp_path / "harness.html").as_uri()], capture_output=True, timeout=240, check=True
    )
    said = re.search(r'<pre id="found">(.*?)</pre>', done.stdout.decode(), re.DOTALL)
    assert said is not None
    found: dict[str, Any] = json.loads(html.unescape(said[1]))
    return found


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    name = HOSTILE.replace("alert(1)", "window.ran=1").replace("alert(2)", "window.ran=2")
    run = write_long_run(tmp_path_factory.mktemp("report") / "run", 400, name=name, every=20)
    return page([collect(run), collect(run)], "0")


def test_on_a_phone(tmp_path: Path, text: str) -> None:
    found = _seen(tmp_path, text, 360)
    assert (found["scroll"], found["wide"]) == (found["width"], 0)
    assert found["drawings"] == 17
    assert (found["scripts"], found["images"], found["run"]) == (0, 0, None)
    assert found["title"].startswith("<script>window.ran=1")
    assert (found["page"], found["ink"]) == ("rgb(255, 255, 255)", "rgb(27, 31, 36)")


def test_in_the_dark(tmp_path: Path, text: str) -> None:
    found = _seen(tmp_path, text, 1100, dark=True)
    assert (found["page"], found["ink"]) == ("rgb(13, 17, 23)", "rgb(230, 237, 243)")
    assert found["scroll"] == found["width"]
