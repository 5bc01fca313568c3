"""Grade what students hand in: every exercise alone, in a process and a copy of the folder each.

    handed_in = collect(Path("handed_in"))
    rows = grade(handed_in, hidden_tests(HIDDEN), Limits())

Of a student's notebook only the answers are taken (and own cells that they call); all other cells
are the solved notebook's, so what was deleted, renamed or changed elsewhere counts for nothing.
nbgrader releases the notebooks, but does not grade them here: its autograder runs a notebook in one
kernel, where one crash or exit hides the exercises below it, keeps its scores in a database, and
does not limit memory. It can grade the same files, see notebooks/TEACHING.md.

The limits are those of mistakes, not of attacks. An answer runs with the rights of whoever grades:
it can read and change that person's files by their full path, read the environment's variables, use
the network, and, since it shares a process with its check, forge a verdict. Grade strangers' work
in a container. Without the `resource` module (Windows) memory is not limited.
"""
import ast
import contextlib
import io
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

from ..files import plain, short
from .assignment import STUB, course, handed_out, solved, version
from .exercises import PASSES, Exercise, defined, exercises_in, needed, outcome
from .notebook import NotDone

try:
    import resource
except ImportError:                 # Windows
    resource = None

LARGEST_FILE = 256 * 2**20          # bytes: of a notebook, of a folder, of what an answer writes
LONGEST = 4000                      # bytes of a verdict
PREPARING = 3600                    # seconds for the course's own cells, on any machine
READY = b"the answer's time begins"
HIDDEN_REFUSES = "it passes the check of the notebook, not the hidden test"
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT = multiprocessing.get_context("forkserver" if FORKS else "spawn")


@dataclass(frozen=True)
class Limits:
    """Of each exercise."""
    seconds: float = 120            # of the answer and its checks
    gib: float = 8                  # of address space
    characters: int = 1_000_000     # that it prints


@dataclass(frozen=True)
class HandedIn:
    student: str
    notebook: str                   # "03_lora"
    path: Path
    warning: str                    # "" if nothing is odd
    problem: str = ""               # why nothing in it can be graded
    answers: tuple[tuple[int, str], ...] = ()        # (number of the exercise, source)
    own: tuple[str, ...] = ()       # code cells that the student has added
    beside: Path | None = None      # the folder of which each answer gets a copy


@dataclass(frozen=True)
class Row:
    student: str
    exercise: str                   # "03.2"
    points: int
    of: int
    why: str                        # the first sentence that refuses it; "" with all points


def collect(folder: Path, student: str | None = None) -> list[HandedIn]:
    """All notebooks below a folder, which has a folder for each student; a notebook that lies in it
    directly is of a student of the file's name, and its answers get no files.

    student: whose they are, if all are of one
    FileNotFoundError if there is none; a notebook that cannot be read has a `problem`.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} must be a folder with notebooks, and there is none; "
                                 f"name another")
    paths = {path: path.relative_to(folder).parts for path in sorted(folder.rglob("*.ipynb"))}
    found = []
    for path, parts in paths.items():
        if not any(map(is_left_by_a_program, parts)):
            name = printable(parts[0].removesuffix(".ipynb")) if student is None else student
            alone = student is None and len(parts) == 1        # among what others have handed in
            found.append(replace(handed_in(path, name), beside=None if alone else path.parent))
    if student is None:
        found += [HandedIn(printable(each.name), "", each, f"{each} holds no notebook")
                  for each in sorted(folder.iterdir())
                  if each.is_dir() and not is_left_by_a_program(each.name)
                  and not any(each in one.path.parents for one in found)]
    if not any(one.path.is_file() for one in found):
        raise FileNotFoundError(f"no notebook (.ipynb) in {folder} or below it; name another "
                                f"folder")
    return [only(found, each) for each in found]


def is_left_by_a_program(name: str) -> bool:
    """Jupyter's .ipynb_checkpoints, and what macOS packs beside files."""
    return name.startswith(".") or name == "__MACOSX"


def overlooked(folder: Path) -> list[Path]:
    """The files in it that are no notebooks: hand-ins that are still packed, say."""
    return [path for path in sorted(folder.iterdir()) if path.suffix != ".ipynb"
            and not path.is_dir() and not is_left_by_a_program(path.name)]


def only(found: list[HandedIn], one: HandedIn) -> HandedIn:
    """With a problem if the student has another of the same notebook."""
    same = [str(each.path) for each in found
            if (each.student, each.notebook) == (one.student, one.notebook)]
    problem = (f"{len(same)} notebooks are {one.notebook}: {' and '.join(same)}; keep one of them"
               if len(same) > 1 and one.notebook else one.problem)
    return replace(one, problem=problem)


