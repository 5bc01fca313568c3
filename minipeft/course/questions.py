"""The interview questions: data/questions.json, which `minipeft quiz` and notebook 17 share."""
from dataclasses import dataclass

from ..adapter import nearest
from ..files import DATA, read_json

QUESTIONS = DATA / "questions.json"


@dataclass(frozen=True)
class Question:
    number: int        # as in notebook 17
    group: str
    question: str
    answer: str
    proof: str         # a claim's number, a cell of notebook 17, a paper's table
    reread: str        # "03_lora: heading"


def questions(group: str | None = None) -> list[Question]:
    """All, or those of the groups whose name contains `group`; ValueError if there is none."""
    keys = dict.fromkeys(("group", "question", "answer", "proof", "reread"), str)
    entries = read_json(QUESTIONS, wanted=list, keys=keys)
    found = [Question(number, **entry) for number, entry in enumerate(entries, start=1)]
    if group is None:
        return found
    chosen = [question for question in found if group.lower() in question.group.lower()]
    if not chosen:
        names = list(dict.fromkeys(question.group for question in found))
        raise ValueError(f"no group {group!r}{nearest(group, names)}; the groups are: "
                         f"{'; '.join(names)}")
    return chosen
