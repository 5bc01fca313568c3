"""A solved notebook as an assignment: its exercises have names and points, nbgrader's and ours.

    source = assignment(NOTEBOOKS / "03_lora.ipynb", hidden_tests(HIDDEN))

The notebook on disk stays as it is. Beside its cells, `source` has nbgrader's metadata (schema 3)
on answers ("exercise-2") and checks ("check-2", with the points), an empty cell below each "Before
you run" to write into, and each hidden test at the end of its check. What only says where the data
lie from notebooks/ asks the package, so that the notebook runs in any folder. All of it follows
from the notebook alone: the same notebook gives the same cells.
"""
import ast
import copy
import hashlib
import re
from pathlib import Path

from ..files import NOTEBOOKS, check_keys, decoded, read_json
from .exercises import Exercise, exercises_in

HIDDEN = NOTEBOOKS / "hidden_tests.py"
HIDDEN_TEST = re.compile(r"^# %% (\d\d\.\d+)\n", re.MULTILINE)
MARK = re.compile(r"^#+ *%%.*", re.MULTILINE)               # what is meant to be one
PREDICTION = "Before you run"
STUB = '# write your answer here\nraise notebook.NotDone("EXERCISE")'      # for a solution
OUTSIDE = re.compile(r'Path\("\.\./(data|benchmarks/results)/([^"]*)"\)')
FOLDERS = {"data": "DATA", "benchmarks/results": "RESULTS"}         # of minipeft.files


def course() -> list[Path]:
    """The solved notebooks in order; FileNotFoundError without a checkout."""
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(f"no notebooks in {NOTEBOOKS}: they come with a checkout of the "
                                f"repository")
    return found


def solved(path: Path) -> dict:
    """The JSON of a solved notebook, which finds its data from any folder."""
    notebook = read_json(path, "restore the notebook", keys={"cells": list, "metadata": dict})
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
        if cell["cell_type"] == "code" and OUTSIDE.search(cell["source"]):
            cell["source"] = "from minipeft.files import DATA, RESULTS\n" + OUTSIDE.sub(
                lambda found: f'({FOLDERS[found[1]]} / "{found[2]}")', cell["source"])
    return notebook


def handed_out(path: Path, do: str) -> dict:
    """The JSON of a notebook that students have had; ValueError, which says what to `do`, if it is
    not one any more."""
    notebook = read_json(path, do, keys={"cells": list, "metadata": dict})
    for cell in notebook["cells"]:
        keys = {"cell_type": str, "source": (str, list), "metadata": dict}
        check_keys(cell, keys, f"{path}: a cell", do)
        check_keys(cell["metadata"].get("nbgrader", {}), {}, f"{path}: nbgrader", do)
    about = notebook["metadata"].get("minipeft", {})
    keys = {"notebook": str, "version": str, "cells": list} if about else {}
    check_keys(about, keys, f"{path}: minipeft", do)
    return notebook


def hidden_tests(path: Path) -> dict[str, str]:
    """{"03.2": source} of a file of code cells, each behind the line "# %% 03.2"; ValueError for a
    mark that names no exercise, and for a test that is not Python."""
    try:
        text = "\n".join(decoded(path.read_bytes()).splitlines()) + "\n"
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _, *parts = HIDDEN_TEST.split(text)
    names, tests = parts[::2], parts[1::2]
    exercises = known()
    wrong = [mark for mark in MARK.findall(text) if not HIDDEN_TEST.match(f"{mark}\n")]
    wrong += [f"# %% {name}" for name in names if names.count(name) > 1 or name not in exercises]
    if wrong:
        raise ValueError(f"{path}: {wrong[0]!r} must name an exercise, as '# %% 03.2' does, and "
                         f"stand once; change that line")
    for name, test in zip(names, tests):
        try:
            ast.parse(test)
        except SyntaxError as error:
            raise ValueError(f"{path}: the test behind '# %% {name}' is not Python: {error.msg} in "
                             f"its line {error.lineno}; correct it") from None
    return {name: test.strip() for name, test in zip(names, tests)}


def known() -> dict[str, Exercise]:
    """All exercises of the course by name."""
    return {exercise.name: exercise for path in course()
            for exercise in exercises_in(path.stem, solved(path)["cells"])}


def version(notebook: dict) -> str:
    """Eight hexadecimal digits, which differ if the text or code of a solved notebook does."""
    text = "\0".join(cell["source"] for cell in notebook["cells"])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def assignment(path: Path, hidden: dict[str, str]) -> dict:
    """The JSON of nbgrader's source notebook; ValueError for an exercise without a check."""
    notebook = solved(path)
    marked = {exercise.place: exercise for exercise in exercises_in(path.stem, notebook["cells"])}
    cells, checks = [], []
    for place, cell in enumerate(copy.deepcopy(notebook["cells"])):
        cells.append(cell)
        if cell["cell_type"] == "markdown" and PREDICTION in cell["source"]:
            cells.append(new_cell("markdown", f"{cell['id']}-guess", ""))
        elif place in marked:
            cells[-1:], checks = parts(cell, marked[place], hidden)
        elif cell["cell_type"] == "code" and checks:
            mark(cell, **checks.pop(0))
    notebook["metadata"]["minipeft"] = {"notebook": path.stem, "version": version(notebook),
                                        "cells": [cell["id"] for cell in cells]}
    return {**notebook, "cells": cells}


def parts(cell: dict, exercise: Exercise, hidden: dict[str, str]) -> tuple[list[dict], list[dict]]:
    """The answer's cell, and what marks each of the checks after it; a check below the solution in
    the same cell gets a cell of its own."""
    count = len(exercise.checks)
    if count == 0:
        raise ValueError(f"{exercise.notebook}.ipynb: exercise {exercise.number} needs a check "
                         f"below it, which can fail")
    names = [f"check-{exercise.number}" + f"-{k}" * (k > 0) for k in range(count)]
    checks = [dict(grade_id=name, points=exercise.points / count) for name in names]
    if exercise.name in hidden:
        checks[-1]["hidden"] = hidden[exercise.name]
    mark(cell, grade_id=f"exercise-{exercise.number}")
    if count == len(exercise.check):
        return [cell], checks
    check = new_cell("code", f"{cell['id']}-check", exercise.checks[0])
    check["outputs"], cell["outputs"] = cell["outputs"], []
    cell["source"] = cell["source"].removesuffix(exercise.after)
    mark(check, **checks.pop(0))
    return [cell, check], checks


def mark(cell: dict, grade_id: str, points: float | None = None, hidden: str = "") -> None:
    """Give a cell nbgrader's metadata: an answer if it has no points, a check if it has."""
    check = points is not None
    cell["metadata"]["nbgrader"] = dict(
        schema_version=3, grade_id=grade_id, solution=not check, grade=check, locked=check,
        task=False, **dict(points=points) if check else {})
    if hidden:
        cell["source"] += f"\n### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS"


def new_cell(cell_type: str, name: str, source: str) -> dict:
    code = dict(outputs=[], execution_count=None) if cell_type == "code" else {}
    return dict(cell_type=cell_type, id=name, metadata={}, source=source, **code)
