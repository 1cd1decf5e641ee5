"""The site: `pip install '.[docs]'`, then `sphinx-build -W docs site`."""

from importlib.metadata import version as installed

project = "ebdiff-orchestrator"
author = "The ebdiff-orchestrator contributors"
release = installed("ebdiff-orchestrator")

extensions = ["myst_parser"]
html_theme = "furo"
html_title = project
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing", "myst.header"]  # links to files of the repository, which are no pages