def handed_in(path: Path, student: str) -> HandedIn:
    known = {each.stem: each for each in course()}
    named = next((stem for stem in known if path.stem.startswith(stem)), "")
    try:
        if not path.is_file():
            raise ValueError(f"{path} is no file, or leads to none; ask for it again")
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path} is larger than {LARGEST_FILE} bytes; clear its outputs")
        content = handed_out(path, "ask for it again")
        about = content["metadata"].get("minipeft", {})
        answers, own = answers_in(content["cells"], about.get("cells", []))
    except (ValueError, OSError) as error:
        return HandedIn(student, named, path, "", problem=str(error))
    notebook = about.get("notebook", named)
    if notebook not in known:
        return HandedIn(student, "", path, f"{path} is no notebook of the course: not graded")
    ours, theirs = version(solved(known[notebook])), about.get("version", "unknown")
    warning = "" if ours == theirs else (f"{path} is of version {plain(theirs)} of {notebook}, and "
                                         f"is graded by version {ours}")
    return HandedIn(student, notebook, path, warning, "", answers, own)


def answers_in(cells: list[dict], given: list) -> tuple[tuple, tuple]:
    """((number, source), ...) of the answers, the parts of one that was split joined; and the
    sources of code cells that were not handed out."""
    answers, own = {}, []
    for cell in cells:
        source = "".join(map(str, cell["source"]))
        name = str(cell["metadata"].get("nbgrader", {}).get("grade_id", ""))
        number = name.removeprefix("exercise-")
        if number != name and number.isdecimal() and len(number) < 4:
            answers[int(number)] = answers.get(int(number), "") + source + "\n\n"
        elif cell["cell_type"] == "code" and not name and cell.get("id", "") not in given:
            own.append(source)
    return tuple(answers.items()), tuple(own)


# ---------------------------------------------------------------- all of them


def grade(handed: list[HandedIn], hidden: dict[str, str], limits: Limits, jobs: int = 1,
          progress: Callable[[Iterable, int], Iterable] = lambda rows, total: rows,
          chosen: Collection[str] = ()) -> list[Row]:
    """A row for each student and exercise: of the notebooks that anyone has handed in, or those
    that are chosen.

    progress: wraps the rows as they come, of how many
    chosen: notebooks and exercises, such as "03" and "10.2"
    """
    wanted = {path.stem: [exercise for exercise in exercises_in(path.stem, solved(path)["cells"])
                          if not chosen or {path.stem[:2], exercise.name} & {*chosen}]
              for path in course() if chosen or path.stem in {each.notebook for each in handed}}
    theirs = {(each.student, each.notebook): each for each in handed if each.notebook}
    tasks = [(student, exercise, theirs.get((student, notebook)))
             for student in dict.fromkeys(each.student for each in handed)
             for notebook, found in wanted.items() for exercise in found]
    warm_up()
    pool = ThreadPoolExecutor(jobs)
    try:
        rows = pool.map(lambda task: row(*task, hidden, limits), tasks)
        return list(progress(rows, len(tasks)))
    finally:
        pool.shutdown(cancel_futures=True)             # who interrupts waits for those at work only


def row(student: str, exercise: Exercise, theirs: HandedIn | None, hidden: dict[str, str],
        limits: Limits) -> Row:
    why = refused(exercise, theirs, hidden.get(exercise.name, ""), limits)
    return Row(student, exercise.name, 0 if why else exercise.points, exercise.points,
               printable(why))


def refused(exercise: Exercise, theirs: HandedIn | None, hidden: str, limits: Limits) -> str:
    """Why there are no points for it, in a sentence; "" if there are."""
    if theirs is None:
        return f"{exercise.notebook} was not handed in"
    answer = dict(theirs.answers).get(exercise.number)
    if theirs.problem or answer is None:
        lost = (f"the cell exercise-{exercise.number} is not there: deleted, renamed, or not of "
                f"the student version")
        return theirs.problem if theirs.problem else lost
    if is_untouched(exercise, answer):                  # and no cell need run to say so
        return str(NotDone(exercise.name))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as holder:
        try:
            folder = copied(theirs.beside, Path(holder) / "copy")
        except (ValueError, OSError) as error:         # shutil.Error is an OSError
            return short(error, repr=str)
        verdict = run((exercise, answer, theirs.own, hidden), folder, limits)
    return "" if verdict == PASSES else verdict


def is_untouched(exercise: Exercise, answer: str) -> bool:
    """Whether it is what was handed out, but for spaces and empty lines."""
    after = "" if len(exercise.checks) > len(exercise.check) else exercise.after
    released = exercise.before + STUB.replace("EXERCISE", exercise.name) + "\n" + after
    return answer.split() == released.split()


def copied(folder: Path | None, to: Path) -> Path:
    """A copy without notebooks and hidden files, empty of None; ValueError if it is large."""
    if folder is None:
        to.mkdir()
        return to
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.suffix != ".ipynb")
    if size > LARGEST_FILE:
        raise ValueError(f"{folder} holds more than {LARGEST_FILE} bytes beside its notebooks; "
                         f"move away what is no part of the answers")
    return shutil.copytree(folder, to, symlinks=True,
                           ignore=shutil.ignore_patterns(".*", "*.ipynb", "__pycache__"))


