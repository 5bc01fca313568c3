"""`minipeft course`: the student version, one solution, a learner's progress, a class's grades, the
course as a site, the stored results to explore."""
import csv
import io
import sys
from pathlib import Path

from tqdm import tqdm

from ..course import grade
from ..course.assignment import HIDDEN, hidden_tests, known
from ..files import short, write_text
from . import UsageError, check_output, cores

EXAMPLE = "python -m minipeft course grade handed_in --out grades"
HEADER = ("student", "exercise", "points", "of", "first failing sentence")


def arguments(parser) -> None:
    doing = parser.add_subparsers(dest="doing", required=True)
    student = doing.add_parser("student", help="the notebooks without solutions, to work in")
    student.add_argument("--out", type=Path, default=Path("student"),
                         help="folder (default: student); what is there is never written over")
    source = doing.add_parser("source", help="the solved notebooks as nbgrader's source")
    source.add_argument("--out", type=Path, default=Path("source"), help="folder (default: source)")
    solution = doing.add_parser("solution", help="print one solution")
    solution.add_argument("exercise", metavar="NN.N", help="such as 03.2")
    progress = doing.add_parser("progress", help="run your answers, each exercise alone")
    exploring = doing.add_parser("explore", help="an interactive page of the stored results")
    exploring.add_argument("--out", type=Path, default=Path("explore.html"), metavar="FILE",
                           help="page to write (default: explore.html)")
    grading = doing.add_parser("grade", help="run a class's answers; a table, and grades.csv")
    grading.add_argument("--out", type=Path, default=Path("results"),
                         help="folder for grades.csv (default: results)")
    grading.add_argument("--hidden", type=Path, default=HIDDEN, metavar="FILE",
                         help="hidden tests (default: notebooks/hidden_tests.py)")
    site = doing.add_parser("site", help="all notebooks, claims, results and docstrings as pages")
    site.add_argument("--out", type=Path, default=Path("site"),
                      help="folder (default: site); an earlier site in it is replaced")
    for command in (progress, grading):
        command.add_argument("folder", type=Path)
        command.add_argument("--seconds", type=float, default=120, help="limit of each exercise "
                                                                        "(default: 120)")
        command.add_argument("--gib", type=float, default=8,
                             help="limit of each exercise's memory (default: 8)")
        command.add_argument("--jobs", type=int, default=1, help="exercises at once (default: 1)")
    for command in doing.choices.values():
        command.set_defaults(parser=command)             # a wrong usage shows its own


def run(args) -> None:
    {"student": student, "source": source, "solution": solution, "progress": progress,
     "grade": grades, "site": site, "explore": explored}[args.doing](args)


def student(args) -> None:
    from ..course import student as releases           # needs nbgrader, the others do not
    check_output(args.out)
    done = releases.release(args.out)
    for path, what in done:
        print(f"{what:<9}{path}")
    if done[0][0].parent != args.out:
        print(f"{args.out} holds an earlier version, and stays as it is; go on in "
              f"{done[0][0].parent}: your answers are in it")


def source(args) -> None:
    from ..course import student as releases
    check_output(args.out)
    for path in releases.write_source(args.out):
        print(path)


def solution(args) -> None:
    exercises = known()
    if args.exercise.zfill(4) not in exercises:
        raise UsageError(f"unknown exercise {args.exercise!r}; known: {', '.join(exercises)}")
    exercise = exercises[args.exercise.zfill(4)]
    print((exercise.before + exercise.solution).rstrip())


def progress(args) -> None:
    rows = graded(grade.collect(args.folder, student="you"), {}, args)
    print("\n".join(map(line, rows)))
    print(total(rows))


def grades(args) -> None:
    check_output(args.out)
    rows = graded(grade.collect(args.folder), hidden_tests(args.hidden), args)
    for name in dict.fromkeys(row.student for row in rows):
        own = [row for row in rows if row.student == name]
        print(f"{name}  {total(own)}", *map(line, own), sep="\n    ")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows((row.student, row.exercise, row.points, row.of, row.why) for row in rows)
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "grades.csv", text.getvalue())
    print(f"written: {args.out / 'grades.csv'}")


def site(args) -> None:
    from ..course import site as pages                 # needs sphinx, the others do not
    check_output(args.out)
    for warning in pages.build(args.out):
        print(warning, file=sys.stderr)
    print(f"written: {args.out / 'index.html'}")


def explored(args) -> None:
    from ..course import explore                        # needs plotly, the others do not
    check_output(args.out.parent)
    explore.write(args.out)
    print(f"written: {args.out}")


def line(row: grade.Row) -> str:
    return f"{row.exercise}  {row.points} of {row.of}  {short(row.why, repr=str)}".rstrip()


def total(rows: list[grade.Row]) -> str:
    return f"{sum(row.points for row in rows)} of {sum(row.of for row in rows)} points"


def graded(handed: list[grade.HandedIn], hidden: dict[str, str], args) -> list[grade.Row]:
    if args.jobs < 1 or not args.seconds > 0 or not args.gib > 0:
        raise UsageError(f"--jobs, --seconds and --gib must be positive, got {args.jobs}, "
                         f"{args.seconds:g} and {args.gib:g}")
    for warning in (each.warning for each in handed if each.warning):
        print(f"warning: {warning}", file=sys.stderr)
    limits = grade.Limits(args.seconds, args.gib)
    return grade.grade(handed, hidden, limits, min(args.jobs, cores()), lambda rows, total: tqdm(
        rows, total=total, unit="exercise", file=sys.stderr, dynamic_ncols=True, leave=False))
