"""The exercises: each runs alone, its solution passes, and wrong answers are refused by name.

tests/answers/NN.py has the answers people give to notebook NN: (exercise, what is wrong with it,
the lines in place of the solution's, "passes" or "refused: a part of the message").
"""
import importlib.util
import os
from pathlib import Path

import pytest
from conftest import CONTEXT

pytest.importorskip("IPython")
from minipeft.course.exercises import (PASSES, Exercise, defined, exercises, judge, needed, outcome,
                                       used)

ANSWERS = Path(__file__).parent / "answers"
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
TABLES = sorted(path.name[:2] for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def answers(number: str) -> list[tuple[int, str, str, str]]:
    spec = importlib.util.spec_from_file_location(f"answers_{number}", ANSWERS / f"{number}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ANSWERS


def exercises_of(number: str) -> list[Exercise]:
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    return exercises(path)


def check(exercise: Exercise, table: list[tuple[int, str, str, str]]) -> None:
    """The solution passes, and each answer comes out as its row says; in a process of its own."""
    rows = [row for row in table if row[0] == exercise.number]
    with CONTEXT.Pool(1, os.chdir, (NOTEBOOKS,)) as pool:
        solution, *found = pool.apply(judge, (exercise, [None, *(row[2] for row in rows)]))
    assert solution == PASSES, solution
    for (_, label, _, wanted), came in zip(rows, found, strict=True):
        if wanted == PASSES:
            assert came == PASSES, f"exercise {exercise.number}, {label}: {came}"
        else:
            fragment = wanted.removeprefix("refused:").strip()
            assert came != PASSES and fragment in came, f"{exercise.number}, {label}: {came}"


@pytest.mark.parametrize("number", TABLES)
def test_every_exercise_has_four_wrong_answers_and_another_right_one(number):
    table = answers(number)
    assert {row[0] for row in table} == {exercise.number for exercise in exercises_of(number)}
    for exercise in exercises_of(number):
        outcomes = [wanted for n, _, _, wanted in table if n == exercise.number]
        assert all(wanted == PASSES or wanted.startswith("refused:") for wanted in outcomes)
        assert sum(wanted != PASSES for wanted in outcomes) >= 4, exercise.number
        assert PASSES in outcomes, exercise.number


@pytest.mark.parametrize("number", TABLES)
def test_the_exercise_that_needs_least_refuses_what_it_should(number):
    check(min(exercises_of(number), key=lambda exercise: len(exercise.needs)), answers(number))


@pytest.mark.long
@pytest.mark.parametrize("number, of", [(number, exercise.number) for number in TABLES
                                        for exercise in exercises_of(number)])
def test_every_exercise_refuses_what_it_should(number, of):
    (exercise,) = (each for each in exercises_of(number) if each.number == of)
    check(exercise, answers(number))


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_the_exercises_are_numbered_in_order(path):
    assert [exercise.number for exercise in exercises(path)] == list(
        range(1, 1 + len(exercises(path))))


def test_an_exercise_needs_what_its_names_rest_on_and_no_more():
    cells = ["import torch\nnotebook.start()", "M = torch.eye(2)", "print(M)",
             "def f(x):\n    return scale * x", "scale = 3", "M = f(M)", "unused = M", "M += 1"]
    assert needed(cells, "f(1)") == [cells[0], cells[3]]            # scale is defined after f
    assert needed(cells, "f(1) + scale") == [cells[0], *cells[3:5]]
    assert needed(cells, "print(M)") == [cells[0], *(cells[i] for i in (1, 3, 5, 7))]
    assert needed(cells, "M = 2\nprint(M)") == [cells[0]]
    cells = ["import a, b\nfrom c import d\nx = slow()", "from e import f\ny = f(x)"]
    assert needed(cells, "print(d)") == ["import a, b\nfrom c import d"]
    assert needed(cells, "f(d, y)") == cells
    assert needed(["from c import d\nd = d + 1"], "d") == ["from c import d\nd = d + 1"]
    cells = ["found = {}", "found['a'] = 1", "x = 2", "found['b'].c[x] += 1", "found.clear()"]
    assert needed(cells, "found") == cells[:4]


@pytest.mark.parametrize("source, defines, uses", [
    ("for i, row in enumerate(rows):\n    total = row", {"i", "row", "total"}, {"rows"}),
    ("x = [y for y in ys]", {"x"}, {"ys"}),
    ("def f():\n    def g(k):\n        return k + n\n    return g", {"f"}, {"n"}),
    ("import a.b as c, d.e\nfrom f import g as h\nc.x(d, h)", {"c", "d", "h"}, set()),
    ("with open(name) as file:\n    text = file.read()", {"file", "text"}, {"name"}),
    ("def f(a):\n    b = a\n    return b + outer", {"f"}, {"outer"}),
    ("n = n + 1", {"n"}, {"n"}),
    ("n += 1", {"n"}, {"n"}),
    ("n = 0\nn += 1\nprint(n)", {"n"}, set()),
    ("M = f(\n    M)", {"M"}, {"f", "M"}),
    ("def f():\n    return f()", {"f"}, set()),
    ("def f(n, k=m):\n    i = n\n    return i + k\nn, k, i, m = 1, 2, 3, 4",
     {"f", "n", "k", "i", "m"}, {"m"}),
    ("def f():\n    global n\n    n = n + 1\nn = 0", {"f", "n"}, {"n"}),
    ("f = lambda n: n + m\nn = m = 0", {"f", "n", "m"}, {"m"}),
    ("def f(a):\n    def g(b):\n        return a + b + c\n    return g\na = b = c = 0",
     {"f", "a", "b", "c"}, {"c"}),
    ("for x in xs:\n    xs = x", {"x", "xs"}, {"xs"}),
    ("a, (b, *c) = d", {"a", "b", "c"}, {"d"})])
def test_what_a_cell_defines_and_uses(source, defines, uses):
    assert defined(source) == defines and used(source) == uses


def test_an_answer_that_raises_is_refused_whatever_it_raises():
    assert outcome("x = 1 / 0", {}) == "ZeroDivisionError: division by zero"
    assert outcome("assert y == 2, 'twice'", {"y": 1}) == "AssertionError: twice"
    assert outcome("y + 1", {"y": 1}) == PASSES


def test_markers_that_do_not_pair_are_named(tmp_path):
    path = tmp_path / "x.ipynb"
    for source in ("### BEGIN SOLUTION\\nx = 1", "x = 1\\n    ### END SOLUTION\\n"):
        path.write_text('{"cells": [{"cell_type": "markdown", "source": ["**Exercise 1**"]}, '
                        f'{{"cell_type": "code", "source": ["{source}"]}}]}}')
        with pytest.raises(ValueError, match="x.ipynb: an exercise needs a number above it and"):
            exercises(path)