# ---------------------------------------------------------------- a process each


def warm_up() -> None:
    """Have the server that forks the processes import what all of them need."""
    if FORKS:
        CONTEXT.set_forkserver_preload([__name__, "minipeft.course.notebook"])
    process = CONTEXT.Process(target=os.getpid)
    process.start()
    process.join()


def run(work: tuple[Exercise, str, tuple[str, ...], str], folder: Path, limits: Limits) -> str:
    """PASSES, or one line that says how it ended; nothing of it is left running."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=work_in, args=(work, folder, limits, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        said = within(PREPARING, ours)
        said = within(limits.seconds, ours) if said == READY else said
        return said.decode("utf-8", "replace")         # bytes: nothing is unpickled
    except TimeoutError as error:
        return str(error)
    except (EOFError, OSError):
        process.join(1)
        return f"it ended Python before the check was done ({ending(process.exitcode)})"
    finally:
        ours.close()
        end(process)


def within(seconds: float, pipe) -> bytes:
    """What comes out of the pipe; TimeoutError, in the words of a verdict, if nothing does."""
    if not pipe.poll(seconds):
        raise TimeoutError(f"it took more than {seconds:g} seconds: is there a loop that never "
                           f"ends?")
    return pipe.recv_bytes(LONGEST)


def ending(code: int | None) -> str:
    """Of an exit code of multiprocessing: a negative one is a signal."""
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit status {code}"


def end(process) -> None:
    """The process, and those that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def work_in(work: tuple, folder: Path, limits: Limits, verdicts) -> None:
    """In the process: sends the verdict and ends, whatever threads are still at work."""
    if hasattr(os, "setsid"):
        os.setsid()                                    # one signal then ends its children too
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ.update(HOME=str(folder), USERPROFILE=str(folder), TMPDIR=str(folder.parent),
                      CUDA_VISIBLE_DEVICES="")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (int(limits.gib * 2**30),) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    printed = Printed(limits.characters)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        verdict = verdict_of(*work, lambda: verdicts.send_bytes(READY))
    verdicts.send_bytes(sentence(verdict).encode("utf-8", "replace")[:LONGEST])
    os._exit(0)


class Printed(io.TextIOBase):
    """Takes so many characters and keeps none."""

    def __init__(self, characters: int) -> None:
        self.left = characters

    def write(self, text: str) -> int:
        self.left -= len(text)
        if self.left < 0:
            raise OSError("it printed too much")
        return len(text)


class Shell(InteractiveShell):
    """Jupyter's own lines (%time, !ls) without Jupyter: there is no window to open."""

    def enable_gui(self, gui: str | None = None) -> None:
        pass


def verdict_of(exercise: Exercise, answer: str, own: tuple[str, ...], hidden: str,
               ready: Callable[[], None]) -> str:
    """PASSES, or the error that the answer or its check ends with.

    ready: called when all that the answer needs has run, and the answer's own time begins
    """
    names = {"display": display}
    shell = Shell.instance(user_ns=names)
    matplotlib.use("Agg")
    try:
        answer = shell.transform_cell(answer)
        exercise = replace(exercise, before="", solution=answer, after="", check=exercise.checks)
        ours = set().union(*map(defined, exercise.earlier))
        own = [part for cell in parsed(map(shell.transform_cell, own))
               for part in beside(cell, ours)]
        program = "\n\n".join([*needed(own, answer), exercise.answered()])
        for cell in needed(exercise.earlier, f"{program}\n\n{hidden}"):
            failed = outcome(cell, names)              # the course's own code
            if failed != PASSES:
                return f"a cell of the course that it needs failed: {failed}"
    except SyntaxError as error:
        return f"SyntaxError: {error}"
    ready()
    verdict = outcome(program, names)
    unseen = outcome(hidden, names) if verdict == PASSES else PASSES
    return verdict if unseen == PASSES else f"{HIDDEN_REFUSES}: {sentence(unseen)}"


def parsed(sources: Iterable[str]) -> list[str]:
    """Those that are Python."""
    found = []
    for source in sources:
        with contextlib.suppress(SyntaxError):
            ast.parse(source)
            found.append(source)
    return found


def beside(cell: str, ours: set[str]) -> list[str]:
    """A student's cell; if it gives names of the course a value, those of its statements that do
    not."""
    if not defined(cell) & ours:
        return [cell]
    return [part for part in map(ast.unparse, ast.parse(cell).body) if not defined(part) & ours]


def printable(text: str) -> str:
    """With an escape for each character that a terminal would obey, or that UTF-8 cannot write."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def sentence(verdict: str) -> str:
    """In one line, without the name of the check's own error."""
    text = verdict.removeprefix("AssertionError: ").removeprefix("NotDone: ")
    return " ".join(text.split()) if text.strip() else "a check failed, and says no more"
