"""The student version: nbgrader's preprocessors turn the assignment into what is handed out.

    release(Path("student"))        what was written, kept, or merged into a folder beside

Solutions become stubs, checks are locked, outputs are cleared. A file that is there is never
written over: a new version of the course goes to a folder beside the old one, with the answers,
predictions and own cells of the old one in their places.
"""
import hashlib
from collections import defaultdict
from pathlib import Path

from ..files import write_text
from ..folders import check_writable
from .assignment import HIDDEN, STUB, assignment, course, handed_out, hidden_tests

try:
    import nbformat
    from nbgrader import preprocessors
    from nbgrader.utils import compute_checksum, is_solution
except ImportError as error:
    raise ImportError("the student version is made by nbgrader; install it with: "
                      "pip install 'minipeft[course]', or: pip install nbgrader") from error

STEPS = (preprocessors.LockCells(), preprocessors.ClearSolutions(code_stub={"python": STUB}),
         preprocessors.ClearOutput(), preprocessors.ClearHiddenTests(),
         preprocessors.ComputeChecksums(), preprocessors.CheckCellMetadata())


def released(path: Path) -> nbformat.NotebookNode:
    """What students get of a solved notebook."""
    notebook = nbformat.from_dict(assignment(path, {}))
    for step in STEPS[:-2]:
        notebook, _ = step.preprocess(notebook, {})
    for cell in filter(is_solution, notebook.cells):
        number = cell.metadata.nbgrader.grade_id.removeprefix("exercise-")
        cell.source = cell.source.replace("EXERCISE", f"{path.name[:2]}.{number}")
    for step in STEPS[-2:]:
        notebook, _ = step.preprocess(notebook, {})
    return notebook


def release(out: Path) -> list[tuple[Path, str]]:
    """(file, "written", "kept" or "merged") of each notebook, in `out`, or all of them in a folder
    beside it if `out` holds another version of the course."""
    new = {path.name: released(path) for path in course()}
    check_writable(out)
    there = {name: read(out / name) for name in new if (out / name).exists()}
    if any(origin(old) != origin(new[name]) for name, old in there.items()):
        versions = "".join(notebook.metadata.minipeft.version for notebook in new.values())
        beside = out.with_name(f"{out.name}-{hashlib.sha256(versions.encode()).hexdigest()[:8]}")
        new = {name: merged(notebook, there[name]) if name in there else notebook
               for name, notebook in new.items()}
        return written(beside, new, dict.fromkeys(there, "merged"))
    return written(out, new, {})


def written(out: Path, notebooks: dict[str, nbformat.NotebookNode], said: dict[str, str]
            ) -> list[tuple[Path, str]]:
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for name, notebook in notebooks.items():
        kept = (out / name).exists()
        if not kept:
            write_text(out / name, nbformat.writes(notebook) + "\n")
        found.append((out / name, "kept" if kept else said.get(name, "written")))
    return found


def write_source(out: Path) -> list[Path]:
    """The solved notebooks with nbgrader's metadata and the hidden tests, each an assignment of its
    own in nbgrader's layout; FileExistsError, with nothing written, if one is there already."""
    hidden = hidden_tests(HIDDEN)
    sources = {out / path.stem / path.name: nbformat.from_dict(assignment(path, hidden))
               for path in course()}
    there = [path for path in sources if path.exists()]
    if there:
        raise FileExistsError(f"{there[0]} is there, and is not written over; name another folder "
                              f"with --out")
    check_writable(out)
    for path, notebook in sources.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, nbformat.writes(notebook) + "\n")
    return list(sources)


def read(path: Path) -> nbformat.NotebookNode:
    """A released notebook with what a student has made of it."""
    return nbformat.from_dict(handed_out(path, "move it away, or name another folder with --out"))


def origin(notebook: nbformat.NotebookNode) -> tuple[str, str]:
    """(name, version) of the solved notebook that it comes from; empty if it comes from none."""
    about = notebook.metadata.get("minipeft", {})
    return about.get("notebook", ""), about.get("version", "")


def merged(new: nbformat.NotebookNode, old: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The new version with the answers, predictions and own cells that `old` holds."""
    there = {name(cell): cell for cell in new.cells}
    given = old.metadata.get("minipeft", {}).get("cells", [])
    own, last = defaultdict(list), ""
    for cell in old.cells:
        cell.source = "".join(cell.source)
        if name(cell) in there:
            last = name(cell)
            if is_answered(cell):
                there[last].source = cell.source
        elif cell.get("id", "") not in given:
            own[last].append(cell)
    cells = [*own[""]]
    for cell in new.cells:
        cells += [cell, *own[name(cell)]]
    return nbformat.from_dict({**new, "cells": cells})


def name(cell: nbformat.NotebookNode) -> str:
    """By which a cell is known from one version to the next."""
    return cell.metadata.get("nbgrader", {}).get("grade_id", cell.get("id", ""))


def is_answered(cell: nbformat.NotebookNode) -> bool:
    """Whether it is a cell to write into, and written into."""
    if is_solution(cell):
        return cell.metadata.nbgrader.get("checksum", "") != compute_checksum(cell)
    return cell.get("id", "").endswith("-guess") and cell.source.strip() != ""
