"""Sphinx: the pages of this folder as HTML, by `make docs`."""

project = "warrener"
author = "The warrener authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "warrener"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
# A single pair of backticks in a docstring is code, as in Markdown.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
nitpicky = True
# Signatures name types that have no page here: those of other packages, and private ones. That every public name has its place
# is checked by tests/test_docs.py.
nitpick_ignore_regex = [("py:.*", ".*")]
