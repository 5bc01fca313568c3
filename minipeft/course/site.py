"""The course as a site: notebooks, claims, results and docstrings in pages that need no network.

    build(Path("site"))        what Sphinx warned of; site/index.html opens without a server, too

The pages show the outputs that the notebooks store: nothing is executed. Solutions are folded. The
sources that are nowhere else lie in docs/; all others are put beside them under the names that they
have in the repository, so that links between them hold.
"""
import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.resources import files as packaged
from inspect import getdoc
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from ..files import CHECKOUT, PACKAGE, RESULTS, read_json, to_json, write_text
from ..folders import check_writable, locked, remove_empty
from . import explore
from .assignment import course, solved
from .exercises import BEGIN, END
from .student import released

try:
    from sphinx.application import Sphinx
    from sphinx.util.console import nocolor
    from sphinx.util.docutils import docutils_namespace, patch_docutils
    for name in ("myst_nb", "sphinx_book_theme"):       # which docs/conf.py names
        import_module(name)
    MATHJAX = packaged("sphinx-mathjax-offline") / "static" / "mathjax" / "tex-svg-full.js"
except ImportError as error:
    raise ImportError("the site is made by sphinx, myst-nb, sphinx-book-theme and "
                      "sphinx-mathjax-offline; install them with: pip install 'minipeft[course]'"
                      ) from error

MARK = ".made-by-minipeft"         # in a folder that may be replaced
PAGES = ("README.md", "CONTRIBUTING.md", "data/README.md", "notebooks/README.md",
         "notebooks/TEACHING.md", "benchmarks/CLAIMS.md", "benchmarks/RESULTS.md")
HALL = (*sorted(path.stem for path in PACKAGE.glob("[a-z]*.py")),
        "nf4.dispatch", "nf4.linear", "nf4.reference", "nf4.state")
HEADING = re.compile(r"^[> ]*#+ (.*)", re.MULTILINE)
TITLE = re.compile(r"""(?:\btitle=|\b(?:set_|sup)title\()(["'])([^{}]+?)\1""")
MARKERS = re.compile(rf"^ *({BEGIN}|{END})\n?", re.MULTILINE)


def build(out: Path) -> list[str]:
    """The site in `out`, which is replaced whole or stays as it is; a line for each warning.

    FileNotFoundError without a checkout, FileExistsError if `out` holds what is not a site of ours.
    """
    notebooks = course()
    with TemporaryDirectory() as scratch, replacing(out.resolve()) as part:
        sources = Path(scratch) / "sources"
        lay_out(sources, notebooks)
        warnings = make_pages(sources, part, Path(scratch) / "read")
        explore.write(part / "explore.html")
        return warnings


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, for the block to fill: it then takes the place of `out`; if the
    block raises, it is removed, and what a killed process left of one does no harm."""
    part = out.with_name(f"{out.name}.part")
    check_ours(out)
    check_ours(part)
    check_writable(part)
    made = [folder for folder in part.parents if not folder.exists()]
    part.mkdir(parents=True, exist_ok=True)
    with locked(part):
        empty(part)
        (part / MARK).touch()
        try:
            yield part
            if out.exists():
                os.replace(out, part / ".replaced")
            os.replace(part, out)
            shutil.rmtree(out / ".replaced", ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            remove_empty(made)


def check_ours(folder: Path) -> None:
    """FileExistsError unless it is not there, empty, or made by this module."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise FileExistsError(f"{folder} holds files, and no site that this command has made: it "
                              f"stays as it is; name another folder with --out")


def empty(folder: Path) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MARK):     # the mark last
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# ---------------------------------------------------------------- what Sphinx reads


def lay_out(sources: Path, notebooks: list[Path]) -> None:
    """docs/, and beside its pages all others."""
    shutil.copytree(CHECKOUT / "docs", sources, ignore=no_sources)
    pictures = [path.relative_to(CHECKOUT) for path in RESULTS.rglob("*.png")]
    for name in (*PAGES, *pictures):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, sources / name)
    shutil.copy(MATHJAX, sources / "_static" / "mathjax.js")
    for path in notebooks:
        for folder, notebook in (("notebooks", shown(path)), ("downloads/solved", solved(path)),
                                 ("downloads/open", released(path))):
            target = sources / folder / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_text(target, to_json(notebook, target, indent=1))
    write_api(sources / "api")


def no_sources(folder: str, names: list[str]) -> set[str]:
    """What of docs/ is not copied: a site may stand in it."""
    return {name for name in names if name == "__pycache__" or Path(folder, name, MARK).exists()}


