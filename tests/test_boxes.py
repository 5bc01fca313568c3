"""The quiz's memory: boxes and due days by hand, a week of a learner, files that are damaged."""
import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path

import pytest

from minipeft.__main__ import main, parser
from minipeft.cli import quiz
from minipeft.course import boxes
from minipeft.course.boxes import Entry, graded, keep, memory_file, order, read
from minipeft.course.questions import plain, questions

TODAY = date(2026, 11, 26)
DAMAGED = {"": "it is empty", "{": "is not valid JSON", "[]": "must hold an object, got list",
           '{"latency": 3}': "latency must be an object, got 3",
           '{"latency": {"box": 1}}': "latency lacks due",
           '{"latency": {"box": true, "due": "2026-11-26"}}': "box must be a whole number",
           '{"latency": {"box": 6, "due": "2026-11-26"}}': "box must be 1 to 5, got 6",
           '{"latency": {"box": 0, "due": "2026-11-26"}}': "box must be 1 to 5, got 0",
           '{"latency": {"box": 1, "due": "soon"}}': "due must be a date such as 2026-11-26, got "}


@pytest.fixture(autouse=True)
def file(monkeypatch, tmp_path) -> Path:
    """The file of grades of a user who has none yet; never that of whoever runs the tests."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "minipeft" / "quiz.json"


class Typed(io.StringIO):
    """What comes through a pipe, or from a terminal where a test says so."""

    def isatty(self) -> bool:
        return False


@pytest.fixture
def ask(monkeypatch, capsys):
    """ask(day, ["--count", "2"], "\\ny\\n\\nn\\n"): what a session on that day prints."""
    def run(day, argv=(), typed=""):
        monkeypatch.setattr("sys.stdin", Typed(typed))
        quiz.session(parser(["quiz"]).parse_args(["quiz", *argv]), day)
        return capsys.readouterr()
    return run


def ahead(n: int) -> date:
    return TODAY + timedelta(days=n)


# ---------------------------------------------------------------- where a question lies


def test_known_questions_wait_1_2_4_8_and_16_days_and_then_always_16():
    entry, today, waited = graded(None, "n", TODAY), TODAY, []
    for _ in range(7):
        waited.append((entry.box, (entry.due - today).days))
        today = entry.due
        entry = graded(entry, "y", today)
    assert waited == [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (5, 16), (5, 16)]


@pytest.mark.parametrize("before, grade, after", [
    (None, "y", Entry(2, ahead(2))), (None, "p", Entry(1, ahead(1))),
    (Entry(4, TODAY), "p", Entry(4, ahead(8))), (Entry(4, TODAY), "n", Entry(1, ahead(1))),
    (Entry(4, ahead(-30)), "y", Entry(5, ahead(16))),          # late: from today
    (Entry(3, ahead(1)), "y", Entry(3, ahead(1))),             # early: nothing is shown by it
    (Entry(3, ahead(1)), "p", Entry(3, ahead(1))), (Entry(3, ahead(1)), "n", Entry(1, ahead(1))),
    (Entry(2, ahead(17)), "y", Entry(3, ahead(4))),            # no box waits 17 days: a wrong clock
    (Entry(2, ahead(16)), "y", Entry(2, ahead(16)))])
def test_where_a_grade_puts_a_question(before, grade, after):
    assert graded(before, grade, TODAY) == after


def test_weak_and_due_questions_come_first_then_new_ones_by_level_then_the_rest():
    found = questions()
    by_hand = {found[60].id: Entry(1, ahead(0)), found[9].id: Entry(2, ahead(-9)),
               found[2].id: Entry(2, ahead(-1)), found[3].id: Entry(2, ahead(-1)),
               found[0].id: Entry(5, ahead(-40)),
               found[4].id: Entry(1, ahead(1)), found[1].id: Entry(3, ahead(3))}
    numbers = [q.number for q in order(found, by_hand, TODAY)]
    assert numbers[:5] == [61, 10, 3, 4, 1] and numbers[-2:] == [5, 2]
    assert numbers[5:-2] == sorted(set(range(1, 95)) - {61, 10, 3, 4, 1, 5, 2})


# ---------------------------------------------------------------- a week


# Of the questions 1, 2, 3, ... he knows three in five at first sight: not 4, 5, 9, 10, 14, 15.
# What he did not know he reads that evening, and knows from then on. He answers 5 a day.
# day: (asked, in this order; {due on day: numbers} after it). Known, a question waits 2, then 4
# days; not known, 1 day and then 2.
WEEK = {
    1: ([1, 2, 3, 4, 5], {2: [4, 5], 3: [1, 2, 3]}),
    2: ([4, 5, 6, 7, 8], {3: [1, 2, 3], 4: [4, 5, 6, 7, 8]}),
    3: ([1, 2, 3, 9, 10], {4: [4, 5, 6, 7, 8, 9, 10], 7: [1, 2, 3]}),
    4: ([9, 10, 4, 5, 6], {4: [7, 8], 6: [9, 10], 7: [1, 2, 3], 8: [4, 5, 6]}),
    5: ([7, 8, 11, 12, 13], {6: [9, 10], 7: [1, 2, 3, 11, 12, 13], 8: [4, 5, 6], 9: [7, 8]}),
    6: ([9, 10, 14, 15, 16], {7: [1, 2, 3, 11, 12, 13, 14, 15], 8: [4, 5, 6, 16], 9: [7, 8],
                              10: [9, 10]}),
    7: ([14, 15, 11, 12, 13], {7: [1, 2, 3], 8: [4, 5, 6, 16], 9: [7, 8, 14, 15], 10: [9, 10],
                               11: [11, 12, 13]})}


def test_a_week_of_a_learner_who_knows_three_questions_in_five(ask, file):
    number_of = {q.id: q.number for q in questions()}
    seen = set()
    for day, (numbers, due) in WEEK.items():
        today = TODAY + timedelta(days=day - 1)
        knows = [number % 5 in (1, 2, 3) or number in seen for number in numbers]
        seen |= set(numbers)
        typed = "".join("\ny\n" if known else "\nn\n" for known in knows)
        out = ask(today, ["--count", "5"], typed).out
        flat = re.sub(r"\s+", " ", out)
        places = [flat.index(f" {plain(questions()[n - 1].question)} ... ") for n in numbers]
        assert places == sorted(places) and f"{sum(knows)} knew it, 0 partly" in out, day
        found = {}
        for id, entry in read(file).items():
            found.setdefault((entry.due - TODAY).days + 1, []).append(number_of[id])
        assert {d: sorted(found[d]) for d in sorted(found)} == due, day
    assert ("Due: 3 now, 4 tomorrow, 4 on 2026-12-04, 2 on 2026-12-05, 3 on 2026-12-06; new: 78."
            in out)


# ---------------------------------------------------------------- the file


def test_each_grade_is_in_the_file_before_the_next_question(ask, file, monkeypatch):
    kept = []

    def answer(prompt):
        kept.append(len(read(file)))
        if len(kept) == 6:
            raise KeyboardInterrupt
        return "n"
    monkeypatch.setattr("builtins.input", answer)
    out = ask(TODAY).out
    assert kept == [0, 0, 1, 1, 2, 2] and "2 answered: 0 knew it, 0 partly, 2 not yet" in out
    assert "Due: 0 now, 2 tomorrow; new: 92." in out and out.endswith(f"\nKept in {file}\n")
    assert json.loads(file.read_text()) == {
        name: {"box": 1, "due": "2026-11-27"} for name in ("latency", "catastrophic-forgetting")}
    monkeypatch.undo()
    monkeypatch.setenv("XDG_DATA_HOME", str(file.parents[1]))
    assert "\n1/92  [The three that every course asks]  new\n    LoRA or full" in ask(TODAY).out


def test_a_question_is_known_by_its_id_and_entries_of_others_stay(ask, file):
    file.parent.mkdir(parents=True)
    other = {"box": 3, "due": "2026-11-26"}
    file.write_text(json.dumps({"of-another-version": other, "frozen-a": other}))
    out = ask(TODAY, ["--count", "1"], "\ny\n").out
    assert "\n1/1  [LoRA: the idea and how it starts]  box 3 of 5\n    Freeze A at random" in out
    assert "again on 2026-12-04\n" in out and "Due: 0 now, 1 on 2026-12-04; new: 93." in out
    assert json.loads(file.read_text()) == {"of-another-version": other,
                                            "frozen-a": {"box": 4, "due": "2026-12-04"}}


def test_two_quizzes_at_once_lose_no_grade(file):
    def grade_all(half: list) -> None:
        for question in half:
            keep(file, question.id, "n", TODAY)
    with ThreadPoolExecutor(2) as two:
        list(two.map(grade_all, (questions()[::2], questions()[1::2])))
    assert read(file) == {q.id: Entry(1, ahead(1)) for q in questions()}
    assert {path.name for path in file.parent.iterdir()} <= {"quiz.json", ".lock"}


@pytest.mark.parametrize("content, why", DAMAGED.items())
def test_a_damaged_file_is_kept_aside_under_a_name_that_is_said(content, why, ask, file):
    file.parent.mkdir(parents=True)
    for n in (1, 2):                                  # a second one does not replace the first
        file.write_text(content)
        found = ask(TODAY, ["--count", "1"], "\ny\n")
        aside = file.with_name(f"quiz.damaged-{n}.json")
        assert found.err.startswith(f"minipeft quiz: {file}") and found.err.count("\n") == 1
        assert why in found.err
        assert f". It is kept as {aside}, and this quiz begins anew" in found.err
        assert aside.read_text() == content and "1 answered: 1 knew it" in found.out
        assert read(file) == {"latency": Entry(2, ahead(2))}


def test_a_file_that_is_damaged_during_the_quiz_is_left_and_the_quiz_goes_on(ask, file,
                                                                              monkeypatch):
    def answer(prompt):
        file.write_text("{")
        return "y"
    monkeypatch.setattr("builtins.input", answer)
    found = ask(TODAY, ["--count", "2"])
    assert "2 answered: 2 knew it" in found.out and file.read_text() == "{"
    assert found.err.count("\n") == 1 and "grades are not kept from here on: " in found.err


# chmod does not stop root, who may run the tests; nobody can make a folder below a file or in /proc
@pytest.mark.parametrize("folder", ["a file", pytest.param("/proc", marks=pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="a folder of Linux that nobody can write"))])
def test_where_nothing_can_be_written_the_quiz_says_so_and_goes_on(folder, ask, monkeypatch,
                                                                   tmp_path):
    (tmp_path / "a file").write_text("mine")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / folder))
    found = ask(TODAY, ["--count", "2"], "\ny\n\nn\n")
    assert found.err.startswith("minipeft quiz: grades are not kept from here on: ")
    assert found.err.endswith(". XDG_DATA_HOME may name another folder\n")
    assert found.err.count("\n") == 1 and str(tmp_path / folder) in found.err
    assert "2 answered: 1 knew it, 0 partly, 1 not yet" in found.out and "again" not in (
        found.out.partition("[")[2]) and "Kept in" not in found.out


def test_forgetting_says_how_many_and_which_file_and_takes_a_damaged_one(file, capsys):
    keep(file, "latency", "y", TODAY)
    keep(file, "dora", "n", TODAY)
    said = []
    for content in (None, "{", None):
        if content is not None:
            file.parent.mkdir()
            file.write_text(content)
        assert main(["quiz", "--forget"]) == 0
        said.append(capsys.readouterr().out)
        assert not file.parent.exists()
    assert said == [f"Erased: the grades of 2 questions, {file}\n",
                    f"Erased: a damaged file of grades, {file}\n",
                    f"There is nothing to forget: no grades in {file}\n"]


@pytest.mark.skipif(os.name == "nt", reason="platformdirs asks Windows itself")
def test_the_file_is_where_platformdirs_says(monkeypatch, tmp_path):
    platformdirs = pytest.importorskip("platformdirs", reason="it comes with jupyterlab")
    from platformdirs.macos import MacOS
    from platformdirs.unix import Unix
    app = dict(appname="minipeft", appauthor=False)
    assert memory_file() == Path(platformdirs.user_data_dir(**app), "quiz.json")
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for platform, usual in (("linux", Unix), ("freebsd14", Unix), ("darwin", MacOS)):
        assert memory_file(platform) == Path(usual(**app).user_data_dir, "quiz.json")
    assert memory_file("win32") == Path.home() / "AppData" / "Local" / "minipeft" / "quiz.json"
    assert memory_file("win32", {"LOCALAPPDATA": str(tmp_path)}) == (
        tmp_path / "minipeft" / "quiz.json")
    assert memory_file("linux", {"XDG_DATA_HOME": "not/absolute"}) == memory_file("linux")


def test_a_user_without_a_home_is_asked_all_the_same(ask, monkeypatch):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.setattr(boxes, "read", lambda path: pytest.fail("it has found a home"))
    found = ask(TODAY, ["--count", "1"], "\ny\n")
    assert "1 answered" in found.out and found.err.count("\n") == 1
    assert "no home folder; name one for data in XDG_DATA_HOME" in found.err


# ---------------------------------------------------------------- what is typed


def test_enter_explains_the_grades_and_a_pipe_shows_what_came_through_it(ask):
    out = ask(TODAY, ["--count", "1"], "My Answer\n\ny\n").out
    assert "\n    ... My Answer\n    Merged, no: " in out
    asking = "    did you know it? [y]es, [p]artly, [n]o, [q]uit: "
    assert (f"\n{asking}\n    y: it comes back after twice as many days; p: after as many as before"
            f";\n    n: tomorrow; q: end here, this question stays as it was\n{asking}y\n"
            f"    again on 2026-11-28\n") in out


def test_a_terminal_shows_what_is_typed_by_itself(ask, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    monkeypatch.setattr(Typed, "isatty", lambda typed: True)
    assert "\ny\n" not in ask(TODAY, ["--count", "1"]).out
