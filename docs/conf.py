"""Sphinx: the pages of this folder as HTML, by `make docs`."""

project = "warrener"
author = "The warrener authors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "warrener"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
nitpicky = True
