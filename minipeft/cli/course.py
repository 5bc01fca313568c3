"""`minipeft course`: the student version, one solution, a learner's progress, a class's grades, the
course as a site, the stored results to explore."""
import csv
import io
import sys
from dataclasses import replace
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
    site = doing.add_parser("site", help="all notebooks, claims, results and docstrings as pages")
    site.add_argument("--out", type=Path, default=Path("site"),
                      help="folder (default: site); an earlier site in it is replaced")
    site.add_argument("--without-solutions", action="store_true",
                      help="leave them out; else they are folded")
    arguments_of_grade(grading)
    for command in (progress, grading):
        arguments_of_a_run(command)
    for command in doing.choices.values():
        command.set_defaults(parser=command)             # a wrong usage shows its own


def arguments_of_grade(grading) -> None:
    grading.add_argument("--out", type=Path, default=Path("results"), help="folder for grades.csv "
                         "and a folder with feedback.txt for each student (default: results)")
    grading.add_argument("--hidden", type=Path, default=HIDDEN, metavar="FILE",
                         help="hidden tests (default: notebooks/hidden_tests.py)")


def arguments_of_a_run(command) -> None:
    """Of a command that runs answers."""
    command.add_argument("folder", type=Path)
    command.add_argument("--only", nargs="+", default=[], metavar="NN[.N]",
                         help="notebooks or exercises, such as 03 10.2 (default: every notebook "
                              "that is there)")
    command.add_argument("--seconds", type=float, default=120,
                         help="limit of each answer with its checks (default: 120)")
    command.add_argument("--gib", type=float, default=8,
                         help="limit of each exercise's memory (default: 8)")
    command.add_argument("--jobs", type=int, default=1, help="exercises at once (default: 1)")


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


def check_chosen(names: list[str]) -> None:
    exercises = known()
    for name in names:
        if name not in exercises and f"{name}.1" not in exercises:
            raise UsageError(f"--only takes notebooks and exercises, such as 03 and 10.2, got "
                             f"{name!r}; known: {', '.join(exercises)}")


def progress(args) -> None:
    check_chosen(args.only)
    rows = graded(grade.collect(args.folder, student="you"), {}, args)
    print("\n".join(map(short_line, rows)))
    print(total(rows))


def grades(args) -> None:
    check_output(args.out)
    if args.folder.resolve() in (args.out.resolve(), *args.out.resolve().parents):
        raise UsageError(f"--out must lie outside of {args.folder}, where each folder is a "
                         f"student's, got {args.out}")
    check_chosen(args.only)
    handed = grade.collect(args.folder)
    for path in grade.overlooked(args.folder):
        warn(f"{path} is no notebook (.ipynb), and is not looked at")
    rows = graded(handed, hidden_tests(args.hidden), args)
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "grades.csv", spreadsheet(rows))
    for name in dict.fromkeys(row.student for row in rows):
        own = [row for row in rows if row.student == name]
        print(f"{name}  {total(own)}", *map(short_line, own), sep="\n    ")
        (args.out / name).mkdir(exist_ok=True)
        write_text(args.out / name / "feedback.txt",
                   "\n".join([f"{name}  {total(own)}", "", *map(line, own), ""]))
    print(f"written: {args.out / 'grades.csv'}, and each student's feedback.txt beside it")


def spreadsheet(rows: list[grade.Row]) -> str:
    """CSV with the mark by which Excel knows UTF-8, and no text that a spreadsheet computes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for row in rows:
        student, why = (f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell
                        for cell in (row.student, row.why))
        writer.writerow((student, row.exercise, row.points, row.of, why))
    return "\ufeff" + text.getvalue()


def site(args) -> None:
    from ..course import site as pages                 # needs sphinx, the others do not
    check_output(args.out)
    for warning in pages.build(args.out, solutions=not args.without_solutions):
        print(warning, file=sys.stderr)
    print(f"written: {args.out / 'index.html'}")


def explored(args) -> None:
    from ..course import explore                        # needs plotly, the others do not
    check_output(args.out.parent)
    explore.write(args.out)
    print(f"written: {args.out}")


def line(row: grade.Row) -> str:
    return f"{row.exercise}  {row.points} of {row.of}  {row.why}".rstrip()


def short_line(row: grade.Row) -> str:
    return line(replace(row, why=short(row.why, repr=str)))


def total(rows: list[grade.Row]) -> str:
    return f"{sum(row.points for row in rows)} of {sum(row.of for row in rows)} points"


def warn(text: str) -> None:
    print(f"warning: {grade.printable(text)}", file=sys.stderr)


def graded(handed: list[grade.HandedIn], hidden: dict[str, str], args) -> list[grade.Row]:
    if args.jobs < 1 or not args.seconds > 0 or not args.gib > 0:
        raise UsageError(f"--jobs, --seconds and --gib must be positive, got {args.jobs}, "
                         f"{args.seconds:g} and {args.gib:g}")
    for warning in (each.warning for each in handed if each.warning):
        warn(warning)
    limits = grade.Limits(args.seconds, args.gib)
    return grade.grade(handed, hidden, limits, min(args.jobs, cores()), lambda rows, total: tqdm(
        rows, total=total, unit="exercise", file=sys.stderr, dynamic_ncols=True, leave=False),
        args.only)
