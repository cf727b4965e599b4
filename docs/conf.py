"""Sphinx configuration.  ``pip install '.[docs]' && sphinx-build -W docs site``; the pages need nobody else's host."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
sys.path.insert(0, str(Path(__file__).parent.parent))

project = "relay-live"
author = "the relay-live authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "references"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_ext"]
html_theme = "furo"
html_title = "relay-live"
html_static_path = ["_static"]
html_css_files = ["own.css"]
smartquotes = False  # --option is no dash
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
nitpicky = False
