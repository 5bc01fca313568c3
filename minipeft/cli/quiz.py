"""`minipeft quiz`: interview questions in a terminal, graded by yourself."""
import random
import sys
import textwrap

from ..course.questions import CELL, LEVELS, Question, plain, questions
from . import UsageError, count, seed

EXAMPLE = "python -m minipeft quiz --group memory --count 5"
GRADES = {"y": "knew it", "p": "partly", "n": "not yet"}


def arguments(parser) -> None:
    parser.add_argument("--group", help="only groups whose name contains this, such as qlora")
    parser.add_argument("--level", type=int, choices=range(1, 1 + len(LEVELS)),
                        help=", ".join(f"{n}: {name}" for n, name in enumerate(LEVELS, start=1)))
    parser.add_argument("--count", type=count, help="how many questions (default: all)")
    parser.add_argument("--seed", type=seed,
                        help="the same order again (default: another each time)")


def run(args) -> None:
    try:
        chosen = questions(args.group, args.level)
    except ValueError as error:
        raise UsageError(str(error)) from error
    random.Random(args.seed).shuffle(chosen)
    print("Answer aloud or on paper, press Enter, compare. Ctrl-D or q ends.")
    print(summary(ask(chosen[:args.count])))


def ask(chosen: list[Question]) -> list[tuple[Question, str]]:
    """(question, grade) of those that were answered, until the last one or the end of input."""
    answered = []
    try:
        for number, question in enumerate(chosen, start=1):
            print(f"\n{number}/{len(chosen)}  [{question.group}]")
            print(wrapped(plain(question.question)))
            stop = input("    ... ").strip().lower() == "q"
            if not sys.stdin.isatty():          # nobody has typed a line's end that one could see
                print()
            if stop:
                break
            print(wrapped(plain(question.answer)))
            print(wrapped(f"{question.mark}: {evidence(question)}"))
            grade = read_grade()
            if grade == "q":
                break
            answered.append((question, grade))
    except (EOFError, KeyboardInterrupt):
        print()
    return answered


def evidence(question: Question) -> str:
    return question.proof.replace(CELL, f"the cell of question {question.number} in notebook 17")


def read_grade() -> str:
    while True:
        grade = input("    did you know it? [y]es, [p]artly, [n]o, [q]uit: ").strip().lower()[:1]
        if grade in (*GRADES, "q"):
            return grade
        print("    one of these letters, please")


def wrapped(text: str) -> str:
    return textwrap.fill(text, 92, initial_indent="    ", subsequent_indent="    ",
                         break_on_hyphens=False)


def summary(answered: list[tuple[Question, str]]) -> str:
    """How many of each grade, and what to reread, each place once."""
    if not answered:
        return "\nNo question answered."
    counts = ", ".join(f"{sum(grade == key for _, grade in answered)} {name}"
                       for key, name in GRADES.items())
    places: dict[str, list[str]] = {}
    for question, grade in answered:
        if grade != "y":
            places.setdefault(question.reread, []).append(str(question.number))
    lines = [f"    notebook {place} (question {', '.join(numbers)} of notebook 17)"
             for place, numbers in sorted(places.items())]
    return "\n".join([f"\n{len(answered)} answered: {counts}",
                      *(["Reread:", *lines] if lines else ["Nothing to reread."])])
