"""The course handed out and graded: a small course of one notebook, and a class of six."""
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("IPython")
pytest.importorskip("nbgrader", reason="pip install nbgrader")
from minipeft.__main__ import main
from minipeft.course import assignment, student
from minipeft.course.grade import Limits, collect, grade, handed_in

ROOT = Path(__file__).parent.parent
NAME = "00_small.ipynb"
CELLS = [
    ("markdown", "# 00 · Small"),
    ("markdown", "> **Before you run: write down** what double(21) is."),
    ("code", "from minipeft.course import notebook\nnotebook.start()"),
    ("code", "PRICES = {'tea': 3, 'milk': 1}"),
    ("markdown", "**Exercise 1** ●○○, 5 minutes. Write `double(x)`, twice the number x."),
    ("code", "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"),
    ("code", "assert double(1) != 3, 'two times, not plus two'\n"
             "assert double(2) == 4 and double(3) == 6, 'two times x'\nprint('right')"),
    ("markdown", "**Exercise 2** ●●○, 5 minutes. Write `bill(order)`, the sum of the prices."),
    ("code", "def bill(order):\n    ### BEGIN SOLUTION\n"
             "    return sum(PRICES[item] for item in order)\n    ### END SOLUTION"),
    ("code", "assert bill(['tea', 'tea', 'milk']) == 7, 'an item counts as often as it is ordered'"),
    ("markdown", "**Exercise 3** ●○○, 5 minutes. Set `n` to the number of prices."),
    ("code", "### BEGIN SOLUTION\nn = len(PRICES)\n### END SOLUTION\n\n"
             "assert n != 4, 'prices, not their sum'\nassert n == 2, 'count them'"),
]
HIDDEN = "# %% 00.1\nassert double(-7) == -14, 'any number, negative ones too'\n"
LIMITS = Limits(seconds=4, gib=4)
RIGHT = ["def double(x):\n    return x + x",
         "def bill(order):\n    total = 0\n    for item in order:\n        total += PRICES[item]\n"
         "    return total",
         "n = 2"]
BAD_ENDS = ["import os\ndef double(x):\n    os._exit(0)",
            "def bill(order):\n    while True:\n        pass", "n = 2"]
BY_LIST = ["def double(x):\n    return {1: 2, 2: 4, 3: 6}[x]", RIGHT[1], "raise SystemExit(0)"]
DELETES = ["import shutil, pathlib\nshutil.rmtree(pathlib.Path.cwd())\nshutil.rmtree(pathlib.Path.home(), True)\n"
           + RIGHT[0],
           "print('x' * 10**8)\n" + RIGHT[1], None]
CLASS = {"perfect": RIGHT, "blank": ["", "", ""], "half": [RIGHT[0], "def bill(order):\n"
         "    return sum(PRICES[item] for item in set(order))", ""],
         "crashing": BAD_ENDS, "hard-coding": BY_LIST, "deleting": DELETES}
GONE = "the cell exercise-3 is not there: deleted, renamed, or not of the student version"
UNDONE = "Exercise 00.{} is not done yet: put your answer where it says NotDone."
TABLE = {
    "perfect": [(1, ""), (2, ""), (1, "")],
    "blank": [(0, UNDONE.format(i)) for i in (1, 2, 3)],
    "half": [(1, ""), (0, "an item counts as often as it is ordered"), (0, UNDONE.format(3))],
    "crashing": [(0, "it ended its process before the check did (exit status 0)"),
                 (0, "it took more than 4 seconds"), (1, "")],
    "hard-coding": [(0, "KeyError: -7"), (2, ""),
                    (0, "it ended its process before the check did (exit status 0)")],
    "deleting": [(1, ""), (0, "OSError: it printed too much"), (0, GONE)]}


def write(path: Path, cells: list[tuple[str, str]]) -> None:
    code = dict(outputs=[dict(output_type="stream", name="stdout", text="the solution's\n")],
                execution_count=1)
    path.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[
        dict(cell_type=kind, id=f"cell-{i}", metadata={}, source=source,
             **code if kind == "code" else {}) for i, (kind, source) in enumerate(cells)])))


@pytest.fixture
def course(tmp_path, monkeypatch) -> Path:
    """A course of one notebook, in the place of ours."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    write(folder / NAME, CELLS)
    (folder / "hidden_tests.py").write_text(HIDDEN)
    monkeypatch.setattr(assignment, "NOTEBOOKS", folder)
    monkeypatch.setattr(student, "HIDDEN", folder / "hidden_tests.py")
    return folder


def worked(path: Path, answers: list[str | None]) -> None:
    """Write these answers into a released notebook; "": as it is, None: its cell is gone."""
    notebook = json.loads(path.read_text())
    for number, answer in enumerate(answers, start=1):
        (cell,) = (cell for cell in notebook["cells"] if grade_id(cell) == f"exercise-{number}")
        if answer is None:
            notebook["cells"].remove(cell)
        elif answer:
            cell["source"] = answer
    path.write_text(json.dumps(notebook))


def grade_id(cell: dict) -> str:
    return cell["metadata"].get("nbgrader", {}).get("grade_id", "")


def of_class(folder: Path) -> Path:
    for name, answers in CLASS.items():
        student.release(folder / name)
        worked(folder / name / NAME, answers)
    return folder


def test_a_class_of_six_gets_the_points_it_should(course, tmp_path, capsys):
    handed = of_class(tmp_path / "class")
    before = {path: path.read_bytes() for path in handed.rglob("*.ipynb")}
    assert main(["course", "grade", str(handed), "--out", str(tmp_path / "out"), "--seconds", "4",
                 "--hidden", str(course / "hidden_tests.py")]) == 0
    with (tmp_path / "out" / "grades.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {name: [(int(row["points"]), row["first failing sentence"]) for row in rows
                    if row["student"] == name] for name in CLASS}
    assert found == TABLE
    assert [row["exercise"] for row in rows[:3]] == ["00.1", "00.2", "00.3"]
    assert [row["of"] for row in rows[:3]] == ["1", "2", "1"]
    assert "perfect  4 of 4 points\n    00.1  1 of 1\n" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in handed.rglob("*.ipynb")}
