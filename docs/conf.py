"""How Sphinx makes the site; minipeft/course/site.py lays out its pages and calls it."""

project = "minipeft"
author = "the minipeft authors"
html_title = "minipeft"
language = "en"
smartquotes = False         # what is quoted stands as it was typed
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["README.md", "downloads"]

# Notebooks: what they store is what is shown. Only solutions are folded.
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Hide the solution"
myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",          # a takeaway is a heading inside a quotation
    "mystnb.unknown_mime_type",
]

# Docstrings in the order of the sources; a method without one has none.
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False

# Formulas are drawn in the page by a script that lies beside it; without fonts, which browsers do
# not load for a page that is opened as a file.
mathjax_path = "mathjax.js"
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "sphinx_book_theme"
html_theme_options = {
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "navbar_persistent": [],            # the sidebar and the article's head have the search
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_show_copyright = False
