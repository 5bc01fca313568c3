"""The course handed out and graded: a small course of one notebook, and a class of six."""
import ast
import builtins
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import is_dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

pytest.importorskip("IPython")
pytest.importorskip("nbgrader", reason="pip install nbgrader")
from minipeft.__main__ import main
from minipeft.course import assignment, student
from minipeft.course.exercises import PASSES, Exercise, exercises, outcome
from minipeft.course import grade as grading
from minipeft.course.grade import Limits, collect, grade
from minipeft.course.notebook import NotDone

ROOT = Path(__file__).parent.parent
README, TEACHING = ((ROOT / "notebooks" / name).read_text(encoding="utf-8")
                    for name in ("README.md", "TEACHING.md"))
NAME = "00_small.ipynb"
CELLS = [
    ("markdown", "# 00 · Small"),
    ("markdown", "> **Before you run: write down** what double(21) is."),
    ("code", "from minipeft.course import notebook\nnotebook.start()"),
    ("code", "PRICES = {'tea': 3, 'milk': 1}"),
    ("markdown", "**Exercise 1** ●○○, 5 minutes. Write `double(x)`, twice the number x."),
    ("code", "def double(x):\n    ### BEGIN SOLUTION\n"
             "    return 2 * x\n    ### END SOLUTION"),
    ("code", "assert double(1) != 3, 'two times, not plus two'\n"
             "assert double(2) == 4 and double(3) == 6, 'two times x'\nprint('right')"),
    ("markdown", "**Exercise 2** ●●○, 5 minutes. Write `bill(order)`, the sum of the prices."),
    ("code", "def bill(order):\n    ### BEGIN SOLUTION\n"
             "    return sum(PRICES[item] for item in order)\n    ### END SOLUTION"),
    ("code", "assert bill(['tea', 'tea', 'milk']) == 7, "
             "'an item counts as often as it is ordered'"),
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
DELETES = ["import shutil, pathlib\nhere = pathlib.Path.cwd()\n"
           "assert here.name == 'copy' and here == pathlib.Path.home(), 'not a copy'\n"
           "shutil.rmtree(here)\n" + RIGHT[0],
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
    "crashing": [(0, "it ended Python before the check was done (exit status 0)"),
                 (0, "it took more than 4 seconds: is there a loop that never ends?"), (1, "")],
    "hard-coding": [(0, "it passes the check of the notebook, not the hidden test: KeyError: -7"),
                    (2, ""),
                    (0, "it ended Python before the check was done (exit status 0)")],
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
    rows = table(tmp_path / "out")
    found = {name: [(int(row["points"]), row["first failing sentence"]) for row in rows
                    if row["student"] == name] for name in CLASS}
    assert found == TABLE
    assert [row["exercise"] for row in rows[:3]] == ["00.1", "00.2", "00.3"]
    assert [row["of"] for row in rows[:3]] == ["1", "2", "1"]
    assert "perfect  4 of 4 points\n    00.1  1 of 1\n" in capsys.readouterr().out
    assert (tmp_path / "out" / "half" / "feedback.txt").read_text(encoding="utf-8") == (
        "half  1 of 4 points\n\n00.1  1 of 1\n00.2  0 of 2  an item counts as often as it is "
        f"ordered\n00.3  0 of 1  {UNDONE.format(3)}\n")
    assert before == {path: path.read_bytes() for path in handed.rglob("*.ipynb")}


def table(out: Path) -> list[dict[str, str]]:
    assert (out / "grades.csv").read_bytes().startswith(b"\xef\xbb\xbf")       # Excel wants it
    with (out / "grades.csv").open(encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names and no pipes")
def test_whatever_they_are_called_all_are_graded_and_again_the_same(course, tmp_path, capsys):
    handed, out = tmp_path / "class", tmp_path / "out"
    latin = os.fsdecode(b"M\xfcller")                         # of an archive that is not UTF-8
    for name in ("Jörg (2)", latin, "=1+1", "pipe", "dangling"):
        student.release(handed / name)
        worked(handed / name / NAME, ["", "", "n = 2"])
    (handed / "Jörg (2)" / NAME).rename(handed / "Jörg (2)" / "meine Lösung.ipynb")
    for name in ("pipe", "dangling"):
        (handed / name / NAME).unlink()
    os.mkfifo(handed / "pipe" / NAME)
    (handed / "dangling" / NAME).symlink_to("nowhere")
    for left in (".ipynb_checkpoints", "__MACOSX"):
        (handed / left).mkdir()
        shutil.copy(handed / latin / NAME, handed / left / f"._{NAME}")
    (handed / "eva.zip").write_bytes(b"PK")
    for _ in range(2):
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert main(["course", "grade", str(handed), "--out", str(out), "--only", "00.3",
                     "--hidden", str(course / "hidden_tests.py")]) == 0
        assert "eva.zip is no notebook (.ipynb), and is not looked at" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    found = {row["student"]: (row["points"], row["first failing sentence"]) for row in table(out)}
    assert found == {"'=1+1": ("1", ""), "Jörg (2)": ("1", ""), r"M\udcfcller": ("1", ""), **{
        name: ("0", f"{handed / name / NAME} is no file, or leads to none; ask for it again")
        for name in ("pipe", "dangling")}}
    assert (out / r"M\udcfcller" / "feedback.txt").is_file()


def test_a_notebook_among_those_of_others_sees_no_files_of_theirs(course, tmp_path):
    for name in ("ann", "bob"):
        student.release(tmp_path / name)
        worked(tmp_path / name / NAME, [None, None, "import os\n"
               "n = 2 - len({'bob', 'large'} & set(os.listdir()))"])
        (tmp_path / "class" / name).mkdir(parents=True)
    (tmp_path / "ann" / NAME).rename(tmp_path / "class" / "ann.ipynb")
    (tmp_path / "bob" / NAME).rename(tmp_path / "class" / "bob" / NAME)
    (tmp_path / "class" / "bob" / "large").write_bytes(b"")
    (tmp_path / "class" / "ann").rmdir()
    rows = grade(collect(tmp_path / "class"), {}, LIMITS, chosen=["00.3"])
    assert [(row.student, row.points, row.why) for row in rows] == [
        ("ann", 1, ""), ("bob", 0, "count them")]


def test_only_what_is_asked_for_is_graded(course, tmp_path, capsys):
    write(course / "01_other.ipynb", CELLS)
    student.release(tmp_path / "class" / "ann")
    worked(tmp_path / "class" / "ann" / NAME, RIGHT)
    (tmp_path / "class" / "ann" / "01_other.ipynb").unlink()
    rows = grade(collect(tmp_path / "class"), {}, LIMITS, chosen=["00.3", "01"])
    assert [(row.exercise, row.points) for row in rows] == [
        ("00.3", 1), ("01.1", 0), ("01.2", 0), ("01.3", 0)]
    assert rows[1].why == "01_other was not handed in"
    for argv, said in ((["--only", "02"], "such as 03 and 10.2, got '02'; known: 00.1, 00.2"),
                       (["--out", str(tmp_path / "class" / "out")], "--out must lie outside of")):
        with pytest.raises(SystemExit) as stop:
            main(["course", "grade", str(tmp_path / "class"), *argv])
        assert stop.value.code == 2 and said in capsys.readouterr().err


def test_an_interrupted_grading_starts_no_further_exercise(course, tmp_path, monkeypatch):
    student.release(tmp_path / "ann")
    started = []
    monkeypatch.setattr(grading, "row", lambda *task: started.append(task) or time.sleep(0.2))

    def interrupt(rows, total):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        grade(collect(tmp_path, "ann"), {}, LIMITS, progress=interrupt)
    assert len(started) == 1                                   # of three


def test_the_student_version_has_stubs_locked_checks_and_cells_to_write_into(course, tmp_path):
    ((path, what),) = student.release(tmp_path / "student")
    cells = json.loads(path.read_text())["cells"]
    assert what == "written" and path == tmp_path / "student" / NAME
    assert [cell["id"] for cell in cells[:4]] == ["cell-0", "cell-1", "cell-1-guess", "cell-2"]
    assert cells[2]["cell_type"] == "markdown" and cells[2]["source"] == []
    assert "".join(cells[6]["source"]) == (
        'def double(x):\n    # write your answer here\n    raise notebook.NotDone("00.1")')
    assert [(grade_id(cell), cell["metadata"]["nbgrader"].get("points")) for cell in cells
            if grade_id(cell)] == [("exercise-1", None), ("check-1", 1), ("exercise-2", None),
                                   ("check-2", 2), ("exercise-3", None), ("check-3", 1)]
    for cell in cells:
        check = grade_id(cell).startswith("check")
        assert cell["metadata"].get("editable", True) is not check
        assert cell["metadata"].get("deletable", True) is (grade_id(cell) == "")
        assert cell.get("outputs", []) == [] and "-7" not in "".join(cell["source"])
        assert "len(PRICES)" not in "".join(cell["source"])
    assert "".join(cells[-1]["source"]).startswith("assert n != 4")      # a cell of its own


def test_the_same_notebook_gives_the_same_release(course):
    assert student.released(course / NAME) == student.released(course / NAME)


def run(path: Path) -> None:
    """Top to bottom in a kernel; ValueError with the error of the first cell that fails."""
    pytest.importorskip("nbclient")
    from minipeft.course.execute import execute
    execute(path)


def test_run_from_top_to_bottom_it_stops_at_what_is_not_done_or_comes_to_its_end(course, tmp_path):
    ((path, _),) = student.release(tmp_path / "student")
    worked(path, [RIGHT[0], "", ""])
    with pytest.raises(ValueError, match=r"In \[6\] .* raised NotDone: Exercise 00\.2 is not done"):
        run(path)
    worked(path, RIGHT)
    run(path)
    assert "right" in path.read_text()


def test_what_is_not_done_is_one_sentence_in_jupyter():
    assert NotDone("03.2")._render_traceback_() == [UNDONE.format(2).replace("00", "03")]


def test_a_students_work_is_never_written_over(course, tmp_path):
    ((path, _),) = student.release(tmp_path / "student")
    worked(path, RIGHT)
    work = path.read_bytes()
    assert student.release(tmp_path / "student") == [(path, "kept")]
    assert path.read_bytes() == work


def test_a_new_version_comes_beside_with_the_answers_in_their_places(course, tmp_path):
    ((path, _),) = student.release(tmp_path / "student")
    worked(path, [RIGHT[0], "", ""])
    old = json.loads(path.read_text())
    old["cells"][2]["source"] = "42, I say"
    old["cells"].insert(3, dict(cell_type="code", id="own", metadata={}, source="1 + 1", outputs=[],
                                execution_count=None))
    path.write_text(json.dumps(old))
    work = path.read_bytes()
    write(course / NAME, [CELLS[0], *(kind for kind in CELLS[1:4]),
                          (CELLS[4][0], CELLS[4][1] + " Any number."), *CELLS[5:]])
    ((new, what),) = student.release(tmp_path / "student")
    assert what == "merged" and path.read_bytes() == work
    assert re.fullmatch(r"student-[0-9a-f]{8}", new.parent.name)
    sources = ["".join(cell["source"]) for cell in json.loads(new.read_text())["cells"]]
    assert sources[2:4] == ["42, I say", "1 + 1"] and RIGHT[0] in sources
    assert any("Any number." in source for source in sources)
    assert sum("NotDone" in source for source in sources) == 2
    assert student.release(tmp_path / "student") == [(new, "kept")]


@pytest.mark.parametrize("answer", [
    "print('passes')", "raise SystemExit('passes')", "raise Exception('passes')",
    "import sys\nsys.stdout.write('passes')\nsys.exit(0)", "n = 2\nraise AssertionError('')"])
def test_no_word_that_an_answer_prints_or_ends_with_gives_a_point(course, tmp_path, answer):
    ((path, _),) = student.release(tmp_path / "s")
    worked(path, [None, None, answer])
    (row,) = grade(collect(tmp_path / "s", "s"), {}, LIMITS, chosen=["00.3"])
    assert row.points == 0 and row.why


def test_the_time_of_the_courses_own_cells_is_not_the_answers(course, tmp_path):
    slow = [*CELLS[:3], ("code", "import time\ntime.sleep(2)\n" + CELLS[3][1]), *CELLS[4:]]
    write(course / NAME, slow)
    ((path, _),) = student.release(tmp_path / "s")
    worked(path, RIGHT)
    (row,) = grade(collect(tmp_path / "s", "s"), {}, Limits(seconds=1.5), chosen=["00.2"])
    assert (row.points, row.why) == (2, "")


def test_a_course_whose_own_cell_fails_says_so(course, tmp_path):
    broken = ("code", "PRICES = {'tea': 3}\nPRICES['milk'] += 1")
    write(course / NAME, [*CELLS[:3], broken, *CELLS[4:]])
    ((path, _),) = student.release(tmp_path / "s")
    worked(path, RIGHT)
    (row,) = grade(collect(tmp_path / "s", "s"), {}, LIMITS, chosen=["00.2"])
    assert row.why == "a cell of the course that it needs failed: KeyError: 'milk'"


def test_a_helper_in_an_own_cell_may_use_the_course_and_stand_beside_scratch_work(course, tmp_path):
    ((path, _),) = student.release(tmp_path / "s")
    worked(path, ["", "def bill(order):\n    return total(order)", ""])
    notebook = json.loads(path.read_text())
    notebook["cells"].insert(4, dict(
        cell_type="code", id="mine", metadata={}, outputs=[], execution_count=None,
        source="def total(order):\n    return sum(PRICES[item] for item in order)\n\n"
               "double = total(['tea'])"))                  # a name that the course has, too
    path.write_text(json.dumps(notebook))
    rows = grade(collect(tmp_path / "s", "s"), {}, LIMITS, chosen=["00.2"])
    assert [(row.points, row.why) for row in rows] == [(2, "")]


def points(folder: Path, limits: Limits = LIMITS) -> list[int]:
    return [row.points for row in grade(collect(folder, "s"), {}, limits)]


def test_own_cells_split_answers_and_jupyters_own_lines_count_as_in_jupyter(course, tmp_path):
    ((path, _),) = student.release(tmp_path / "s")
    worked(path, ["def double(x):\n    return twice(x)", "%matplotlib inline\n" + RIGHT[1],
                  "n = 1"])
    notebook = json.loads(path.read_text())
    cells = notebook["cells"]
    extra = dict(cell_type="code", metadata={}, outputs=[], execution_count=None)
    cells.insert(4, {**extra, "id": "mine", "source": "def twice(x):\n    return 2 * x"})
    cells.insert(4, {**extra, "id": "scratch", "source": "PRICES = {}\nthis is no Python"})
    cells.insert(4, {**extra, "id": "mine2", "source": "PRICES = {}"})       # the course's stays
    (half,) = (cell for cell in cells if grade_id(cell) == "exercise-3")
    cells.insert(cells.index(half) + 1, {**half, "id": "half", "source": "n = n + 1"})
    path.write_text(json.dumps(notebook))
    assert points(tmp_path / "s") == [1, 2, 1]


def test_a_changed_check_changes_no_points(course, tmp_path):
    ((path, _),) = student.release(tmp_path / "s")
    worked(path, ["def double(x):\n    return 0", "def bill(order):\n    return 0", "n = 0"])
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if grade_id(cell).startswith("check"):
            cell["source"] = "print('right')"
    path.write_text(json.dumps(notebook))
    assert points(tmp_path / "s") == [0, 0, 0]


@pytest.mark.parametrize("answer, said", [
    ("import ctypes\nctypes.string_at(0)", "(signal SIGSEGV)"),
    ("x = bytearray(6 * 2**30)", "MemoryError"),
    ("n = = 2", "SyntaxError: "),
    ("open('big', 'wb').truncate(2**30)", "OSError: [Errno 27] File too large"),
    ("import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time\\nwhile 1: "
     "time.sleep(1)'])\nraise KeyboardInterrupt", "it ended Python"),
    ("n = input()", "EOFError"),
    ("assert False", "a check failed, and says no more")])
@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals and no such limits")
def test_however_an_answer_ends_a_sentence_says_so(course, tmp_path, answer, said):
    ((path, _),) = student.release(tmp_path / "s")
    worked(path, [None, None, answer])
    assert said in grade(collect(tmp_path / "s", "s"), {}, LIMITS)[2].why


def test_a_notebook_of_another_version_is_graded_with_a_warning_that_names_both(course, tmp_path):
    ((path, _),) = student.release(tmp_path / "s")
    worked(path, RIGHT)
    theirs = json.loads(path.read_text())["metadata"]["minipeft"]["version"]
    write(course / NAME, [*CELLS, ("markdown", "The end.")])
    ours = assignment.version(assignment.solved(course / NAME))
    (one,) = collect(tmp_path / "s", "s")
    assert theirs != ours and theirs in one.warning and ours in one.warning
    assert points(tmp_path / "s") == [1, 2, 1]


@pytest.mark.parametrize("content, said", [
    (b"", "it is empty"), (b"{", "is not valid JSON"), (b"\xff\xfe\x00", "UTF-16"),
    (b'{"cells": 3, "metadata": {}}', "cells must be a list"),
    (b'{"cells": [3], "metadata": {}}', "must be an object"),
    (b'{"cells": [], "metadata": {"minipeft": {"notebook": 3}}}', "lacks version, cells"),
    (b'{"cells": [], "metadata": {}}', "the cell exercise-1 is not there")])
def test_a_damaged_notebook_costs_its_points_and_says_why(course, tmp_path, content, said):
    (tmp_path / "class" / "ann").mkdir(parents=True)
    (tmp_path / "class" / "ann" / NAME).write_bytes(content)
    rows = grade(collect(tmp_path / "class"), {}, LIMITS)
    assert [row.points for row in rows] == [0, 0, 0] and said in rows[0].why
    assert "\n" not in rows[0].why
    if said != "the cell exercise-1 is not there":
        with pytest.raises(ValueError, match="move it away, or name another folder with --out"):
            student.release(tmp_path / "class" / "ann")
    assert (tmp_path / "class" / "ann" / NAME).read_bytes() == content


def test_a_renamed_notebook_is_known_and_two_of_one_name_are_not_graded(course, tmp_path):
    ((path, _),) = student.release(tmp_path / "class" / "ann")
    worked(path, RIGHT)
    renamed = path.rename(path.with_name("my copy (1).ipynb"))
    (tmp_path / "class" / "notes.ipynb").write_text('{"cells": [], "metadata": {}}')
    (tmp_path / "class" / "bob").mkdir()
    ann, notes, bob = collect(tmp_path / "class")
    assert bob.student == "bob" and bob.warning.endswith("bob holds no notebook")
    assert (ann.student, ann.notebook, ann.warning, ann.problem) == ("ann", "00_small", "", "")
    assert notes.warning.endswith("notes.ipynb is no notebook of the course: not graded")
    shutil.copy(renamed, path)
    rows = grade(collect(tmp_path / "class"), {}, LIMITS)
    assert {row.why for row in rows if row.student == "bob"} == {"00_small was not handed in"}
    assert {row.why for row in rows if row.student == "ann"} == {
        f"2 notebooks are 00_small: {path} and {renamed}; keep one of them"}


def test_hidden_tests_name_exercises(course, tmp_path):
    for text in ("# %% 00.9\nassert 1\n", "# %% 00.1\nassert 1\n\n# %% 00.1\nassert 2\n",
                 "# %% 0.1\nassert 1\n", "#%% 00.1\nassert 1\n", "# %% 00.1 \nassert 1\n"):
        (tmp_path / "own.py").write_text(text)
        with pytest.raises(ValueError, match=r"must name an exercise, as '# %% 03.2' does, and"):
            assignment.hidden_tests(tmp_path / "own.py")


@pytest.mark.parametrize("content, said", [
    (b"# %% 00.1\nassert 1 = 1\n", "the test behind '# %% 00.1' is not Python: .* in its line 1;"),
    (b"# %% 00.1\nassert 'M\xfcller'\n", "own.py: it must be UTF-8, got the byte 0xfc in line 2")])
def test_a_broken_hidden_test_is_refused_before_it_refuses_a_class(course, tmp_path, content, said):
    (tmp_path / "own.py").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        assignment.hidden_tests(tmp_path / "own.py")


def test_a_solution_is_printed_and_an_unknown_one_is_bad_usage(course, capsys):
    assert main(["course", "solution", "0.2"]) == 0
    assert capsys.readouterr().out == (
        "def bill(order):\n    return sum(PRICES[item] for item in order)\n")
    with pytest.raises(SystemExit) as stop:
        main(["course", "solution", "00.4"])
    assert stop.value.code == 2
    assert "unknown exercise '00.4'; known: 00.1, 00.2, 00.3" in capsys.readouterr().err


def test_an_exercise_that_was_not_begun_runs_nothing(course, tmp_path):
    """As handed out, but for spaces: said at once, though a cell that its check needs fails."""
    broken = ("code", "PRICES = {'tea': 3}\nPRICES['milk'] += 1")
    check = ("code", "assert bill(['tea']) == PRICES['tea'], 'the price'")
    write(course / NAME, [*CELLS[:3], broken, *CELLS[4:9], check, *CELLS[10:]])
    ((path, _),) = student.release(tmp_path / "s")
    undone = [UNDONE.format(number) for number in (1, 2, 3)]
    assert [row.why for row in grade(collect(tmp_path / "s", "s"), {}, LIMITS)] == undone
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if "NotDone" in "".join(cell["source"]):
            cell["source"] = "\n" + "".join(cell["source"]).replace("#", " #") + "\n\n"
    path.write_text(json.dumps(notebook))
    assert [row.why for row in grade(collect(tmp_path / "s", "s"), {}, LIMITS)] == undone


def test_progress_takes_what_is_asked_for(course, tmp_path, capsys):
    ((path, _),) = student.release(tmp_path / "student")
    worked(path, RIGHT)
    assert main(["course", "progress", str(path.parent), "--only", "00.2"]) == 0
    assert capsys.readouterr().out.splitlines() == ["00.2  2 of 2", "2 of 2 points"]
    with pytest.raises(SystemExit) as stop:
        main(["course", "progress", str(path.parent), "--only", "99"])
    assert stop.value.code == 2 and "--only takes notebooks and" in capsys.readouterr().err


def test_progress_prints_what_is_done(course, tmp_path, capsys):
    ((path, _),) = student.release(tmp_path / "student")
    worked(path, [BAD_ENDS[0], RIGHT[1], ""])
    assert main(["course", "progress", str(path.parent), "--jobs", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "00.1  0 of 1  it ended Python before the check was done (exit status 0)",
        "00.2  2 of 2", "00.3  0 of 1  " + UNDONE.format(3), "2 of 4 points"]


@pytest.mark.parametrize("argv, status, said", [
    (["grade", "nowhere"], 1, "nowhere must be a folder with notebooks, and there is none"),
    (["progress", "empty"], 1, "no notebook (.ipynb) in empty or below it; name another folder"),
    (["progress", "full", "--seconds", "0"], 2, "must be positive, got 1, 0 and 8"),
    (["student", "--out", "full/00_small.ipynb"], 2, "--out must be a folder")])
def test_bad_usage_and_what_is_not_there(course, tmp_path, monkeypatch, capsys, argv, status, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    student.release(tmp_path / "full")
    try:
        code = main(["course", *argv])
    except SystemExit as stop:
        code = stop.code
    assert code == status and said in capsys.readouterr().err


def test_without_nbgrader_the_error_says_what_to_type(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "nbgrader"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nbgrader", None)
    monkeypatch.delitem(sys.modules, "minipeft.course.student")
    monkeypatch.delattr(sys.modules["minipeft.course"], "student")
    assert main(["course", "student", "--out", str(tmp_path / "student")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'minipeft[course]'" in error
    assert not any(tmp_path.iterdir())


@pytest.mark.long
def test_nbgrader_takes_the_source_over_and_gives_the_same_points(course, tmp_path):
    """Its own commands: generate_assignment, autograde (a database and alembic), export."""
    student.write_source(tmp_path / "source")
    with pytest.raises(FileExistsError, match="is not written over"):
        student.write_source(tmp_path / "source")
    graded = [name for name in CLASS if name not in ("crashing", "deleting")]
    for name in graded:
        student.release(tmp_path / "submitted" / name / "00_small")
        worked(tmp_path / "submitted" / name / "00_small" / NAME,
               [answer for answer in CLASS[name] if answer is not None])
    (tmp_path / "nbgrader_config.py").write_text("c = get_config()\n"
                                                 "c.CourseDirectory.course_id = 'small'\n")
    for command in (["generate_assignment", "00_small"], ["autograde", "00_small"], ["export"]):
        done = subprocess.run([sys.executable, "-m", "nbgrader", *command], cwd=tmp_path,
                              capture_output=True, text=True, env=with_scripts())
        assert done.returncode == 0, done.stderr
    with (tmp_path / "grades.csv").open() as file:
        found = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert found == {name: sum(got for got, _ in TABLE[name]) for name in graded}
    theirs = json.loads((tmp_path / "release" / "00_small" / NAME).read_text())
    ours = json.loads((tmp_path / "submitted" / "blank" / "00_small" / NAME).read_text())
    for their, our in zip(theirs["cells"], ours["cells"], strict=True):
        if not grade_id(our).startswith("exercise"):          # they differ in the stub's text
            assert their == our


def with_scripts() -> dict[str, str]:
    """The environment, with the folder of the program `alembic` on the PATH."""
    import nbgrader
    places = [Path(sys.executable).parent, Path(nbgrader.__file__).parents[1] / "bin"]
    return {**os.environ, "PATH": os.pathsep.join([*map(str, places), os.environ["PATH"]])}


# ---------------------------------------------------------------- our own notebooks


@pytest.mark.parametrize("path", assignment.course(), ids=lambda path: path.stem)
def test_every_exercise_is_handed_out_without_its_solution_and_with_its_points(path):
    source, handed_out = assignment.assignment(path, {}), student.released(path)
    text = "\n".join(cell.source for cell in handed_out.cells)
    names = [grade_id(cell) for cell in source["cells"]]
    for exercise in assignment.exercises_in(path.stem, assignment.solved(path)["cells"]):
        assert exercise.solution.strip() not in text and 1 <= exercise.points <= 3
        assert f"exercise-{exercise.number}" in names and f"check-{exercise.number}" in names
    assert text.count("raise notebook.NotDone(") == sum(n.startswith("exercise") for n in names)
    assert "../" not in "".join(re.findall(r'Path\(".*', text)), "ask minipeft.files for it"
    guesses = sum(cell["id"].endswith("-guess") for cell in source["cells"])
    assert guesses >= 1 and "SOLUTION" not in text


@pytest.mark.parametrize("path", assignment.course(), ids=lambda path: path.stem)
def test_no_check_takes_what_is_not_done_for_a_mistake(path):
    for exercise in assignment.exercises_in(path.stem, assignment.solved(path)["cells"]):
        handlers = [node for cell in exercise.checks for node in ast.walk(ast.parse(cell))
                    if isinstance(node, ast.ExceptHandler)]
        for handler in handlers:
            caught = getattr(builtins, getattr(handler.type, "id", ""), BaseException)
            assert not issubclass(NotDone, caught), f"{exercise.name} catches it"


def test_the_syllabus_adds_up_the_minutes_of_its_notebooks():
    rows = re.findall(r"\]\((\w+\.ipynb)\).*?\| (\d+) min \|", README)
    minutes = {name: int(number) for name, number in rows}
    weeks = [line for line in TEACHING.splitlines() if re.match(r"\| \d+ \| \[", line)]
    assert len(minutes) == len(assignment.course()) and len(weeks) == 12
    for line in weeks:
        total = sum(minutes[name] for name in re.findall(r"\((\w+\.ipynb)\)", line))
        if "up to" not in line:
            assert f"| {total} |" in line


@pytest.mark.long
def test_a_class_on_our_own_notebooks(tmp_path):
    """All solutions have all points, hidden tests among them; blank notebooks none."""
    student.release(tmp_path / "class" / "blank")
    student.release(tmp_path / "class" / "perfect")
    for path in assignment.course():
        found = assignment.exercises_in(path.stem, assignment.solved(path)["cells"])
        worked(tmp_path / "class" / "perfect" / path.name,
               [exercise.before + exercise.solution for exercise in found])
    rows = grade(collect(tmp_path / "class"), assignment.hidden_tests(assignment.HIDDEN), Limits())
    lost = [row for row in rows if row.student == "perfect" and row.points < row.of]
    assert lost == [] and len(rows) > 90
    assert {row.why for row in rows if row.student == "blank"} == {
        UNDONE.replace("00.{}", row.exercise) for row in rows}


@pytest.mark.long
@pytest.mark.parametrize("path", assignment.course(), ids=lambda path: path.stem)
def test_a_list_of_the_results_passes_no_exercise(path, monkeypatch):
    """Whoever reads a check can list what it asks for, if that is a few plain numbers or names. An
    answer without arguments is one value, which no test can tell from a computed one."""
    monkeypatch.chdir(path.parent)
    plt.switch_backend("Agg")
    hidden, passed = assignment.hidden_tests(assignment.HIDDEN), []
    for exercise in exercises(path):
        names = names_before(exercise)
        for name in re.findall(r"(?m)^def (\w+)", exercise.before)[-1:]:
            solution, calls, table = names[name], [], {}
            watched = names | {name: recording(solution, calls)}
            assert outcome("\n\n".join(exercise.checks), watched) == PASSES
            for args, kwargs, found in calls:
                table[repr((args, kwargs))] = found
            if all(map(is_plain, calls)) and any(args or kwargs for args, kwargs, _ in calls):
                source = "\n\n".join([*exercise.checks, hidden.get(exercise.name, "")])
                if outcome(source, names | {name: listing(table)}) == PASSES:
                    passed.append(exercise.name)
    assert passed == [], "give them a hidden test"


def recording(solution, calls: list):
    def recorded(*args, **kwargs):
        found = solution(*args, **kwargs)
        calls.append((args, kwargs, found))
        return found
    return recorded


def listing(table: dict):
    return lambda *args, **kwargs: table[repr((args, kwargs))]


def names_before(exercise: Exercise) -> dict:
    """Of a notebook, after the solution and before its check."""
    names: dict = {}
    own = exercise.before + exercise.solution
    for source in [*exercise.needs, own if exercise.after.strip() in exercise.checks
                   else own + exercise.after]:
        exec(source, names)
    return names


def is_plain(value: object) -> bool:
    """Whether one would write it into a list by hand."""
    if isinstance(value, dict):
        return len(value) < 9 and all(map(is_plain, [*value, *value.values()]))
    if isinstance(value, tuple | list):
        return len(value) < 9 and all(map(is_plain, value))
    return value is None or isinstance(value, int | float | str) or is_dataclass(value)
