"""`minipeft quiz`: interview questions in a terminal, graded by yourself, and remembered."""
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

from ..course import boxes
from ..course.questions import LEVELS, Question, evidence, plain, questions
from ..folders import locked, remove_empty
from . import UsageError, count

EXAMPLE = "python -m minipeft quiz --group memory --count 5"
GRADES = {"y": "knew it", "p": "partly", "n": "not yet"}


def arguments(parser) -> None:
    *days, last = map(str, boxes.DAYS[1:])
    parser.description = (
        f"Interview questions, graded by yourself. What you did not know comes back tomorrow, what "
        f"you knew\nafter {', '.join(days)} and {last} days. First those due today are asked, the "
        f"weakest first, then new ones, level\nby level. Each grade is kept at once: end when you "
        f"like, and go on later.")
    parser.add_argument("--group", help="only groups whose name contains this, such as qlora")
    parser.add_argument("--level", type=int, choices=range(1, 1 + len(LEVELS)),
                        help=", ".join(f"{n}: {name}" for n, name in enumerate(LEVELS, start=1)))
    parser.add_argument("--count", type=count, help="how many questions (default: all there are)")
    parser.add_argument("--all", action="store_true",
                        help="ask those that are not due yet as well, after the others")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--forget", action="store_true", help="erase every grade, and ask nothing")
    instead.add_argument("--cards", type=Path, metavar="FILE.apkg",
                         help="write the questions as flash cards for Anki, and ask nothing")


def run(args) -> None:
    if (args.forget or args.cards) and (args.count or args.all):
        raise UsageError("--count and --all are for asking; leave them out")
    if args.forget:
        forget(args)
    elif args.cards:
        write_cards(args, time.time())
    else:
        session(args, date.today())


def selected(args) -> list[Question]:
    try:
        return questions(args.group, args.level)
    except ValueError as error:
        raise UsageError(str(error)) from error


def forget(args) -> None:
    if args.group or args.level:
        raise UsageError("--forget erases every grade; leave --group and --level out")
    path = boxes.memory_file()
    if not path.exists():
        print(f"There is nothing to forget: no grades in {path}")
        return
    try:
        what = f"the grades of {len(boxes.read(path))} questions"
    except ValueError:
        what = "a damaged file of grades"
    path.unlink()
    remove_empty([path.parent])
    print(f"Erased: {what}, {path}")


def write_cards(args, now: float) -> None:
    from ..course import cards           # needs genanki, the quiz does not
    if args.cards.suffix != ".apkg":
        raise UsageError(f"--cards must name a file that ends with .apkg, got {args.cards}")
    chosen = selected(args)
    cards.write(chosen, args.cards, now)
    print(f"written: {args.cards}, {len(chosen)} cards; in Anki: File, Import. A later deck "
          f"updates these cards.")


# ---------------------------------------------------------------- asking


def session(args, today: date) -> None:
    """Ask what is to be asked on this day, keep each grade, and say what to reread and what is due
    when. Where nothing can be kept, it says so and asks all the same: to practise is worth more
    than to remember it."""
    chosen = selected(args)
    path, entries = opened()
    asked = [q for q in boxes.order(chosen, entries, today)
             if args.all or q.id not in entries or boxes.is_due(entries[q.id], today)]
    new = sum(q.id not in entries for q in asked)
    print(f"{len(asked) - new} again, {new} new. Answer aloud or on paper, press Enter, compare. "
          f"Ctrl-D or q ends." if asked else "Nothing here is due or new; --all asks all the same.")
    answered = []
    try:
        for question, grade in ask(asked[:args.count], entries):
            answered.append((question, grade))
            path = kept(path, question, grade, today)
    except (EOFError, KeyboardInterrupt):
        print()
    if asked:
        print(summary(answered))
    if path is not None:
        print(wrapped(calendar(boxes.read(path), today), indent=""))
        print(f"Kept in {path}")


def opened() -> tuple[Path | None, dict[str, boxes.Entry]]:
    """The file of grades, None if it cannot be written, and what it holds. A damaged one is kept
    aside."""
    entries = {}
    try:
        path = boxes.memory_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent, wait=True):
            try:
                entries = boxes.read(path)
            except ValueError as error:
                say(f"{error}. It is kept as {boxes.set_aside(path)}, and this quiz begins anew")
            boxes.write(path, entries)
    except OSError as error:
        say_not_kept(error)
        return None, entries
    return path, entries


def kept(path: Path | None, question: Question, grade: str, today: date) -> Path | None:
    """Say when the question comes back; `path`, or None if it cannot be written any more."""
    if path is None:
        return None
    try:
        entry = boxes.keep(path, question.id, grade, today)
    except (OSError, ValueError) as error:
        say_not_kept(error)
        return None
    print(f"    again {on(entry.due, today)}")
    return path


def say_not_kept(error: Exception) -> None:
    say(f"grades are not kept from here on: {error}. XDG_DATA_HOME may name another folder")


def say(text: str) -> None:
    print(f"minipeft quiz: {text}", file=sys.stderr)


def ask(asked: list[Question], entries: dict[str, boxes.Entry]) -> Iterator[tuple[Question, str]]:
    """(question, grade) of each, until "q"."""
    for number, question in enumerate(asked, start=1):
        entry = entries.get(question.id)
        place = "new" if entry is None else f"box {entry.box} of {len(boxes.DAYS)}"
        print(f"\n{number}/{len(asked)}  [{question.group}]  {place}")
        print(wrapped(plain(question.question)))
        if typed("    ... ") == "q":
            return
        print(wrapped(plain(question.answer)))
        print(wrapped(f"{question.mark}: {evidence(question)}"))
        grade = read_grade()
        if grade == "q":
            return
        yield question, grade


def typed(prompt: str) -> str:
    """What is typed, in small letters; a pipe's line is shown as if it were typed."""
    text = input(prompt).strip()
    if not sys.stdin.isatty():
        print(text)
    return text.lower()


def read_grade() -> str:
    while True:
        grade = typed("    did you know it? [y]es, [p]artly, [n]o, [q]uit: ")[:1]
        if grade in (*GRADES, "q"):
            return grade
        print("    y: it comes back after twice as many days; p: after as many as before;\n"
              "    n: tomorrow; q: end here, this question stays as it was")


def wrapped(text: str, indent: str = "    ") -> str:
    return textwrap.fill(text, 92, initial_indent=indent, subsequent_indent=indent,
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


def calendar(entries: dict[str, boxes.Entry], today: date) -> str:
    """What is due when, of all questions of the course."""
    known = [entries[q.id] for q in questions() if q.id in entries]
    waiting = Counter(entry.due for entry in known if not boxes.is_due(entry, today))
    now = len(known) - waiting.total()
    days = [f"{n} {on(day, today)}" for day, n in sorted(waiting.items())]
    return f"Due: {', '.join([f'{now} now', *days])}; new: {len(questions()) - len(known)}."


def on(day: date, today: date) -> str:
    return "tomorrow" if day == today + timedelta(days=1) else f"on {day}"