def shown(path: Path) -> dict:
    """The JSON of a notebook as its page shows it."""
    notebook = read_json(path, "restore the notebook", keys={"cells": list, "metadata": dict})
    heading = ""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = [heading, *HEADING.findall(source)][-1]
        else:
            show(cell, source, heading)
    title, _, text = "".join(notebook["cells"][0]["source"]).partition("\n")
    notebook["cells"][0]["source"] = f"{title}\n\n{offer(path.name)}\n{text}"
    return notebook


def offer(name: str) -> str:
    return (f"Download this notebook [with its solutions](path:../downloads/solved/{name}) "
            f"or [without](path:../downloads/open/{name}).\n")


def show(cell: dict, source: str, heading: str) -> None:
    """Fold a solution, describe a figure, and let the theme set the colours of printed code."""
    about = cell["metadata"].setdefault("mystnb", {})
    if BEGIN in source:
        cell["source"] = MARKERS.sub("", source)
        cell["metadata"]["tags"] = ["hide-cell" if cell["outputs"] else "hide-input"]
    about["image"] = {"alt": description(source, heading)}
    for data in (output["data"] for output in cell["outputs"] if "data" in output):
        if "text/latex" in data:                  # of notebook.show
            data.pop("text/html")
            data.pop("text/latex")
            about["text_lexer"] = "python"


def description(source: str, heading: str) -> str:
    """The alternative text of a cell's figure: its title where the code gives one, its section."""
    title = TITLE.search(source)
    section = f"figure of the section {plain(heading)}"
    return f"{plain(title[2])}, {section}" if title else section.capitalize()


def plain(text: str) -> str:
    return re.sub(r"[$`*\\]", "", text)


# ---------------------------------------------------------------- docstrings


def write_api(folder: Path) -> None:
    """A page for each file of the hall, and one that leads to them from the public names."""
    folder.mkdir()
    door = import_module(PACKAGE.name)
    names = [f"* :py:obj:`{name} <{thing.__module__}.{name}>`: {prose(summary(thing))}"
             for name, thing in ((name, getattr(door, name)) for name in door.__all__)]
    tree = [".. toctree::", "   :maxdepth: 1", "", *(f"   {name}" for name in HALL)]
    write_text(folder / "index.rst", page("The package", [
        f".. automodule:: {PACKAGE.name}", "", "``from minipeft import ...`` gives these names.",
        "", *names, "", "Each file of the hall, and those of NF4:", "", *tree]))
    for name in HALL:
        write_text(folder / f"{name}.rst", page(name, [
            f".. automodule:: {PACKAGE.name}.{name}", "   :members:"]))


def page(title: str, lines: list[str]) -> str:
    return "\n".join([title, "=" * len(title), "", *lines, ""])


def summary(thing) -> str:
    """The first paragraph of its docstring, in a line."""
    return " ".join(getdoc(thing).partition("\n\n")[0].split())


def as_written(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    """A docstring as reStructuredText, in place: formulas and lists keep their lines and spaces,
    sentences flow, `names` are code."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    lines.clear()
    for formed, group in groupby(paragraphs, has_form):
        text = "\n\n".join(group)
        lines += [*(listing(text) if formed else prose(text).splitlines()), ""]


def has_form(paragraph: str) -> bool:
    """Whether spaces, or names in front of colons, line its lines up."""
    return any((all(re.match(r"[a-z_]+: ", line) for line in paragraph.splitlines()),
                re.search(r"^ |\S {2,}\S", paragraph, re.MULTILINE)))


def listing(text: str) -> list[str]:
    return [".. code-block:: text", "", *(f"   {line}" for line in text.splitlines())]


def prose(text: str) -> str:
    """What would be markup is not, but for the names in backticks."""
    parts = re.split(r"`([^`\n]+)`", text)
    parts[::2] = [re.sub(r"([^\w\s]|_)", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part}``" for part in parts[1::2]]
    return "".join(parts)


# ---------------------------------------------------------------- Sphinx


def make_pages(sources: Path, out: Path, scratch: Path) -> list[str]:
    """Sphinx's warnings, a line each; ValueError if it made no pages."""
    nocolor()
    said, pages = io.StringIO(), scratch.with_name("pages")    # beside it myst-nb leaves a folder
    with patch_docutils(sources), docutils_namespace():
        sphinx = Sphinx(sources, sources, pages, scratch, "html", status=None, warning=said)
        sphinx.connect("autodoc-process-docstring", as_written)
        sphinx.build()
    lines = said.getvalue().replace(f"{sources}{os.sep}", "").splitlines()
    if sphinx.statuscode:
        raise ValueError(f"Sphinx made no site: {lines[-1]}")
    shutil.copytree(pages, out, dirs_exist_ok=True)
    return lines
