"""How Sphinx makes a site of these pages: `make docs`. Reads nothing from the network."""

import syncdata

project = "syncdata"
author = "the syncdata authors"
project_copyright = "the syncdata authors"
version = release = syncdata.__version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"syncdata {release}"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {"sidebar_hide_name": False}
