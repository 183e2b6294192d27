"""The documentation as a site: `make site` writes it to site/, from the Markdown that stands here."""

from __future__ import annotations

from fitune import __version__

project = "fitune"
author = "the fitune developers"
copyright = "the fitune developers"
release = __version__
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = True
html_theme = "furo"
html_title = f"fitune {release}"
html_copy_source = False
html_show_sphinx = False
exclude_patterns: list[str] = []
