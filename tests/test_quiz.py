"""The interview questions: one file, asked in a terminal and in notebook 17."""
import io
import json
import re

import pytest
from test_claims import NOTEBOOKS, headings

from minipeft.__main__ import main
from minipeft.course.claims import CLAIMS
from minipeft.course.questions import questions

PLACES = sorted({question.reread for question in questions()})


def cells() -> list[dict]:
    notebook = json.loads((NOTEBOOKS / "17_the_interview.ipynb").read_text(encoding="utf-8"))
    return [cell | {"source": "".join(cell["source"])} for cell in notebook["cells"]]


@pytest.fixture
def quiz(monkeypatch, capsys):
    """quiz(["--count", "2"], "\\ny\\n\\nn\\n"): what the command prints when this is typed."""
    def run(argv, typed=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert main(["quiz", *argv]) == 0
        return capsys.readouterr().out
    return run


def test_there_are_forty_questions_and_those_of_every_course_come_first():
    found = questions()
    assert len(found) >= 40 and len({q.question for q in found}) == len(found)
    first = [q.question.lower() for q in found[:3]]
    assert "latency" in first[0] and "forgetting" in first[1] and "full fine-tuning" in first[2]
    assert all(all(vars(question).values()) for question in found)


def test_notebook_17_holds_every_question_and_answer_in_order():
    texts = [cell["source"] for cell in cells() if cell["cell_type"] == "markdown"]
    found = [text for text in texts if re.search(r"(?m)^### \d+ · ", text)]
    assert len(found) == len(questions())
    for text, q in zip(found, questions()):
        assert f"### {q.number} · {q.question}\n" in text, q.number
        assert f"\n{q.answer}\n" in text and q.proof in text and q.reread in text, q.number


@pytest.mark.parametrize("question", questions(), ids=lambda q: str(q.number))
def test_a_proof_exists(question):
    for number in re.findall(r"claims? ([\d and]+)", question.proof):
        assert all(1 <= int(n) <= len(CLAIMS) for n in re.findall(r"\d+", number))
    if question.proof == "cell in notebook 17":
        (at,) = (i for i, cell in enumerate(cells())
                 if f"### {question.number} · " in cell["source"])
        assert cells()[at + 1]["cell_type"] == "code"


@pytest.mark.parametrize("place", PLACES)
def test_what_is_to_be_reread_exists(place):
    name, _, heading = place.partition(": ")
    path = NOTEBOOKS / f"{name}.ipynb"
    if not path.exists():
        pytest.skip(f"{path.name} is not written yet")
    assert not heading or heading in headings(path), place


def test_the_quiz_grades_and_says_what_to_reread(quiz):
    out = quiz(["--count", "3", "--seed", "1"], "my answer\ny\n\nwhat?\nn\n\np\n")
    assert "3 answered: 1 knew it, 1 partly, 1 not yet" in out and "Reread:" in out
    asked = [q for q in questions() if q.question[:60] in re.sub(r"\s+", " ", out)]
    assert len(asked) == 3 and out.count("did you know it?") == 4       # "what?" was asked again
    assert sum(q.reread in out for q in asked) == 2 or len({q.reread for q in asked}) < 3


def test_a_seed_repeats_the_order_and_another_changes_it(quiz):
    typed = "\ny\n" * 60
    first, again, other = (quiz(["--seed", seed], typed) for seed in ("1", "1", "2"))
    assert first == again != other
    assert f"{len(questions())} answered: {len(questions())} knew it" in first
    assert "Nothing to reread." in first


def test_a_group_is_chosen_by_part_of_its_name(quiz):
    out = quiz(["--group", "qlora"], "\ny\n" * 60)
    assert set(re.findall(r"\[(.*QLoRA.*)\]", out)) == {"NF4 and QLoRA"}
    assert out.count("proof:") == sum(q.group == "NF4 and QLoRA" for q in questions())


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
])
def test_wrong_usage_is_one_line_and_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["quiz", *argv])
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
