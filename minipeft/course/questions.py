"""The interview questions: data/questions.json, which `minipeft quiz` and notebook 17 share.

Formulas are written once, as LaTeX between dollar signs: the notebook sets them, and `plain` turns
them into what a terminal can show.
"""
import re
from dataclasses import dataclass

from ..adapter import nearest
from ..files import DATA, read_json

QUESTIONS = DATA / "questions.json"
LEVELS = ("phone screen", "on site", "research")
MARKS = {       # what an answer rests on
    "proved": "a check that would fail, or print something else, if the answer were false",
    "counted": "numbers computed here from shapes, bytes or stored runs",
    "cited": "somebody's table or theorem, which is not repeated here",
    "from experience": "practice; nothing here tests it"}
CELL = "the cell below"         # in notebook 17
# LaTeX to text, in this order; of characters beyond ASCII only those that __main__ can spell.
PLAIN = (
    (r"\\(?:text|mathrm)\{([^{}]*)\}", r"\1"), (r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1 / \2)"),
    (r"\\sqrt\{?(\w|\\[a-z]+)\}?", r"√\1"), (r"\^\\top", "^T"), (r"\\partial ?", "d"),
    (r"\\alpha", "α"), (r"\\Delta ?", "Δ"), (r"\\times|\\cdot", "*"), (r"\\ne\b", "≠"),
    (r"\\lVert ?| ?\\rVert", "|"), (r"\\[,;]", " "),
    (r"\^\{([^{}]*[^\w{}][^{}]*)\}", r"^(\1)"), (r"\\([a-z]+)", r"\1"), (r"[{}]", ""))


@dataclass(frozen=True)
class Question:
    number: int        # as in notebook 17
    id: str            # never another: grades are remembered by it, and flash cards updated
    level: str         # one of LEVELS; inside a level, those asked most come first
    group: str
    question: str
    answer: str
    mark: str          # one of MARKS
    proof: str         # CELL, a claim's sentence, a paper's table
    reread: str        # "03_lora: heading"


def questions(group: str | None = None, level: int | None = None) -> list[Question]:
    """All, or those of the groups whose name contains `group`, of that level (1, 2 or 3);
    ValueError if there is none."""
    keys = dict.fromkeys(("id", "level", "group", "question", "answer", "mark", "proof", "reread"),
                         str)
    entries = read_json(QUESTIONS, wanted=list, keys=keys)
    every = [Question(number, **entry) for number, entry in enumerate(entries, start=1)]
    found = [q for q in every if level is None or q.level == LEVELS[level - 1]]
    if group is None:
        return found
    chosen = [question for question in found if group.lower() in question.group.lower()]
    if not chosen:
        names = list(dict.fromkeys(question.group for question in found))
        raise ValueError(f"no group {group!r}{nearest(group, names)}; the groups are: "
                         f"{'; '.join(names)}")
    return chosen


def evidence(question: Question) -> str:
    """Where the proof is, for who is not in notebook 17."""
    return question.proof.replace(CELL, f"the cell of question {question.number} in notebook 17")


def plain(text: str) -> str:
    """The text with its formulas spelt for a terminal: "$W^\\top$" is "W^T"."""
    return re.sub(r"\$([^$]+)\$", lambda formula: spelt(formula[1]), text)


def spelt(formula: str) -> str:
    for pattern, replacement in PLAIN:
        formula = re.sub(pattern, replacement, formula)
    return formula
