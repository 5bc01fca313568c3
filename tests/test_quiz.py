"""The interview questions: one file, asked in a terminal and in notebook 17."""
import io
import json
import re

import pytest
from test_claims import NOTEBOOKS, headings

from minipeft.__main__ import main
from minipeft.course.claims import CLAIMS
from minipeft.course.questions import CELL, LEVELS, MARKS, plain, questions

PLACES = sorted({question.reread for question in questions()})


def cells() -> list[dict]:
    notebook = json.loads((NOTEBOOKS / "17_the_interview.ipynb").read_text(encoding="utf-8"))
    return [cell | {"source": "".join(cell["source"])} for cell in notebook["cells"]]


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    """No test sees the grades of whoever runs it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "minipeft"


@pytest.fixture
def quiz(monkeypatch, capsys):
    """quiz(["--count", "2"], "\\ny\\n\\nn\\n"): what the command prints when this is typed."""
    def run(argv, typed=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert main(["quiz", *argv]) == 0
        return capsys.readouterr().out
    return run


def test_the_questions_of_every_course_come_first_and_the_levels_in_order():
    found = questions()
    assert len(found) >= 90 and len({q.question for q in found}) == len(found)
    first = [q.question.lower() for q in found[:3]]
    assert "latency" in first[0] and "forgetting" in first[1] and "full fine-tuning" in first[2]
    assert all(all(vars(question).values()) for question in found)
    levels = [LEVELS.index(question.level) for question in found]
    assert levels == sorted(levels) and set(levels) == {0, 1, 2}
    assert len({q.id for q in found}) == len(found)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", q.id) for q in found)
    assert {question.mark for question in found} == MARKS.keys()


def test_notebook_17_holds_every_question_and_answer_in_order():
    texts = [cell["source"] for cell in cells() if cell["cell_type"] == "markdown"]
    found = [text for text in texts if re.search(r"(?m)^### \d+ · ", text)]
    assert len(found) == len(questions())
    for text, q in zip(found, questions()):
        assert f"### {q.number} · {q.question}\n" in text, q.number
        assert f"\n{q.answer}\n" in text and q.reread in text, q.number
        assert f"**{q.mark.capitalize()}**: {q.proof}." in text, q.number


@pytest.mark.parametrize("question", questions(), ids=lambda q: str(q.number))
def test_a_proof_exists(question):
    sentences = re.findall(r'"([^"]+)"', question.proof)
    assert set(sentences) <= {claim.claim for claim in CLAIMS}
    (at,) = (i for i, cell in enumerate(cells())
             if cell["source"].startswith(f"### {question.number} · "))
    follows = cells()[at + 1]
    assert (CELL in question.proof) == (follows["cell_type"] == "code")
    for number in re.findall(r"diagnosis (\d+)", question.proof):
        assert any(f"**Diagnosis {number}." in cell["source"] for cell in cells())
    if question.mark in ("proved", "counted"):
        assert CELL in question.proof or "diagnosis" in question.proof


@pytest.mark.parametrize("question", questions(), ids=lambda q: str(q.number))
def test_a_terminal_can_show_every_formula(question):
    for text in (question.question, question.answer):
        assert text.count("$") % 2 == 0
        assert not set(plain(text)) & set("\\${}"), plain(text)


@pytest.mark.parametrize("latex, text", [
    (r"$W_0 + \frac{\alpha}{r} B A$", "W_0 + (α / r) B A"), (r"$\alpha / \sqrt{r}$", "α / √r"),
    (r"$\partial L/\partial A = s\,B^\top G^\top X$", "dL/dA = s B^T G^T X"),
    (r"$h + W_{up}\,g(W_{down}\,h)$", "h + W_up g(W_down h)"), ("3 % of $2LP$", "3 % of 2LP"),
    (r"$\sqrt{N}\,\alpha$, $10^{5}$", "√N α, 10^5"), (r"$e^{q \cdot k}$", "e^(q * k)"),
    (r"$\lVert W \rVert$", "|W|"), (r"$\Delta W \ne 0$", "ΔW ≠ 0")])
def test_formulas_are_spelt_for_a_terminal(latex, text):
    assert plain(latex) == text


@pytest.mark.parametrize("place", PLACES)
def test_what_is_to_be_reread_exists(place):
    name, _, heading = place.partition(": ")
    path = NOTEBOOKS / f"{name}.ipynb"
    if not path.exists():
        pytest.skip(f"{path.name} is not written yet")
    assert not heading or heading in headings(path), place


def test_the_quiz_grades_and_says_what_to_reread(quiz):
    out = quiz(["--count", "3"], "my answer\ny\n\nwhat?\nn\n\np\n")
    assert "3 answered: 1 knew it, 1 partly, 1 not yet" in out and "Reread:" in out
    asked = [q for q in questions() if plain(q.question)[:60] in re.sub(r"\s+", " ", out)]
    assert len(asked) == 3 and out.count("did you know it?") == 4       # "what?" was asked again
    assert sum(q.reread in out for q in asked) == 2 or len({q.reread for q in asked}) < 3


def test_all_are_asked_in_the_order_of_the_file_and_then_nothing_is_new(quiz):
    out = quiz([], "\ny\n" * 120)
    assert out.startswith(f"0 again, {len(questions())} new. ")
    flat = re.sub(r"\s+", " ", out)
    places = [flat.index(f" new {plain(q.question)} ... ") for q in questions()]
    assert places == sorted(places)
    assert f"{len(questions())} answered: {len(questions())} knew it" in out
    assert "Nothing to reread." in out
    assert quiz([]).startswith("Nothing here is due or new; --all asks all the same.\nDue: 0 now, ")
    assert f"{len(questions())} again, 0 new." in quiz(["--all"])


def test_a_group_is_chosen_by_part_of_its_name(quiz):
    out = quiz(["--group", "qlora"], "\ny\n" * 60)
    assert set(re.findall(r"\[(.*QLoRA.*)\]", out)) == {"NF4 and QLoRA"}
    assert out.count("did you know it?") == sum(q.group == "NF4 and QLoRA" for q in questions())


def test_an_answer_comes_with_its_mark_and_a_level_can_be_chosen(quiz):
    out = re.sub(r"\s+", " ", quiz(["--level", "3"], "\ny\n" * 120))
    for q in questions():
        proof = q.proof.replace(CELL, f"the cell of question {q.number} in notebook 17")
        assert (plain(q.question) in out) == (q.level == LEVELS[2])
        assert q.level != LEVELS[2] or f"{plain(q.answer)} {q.mark}: {proof}" in out


@pytest.mark.parametrize("typed", ["", "\n", "q\n", "\nq\n"])
def test_the_end_of_input_ends_the_quiz(quiz, typed):
    assert "No question answered." in quiz(["--count", "2"], typed)


def test_ctrl_c_ends_the_quiz_with_what_was_answered(quiz, monkeypatch):
    typed = iter(["", "n", KeyboardInterrupt()])

    def answer(prompt=""):
        item = next(typed)
        if isinstance(item, BaseException):
            raise item
        return item
    monkeypatch.setattr("builtins.input", answer)
    assert "1 answered: 0 knew it, 0 partly, 1 not yet" in quiz([])


@pytest.mark.parametrize("argv, message", [
    (["--count", "0"], "--count: must be a whole number, at least 1"),
    (["--group", "cooking"], "the groups are: The three that every course asks; "),
    (["--forget", "--cards", "a.apkg"], "not allowed with argument --forget"),
    (["--forget", "--level", "1"], "--forget erases every grade; leave --group and --level out"),
    (["--forget", "--count", "2"], "--count and --all are for asking; leave them out"),
    (["--cards", "a.apkg", "--all"], "--count and --all are for asking; leave them out"),
])
def test_wrong_usage_is_one_line_and_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["quiz", *argv])
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
